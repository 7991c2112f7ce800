// Draws every chart from the spec beside it and lets tables be sorted. On <html> it leaves data-charts (how many are
// drawn), data-failed (how many are not) and data-requests (resources the page loaded: none), which the tests read.
"use strict";
(async () => {
  const root = document.documentElement;
  root.classList.add("js");

  const sortBy = (table, column, direction) => {
    const body = table.tBodies[0];
    const number = (row) => parseFloat(row.cells[column].dataset.v ?? text(row));
    const text = (row) => row.cells[column].textContent.trim();
    const compare = (a, b) => {
      if (column === 0) return direction * text(a).localeCompare(text(b));
      const x = number(a), y = number(b);
      if (Number.isNaN(x) && Number.isNaN(y)) return direction * text(a).localeCompare(text(b));
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);  // unknown values last
      return direction * (x - y);
    };
    body.append(...[...body.rows].sort(compare));
    for (const head of table.tHead.rows[0].cells) head.removeAttribute("aria-sort");
    table.tHead.rows[0].cells[column].setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
  };
  for (const button of document.querySelectorAll("th button")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      sortBy(head.closest("table"), head.cellIndex, head.getAttribute("aria-sort") === "ascending" ? -1 : 1);
    });
  }

  let drawn = 0, failed = 0;
  for (const spot of document.querySelectorAll(".chart")) {
    const spec = JSON.parse(document.getElementById(spot.id + "-spec").textContent);
    const still = spot.innerHTML;
    try {
      await vegaEmbed(spot, spec, {
        mode: "vega-lite", renderer: "svg", actions: false, defaultStyle: false, ast: true,
        tooltip: { theme: "page", disableDefaultStyle: true },
      });
      drawn += 1;
    } catch (error) {
      failed += 1;
      spot.innerHTML = still;
      console.error(error);
    }
  }
  root.dataset.failed = failed;
  root.dataset.requests = performance.getEntriesByType("resource").length;
  root.dataset.overflow = root.scrollWidth > root.clientWidth ? "yes" : "no";
  root.dataset.charts = drawn;
})();
