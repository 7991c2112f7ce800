"""Records of a comparison -> a table for the terminal, a Markdown table, one self-contained page. No torch.

``write(out_dir)`` is the whole of it; ``table``, ``markdown`` and ``summary`` give the parts as plain data
and need no optional extra. Rows may be incomplete (interrupted, diverged): what is there is shown, what is
missing is named.
"""

import math
from collections.abc import Iterable
from pathlib import Path

from quatrain import records
from quatrain._files import write_atomic
from quatrain.errors import DataError
from quatrain.report.advice import advise
from quatrain.report.gather import Comparison, Row, gather, number, table_of
from quatrain.report.measure import NATS
from quatrain.report.numbers import NBSP
from quatrain.report.summary import Summary, summarise
from quatrain.report.table import Table, plain, timed_plain
from quatrain.report.table import markdown as _markdown

__all__ = [
    "Summary",
    "Table",
    "advice",
    "best",
    "markdown",
    "measure",
    "summary",
    "table",
    "task",
    "timed_table",
    "write",
]


def table(rows: Iterable[Row]) -> Table:
    """The main table as strings: ``header`` and ``rows``, models best first, then the baselines."""
    return plain(gather(rows))


def timed_table(rows: Iterable[Row]) -> Table:
    """The table of models trained anew for the same time, as strings; empty where none were."""
    return timed_plain(gather(rows))


def advice(rows: Iterable[Row]) -> str:
    """Which model to choose, and what would change that: a paragraph written from the numbers."""
    return " ".join(advise(gather(rows)))


def markdown(rows: Iterable[Row]) -> str:
    """The tables in Markdown, machine, config digest and date above them, the advice below."""
    return _text(gather(rows))


def _text(comparison: Comparison) -> str:
    """``table.md``: the tables, and the advice below them."""
    chosen = " ".join(advise(comparison))
    return _markdown(comparison) + (f"\n{chosen}\n".replace(NBSP, " ") if chosen else "")


def summary(rows: Iterable[Row]) -> Summary:
    """The comparison in words: a headline, facts as (label, sentence), and warnings."""
    return summarise(gather(rows))


def task(rows: Iterable[Row]) -> str:
    """The name of the task that was compared on."""
    return gather(rows).task


def measure(rows: Iterable[Row]) -> str:
    """What the test part is judged by, in words: ``test loss``, ``accuracy``."""
    found = gather(rows)
    return "test loss" if found.measure == NATS else found.measure.says


def best(rows: Iterable[Row]) -> Row | None:
    """The result of the best run on the test part; None where no run has one."""
    found = gather(rows)
    tested = [row for row in found.rows.get("result", []) if row.get("status") == "ok" and row.get("run")]

    def merit(row: Row) -> float:
        value = number(row, "test_loss") if found.measure == NATS else None
        if found.measure != NATS:
            value = number(table_of(row, "metrics"), found.measure.name)
        return math.inf if value is None else found.measure.merit(value)

    return min(tested, key=merit, default=None)


def write(out_dir: Path) -> Path:
    """Write ``table.md`` and ``report.html`` beside the ``records.jsonl`` of ``out_dir``; returns the page.

    Each file is replaced whole or not at all. The page stays below 2 MB and loads nothing; costs about two
    seconds.

    Raises DataError where ``records.jsonl`` is missing, damaged or holds no comparison, and MissingExtraError
    where altair or vl-convert-python is not installed; ``table.md``, which needs neither, is written first.
    """
    source = Path(out_dir) / "records.jsonl"
    if not source.is_file():
        raise DataError(f"{source}: no such file; a comparison writes its records there")
    comparison = gather(records.read(source))
    if "comparison" not in comparison.rows:
        raise DataError(f"{source}: holds no comparison")
    write_atomic(source.with_name("table.md"), _text(comparison))
    from quatrain.report.page import html  # altair takes a second to import: only for the page

    page = source.with_name("report.html")
    write_atomic(page, html(comparison))
    return page
