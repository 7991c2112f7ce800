// Pointing at a step anywhere marks it everywhere: in the text, and by a line in every picture over time. Values of heat
// maps are read back from their pictures. On <html> it leaves data-ready, data-requests and data-overflow for the tests.
"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  const labels = JSON.parse(document.getElementById("labels").textContent);
  const spans = [...document.querySelectorAll(".text span")];
  const spanOf = [];
  for (const span of spans) {
    for (let part = 0; part < (+span.dataset.n || 1); part++) spanOf[+span.dataset.t + part] = span;
  }
  const steps = Math.max(spanOf.length, +document.body.dataset.steps || 0);
  const tip = document.body.appendChild(Object.assign(document.createElement("div"), { className: "tip" }));
  tip.setAttribute("role", "status");

  const show = (pairs, event) => {
    const list = document.createElement("dl");
    for (const [name, value] of pairs) {
      list.append(Object.assign(document.createElement("dt"), { textContent: name }),
        Object.assign(document.createElement("dd"), { textContent: value }));
    }
    tip.replaceChildren(list);
    tip.classList.add("visible");
    const box = tip.getBoundingClientRect(), gap = 14;
    const left = event.clientX + gap + box.width > innerWidth ? event.clientX - gap - box.width : event.clientX + gap;
    const top = event.clientY + gap + box.height > innerHeight ? event.clientY - gap - box.height : event.clientY + gap;
    tip.style.left = Math.max(4, left) + "px";
    tip.style.top = Math.max(4, top) + "px";
  };
  const clear = () => {
    tip.classList.remove("visible");
    document.body.classList.remove("pointing");
    for (const span of document.querySelectorAll(".text .here, .text .read")) span.classList.remove("here", "read");
  };
  const mark = (step, read = []) => {
    clear();
    root.style.setProperty("--at", ((step + .5) / steps * 100).toFixed(3));
    document.body.classList.add("pointing");
    spanOf[step]?.classList.add("here");
    for (const other of read) spanOf[other]?.classList.add("read");
  };
  const around = (step) => {
    if (!labels.length) return [];
    const before = labels.slice(Math.max(0, step - 12), step).join(""), after = labels.slice(step + 1, step + 6).join("");
    return [["text", `…${before}[${labels[step]}]${after}…`]];
  };
  const short = (value) => {
    if (value === 0) return "0";
    const size = Math.abs(value);
    return size >= 1e4 || size < 1e-3 ? value.toExponential(2) : String(+value.toPrecision(3));
  };
  const at = (element, event, columns) => {
    const box = element.getBoundingClientRect();
    const place = (position, size, count) => Math.min(count - 1, Math.max(0, Math.floor(position / size * count)));
    return (rows) => [place(event.clientX - box.left, box.width, columns), place(event.clientY - box.top, box.height, rows)];
  };
  const pixels = new Map();  // picture -> its opacities, read once
  const opacity = (image, column, row) => {
    if (!pixels.has(image)) {
      const canvas = Object.assign(document.createElement("canvas"), { width: image.naturalWidth, height: image.naturalHeight });
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(image, 0, 0);
      pixels.set(image, context.getImageData(0, 0, canvas.width, canvas.height).data);
    }
    return pixels.get(image)[4 * (row * image.naturalWidth + column) + 3] / 255;
  };
  const listen = (element, move) => {
    element.addEventListener("pointermove", move);
    element.addEventListener("pointerdown", move);
    element.addEventListener("pointerleave", clear);
  };

  for (const span of spans) {
    listen(span, (event) => {
      const step = +span.dataset.t, pairs = [["step", String(step + 1)]];
      if (span.dataset.l) {
        const nats = +span.dataset.l, chance = 100 * Math.exp(-nats);
        pairs.push(["probability", `${chance < .1 ? chance.toExponential(1) : +chance.toPrecision(3)} %`], ["loss", `${short(nats)} nats`]);
      }
      if (span.dataset.g) span.dataset.g.split("|").forEach((guess, index) => pairs.push([index ? "" : "expected", guess]));
      if (span.dataset.n) pairs.push(["tokens", span.dataset.n]);
      mark(step);
      show(pairs, event);
    });
  }
  for (const plot of document.querySelectorAll(".plot")) {
    const values = plot.dataset.values && JSON.parse(plot.dataset.values);
    const profile = plot.dataset.profile && JSON.parse(plot.dataset.profile);
    const strip = plot.dataset.strip && JSON.parse(plot.dataset.strip);
    const image = strip && plot.querySelector("img");
    listen(plot, (event) => {
      const [step] = at(plot, event, steps)(1);
      const pairs = [["step", String(step + 1)]];
      if (values) for (const [name, each] of Object.entries(values)) pairs.push([name, short(each[step])]);
      if (profile) pairs.push([plot.dataset.name, short(profile[Math.floor(step / steps * profile.length)])]);
      if (plot.classList.contains("losses") && spanOf[step]?.dataset.l) pairs.push(["loss", `${short(+spanOf[step].dataset.l)} nats`]);
      if (strip) {
        const [column, row] = at(plot, event, strip.columns)(strip.rows);
        const share = opacity(image, column, row), { low, high } = strip;
        const logs = strip.scale === "log" || strip.scale === "ratio";
        const value = logs ? low * (high / low) ** share : low + (high - low) * share;
        pairs.push(["unit", String(strip.units[row] + 1)], ["value", short(value) + (strip.scale === "ratio" ? "× its mean" : "")]);
      }
      mark(step);
      show([...pairs, ...around(step)], event);
    });
  }
  for (const square of document.querySelectorAll(".square")) {
    const { side, group } = JSON.parse(square.dataset.map), image = square.querySelector("img");
    const range = (cell) => group === 1 ? String(cell + 1) : `${cell * group + 1} to ${Math.min(steps, (cell + 1) * group)}`;
    const words = (cell) => labels.slice(cell * group, (cell + 1) * group).join("");
    listen(square, (event) => {
      const [column, row] = at(square, event, side)(side);
      const weight = opacity(image, column, row) ** 2;
      const name = (cell) => range(cell) + (labels.length ? ` (${words(cell)})` : "");
      const strong = [];
      for (let cell = 0; cell < side; cell++) {
        if (opacity(image, cell, row) ** 2 > .1) for (let part = 0; part < group; part++) strong.push(cell * group + part);
      }
      mark(Math.min(steps - 1, row * group), strong);
      show([["reads", name(row)], ["is read", name(column)], ["weight", short(weight)]], event);
    });
  }
  root.dataset.requests = performance.getEntriesByType("resource").filter((entry) => !entry.name.startsWith("data:")).length;
  root.dataset.overflow = root.scrollWidth > root.clientWidth ? "yes" : "no";
  root.dataset.ready = document.querySelectorAll(".plot, .square").length;
})();
