"""The main table, as plain strings (terminal, Markdown) and as columns that the page renders itself."""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

from quatrain.report import numbers
from quatrain.report.gather import Comparison, Entry, number, table_of
from quatrain.report.measure import NATS

Show = Callable[[float], str]


class Column(NamedTuple):
    """One column: ``best`` is the good end of it (``low``, ``high`` or neither), ``help`` says what it is."""

    key: str
    title: str
    unit: str
    show: Show
    best: str
    help: str


class Table(NamedTuple):
    """Plain strings: a header and rows of the same length; the first column is the name."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def columns(comparison: Comparison) -> list[Column]:
    """The columns of the main table; the two contexts are the shortest and the longest that were timed."""
    short, far = (numbers.context(value) for value in comparison.contexts)
    one = numbers.significant
    low, high = "low", "high"
    step = comparison.words.step
    return [
        *(_text_columns(comparison) if comparison.measure == NATS else _metric_columns(comparison)),
        Column("params", "Params", "non-embed.", numbers.count, "", "equal for all models within 2 %"),
        Column(
            "width",
            "Size",
            "width \N{MULTIPLICATION SIGN} layers",
            one,
            "",
            "model width and number of layers",
        ),
        Column("lr", "Rate", "chosen", numbers.rate, "", "the rate with the best validation loss"),
        Column(
            "flops_per_token",
            "Work",
            f"FLOPs/{step}",
            numbers.count,
            low,
            "forward pass at the training context",
        ),
        Column(
            "tokens_per_second",
            "Training",
            f"{step}s/s",
            numbers.count,
            high,
            "speed of training on this machine, by the median step",
        ),
        Column(
            "peak_memory_bytes",
            "Memory",
            "peak",
            numbers.size,
            low,
            "largest memory of the process while training",
        ),
        Column(
            "state_long",
            "State",
            f"at {far}",
            numbers.size,
            low,
            "live bytes kept per sequence while generating",
        ),
        Column(
            "ms_short",
            "Latency",
            f"ms at {short}",
            one,
            low,
            f"milliseconds per new {step}, batch of one",
        ),
        Column("ms_long", "Latency", f"ms at {far}", one, low, f"milliseconds per new {step}, batch of one"),
        Column(
            "exponent",
            "Prefill",
            "exponent",
            lambda n: f"{n:.2f}",
            low,
            "fitted exponent n of reading a prompt",
        ),
    ]


def _text_columns(comparison: Comparison) -> list[Column]:
    """Losses of a text: per token, per byte (or base), per character where that is another number."""
    entries = [*comparison.entries, *comparison.baselines]
    unit = "base" if table_of(comparison.about, "data").get("tokenizer") == "dna" else "byte"
    columns = [
        Column(
            "test_loss",
            "Test loss",
            "nats/token",
            numbers.loss,
            "low",
            "mean loss on the test part, measured once",
        )
    ]
    if any(entry.mean("test_bits_per_byte") is not None for entry in entries) or not entries:
        columns.append(
            Column(
                "test_bits_per_byte",
                "Test",
                f"bits/{unit}",
                numbers.loss,
                "low",
                f"the same loss per {unit} of text",
            )
        )
    if any(entry.mean("test_bits_per_character") is not None for entry in entries):
        about = "the same loss per character of text"
        columns.append(Column("test_bits_per_character", "Test", "bits/char", numbers.loss, "low", about))
    about = "loss on the validation part, which chose lr"
    return [*columns, Column("valid_loss", "Valid loss", "nats/token", numbers.loss, "low", about)]


def _metric_columns(comparison: Comparison) -> list[Column]:
    """The metrics of the task on the test part, then the one that chose the rate on the validation part."""
    first = comparison.measure
    columns = [
        Column(
            measure.key,
            measure.title,
            "test",
            measure.show,
            "low" if measure.lower else "high",
            f"{measure.says} on the test part, measured once; {measure.better}",
        )
        for measure in comparison.measures
    ]
    about = f"{first.says} on the validation part, which chose lr"
    good = "low" if first.lower else "high"
    return [*columns, Column(first.valid, first.title, "validation", first.show, good, about)]


def timed_columns(comparison: Comparison) -> list[Column]:
    """The columns of the second table: models trained anew for the same time."""
    low, high, step, measure = "low", "high", comparison.words.step, comparison.measure
    first = _text_columns(comparison) if measure == NATS else _metric_columns(comparison)
    first = [column._replace(help=column.help.split(", which chose")[0]) for column in first]
    return [
        *first,
        Column("train_seconds", "Time", "seconds", numbers.seconds, "", "seconds of training steps in fact"),
        Column("tokens", f"{step.title()}s", "read", numbers.count, high, f"{step}s read in that time"),
        Column("tokens_per_second", "Training", f"{step}s/s", numbers.count, high, "by the median step"),
        Column("lr", "Rate", "as above", numbers.rate, "", f"the rate that was chosen at equal {step}s"),
        Column(
            "gained",
            f"Against equal {step}s",
            "points" if measure.percent else "%",
            lambda share: f"{100 * share:+.1f}".replace("-", "\N{MINUS SIGN}"),
            low if measure.lower else high,
            f"change of {'the test loss' if measure == NATS else measure.says} against the first table",
        ),
    ]


def cell(entry: Entry, column: Column) -> str:
    """One cell as text: ``mean +- deviation`` over several seeds, a dash where nothing is known."""
    if column.key in entry.texts:
        return entry.texts[column.key]
    mean, spread = entry.mean(column.key), entry.spread(column.key)
    if mean is None:
        return "" if entry.status == "baseline" else numbers.DASH
    spreads = spread is not None and column.key.startswith(("test_", "valid_"))
    return column.show(mean) + (f" {numbers.PLUS_MINUS} {column.show(spread or 0.0)}" if spreads else "")


def label(entry: Entry) -> str:
    """The name of a line, with its status where that is not plain success."""
    return entry.style.name + ("" if entry.status in ("ok", "baseline") else f" ({entry.status})")


def ranked(comparison: Comparison) -> list[Entry]:
    """Models, best first, then the baselines, best first."""
    return [*comparison.entries, *comparison.baselines]


def timed_ranked(comparison: Comparison) -> list[Entry]:
    """Models trained anew for the same time, best first, then the baselines; empty where none were."""
    if not comparison.timed:
        return []
    measure = comparison.measure
    before = {entry.key: entry.mean(measure.key) for entry in comparison.entries}
    found = []
    for entry in comparison.timed:
        old, new = before.get(entry.key), entry.mean(measure.key)
        gained: tuple[float, ...] = ()
        if old is not None and new is not None and (old or measure.percent):
            gained = (new - old,) if measure.percent else (new / old - 1,)
        found.append(replace(entry, values={**entry.values, "gained": gained}))
    return [*found, *comparison.baselines]


def titles(comparison: Comparison) -> tuple[str, str]:
    """Headings of the two tables."""
    seconds = number(comparison.about, "time_per_model")
    each = f" ({numbers.duration(seconds)} each)".replace(numbers.NBSP, " ") if seconds else ""
    timed = f"Equal parameters and training time{each}"
    first = f"Equal parameters and {comparison.words.step}s"
    return (timed if comparison.alike == "time" else first), timed


def plain(comparison: Comparison) -> Table:
    """The main table as strings, with the unit in the header."""
    return _plain(columns(comparison), ranked(comparison))


def timed_plain(comparison: Comparison) -> Table:
    """The table of models trained anew for the same time; empty where none were."""
    lines = timed_ranked(comparison)
    return _plain(timed_columns(comparison), lines) if lines else Table((), ())


def _plain(shown: list[Column], lines: list[Entry]) -> Table:
    header = ("Model", *(f"{column.title} ({column.unit})" for column in shown))
    rows = (
        (label(entry), *(cell(entry, column).replace(numbers.NBSP, " ") for column in shown))
        for entry in lines
    )
    return Table(header, tuple(rows))


def provenance(comparison: Comparison) -> list[str]:
    """Machine, settings and date in short phrases: what a figure needs so that it can be trusted alone."""
    about, machine = comparison.about, table_of(comparison.about, "machine")
    threads, device = machine.get("threads"), machine.get("device")
    parts = [
        re.sub(r"\((R|TM)\)", "", str(machine.get("cpu") or "machine not recorded")),
        f"{threads} thread{'s' * (threads != 1)}" if threads else "",
        str(device) if device and device != "cpu" else "",
        f"config {about['config_digest']}" if about.get("config_digest") else "",
        f"commit {str(about['commit'])[:12]}" if about.get("commit") else "",
        str(about.get("started") or "")[:10],
    ]
    return [part for part in parts if part]


def markdown(comparison: Comparison) -> str:
    """The main table as Markdown, with a line of provenance above it."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    def block(table: Table) -> str:
        align = ["---", *["---:"] * (len(table.header) - 1)]
        return "\n".join([line(table.header), line(align), *(line(row) for row in table.rows)])

    data = table_of(comparison.about, "data")
    parts = [f"data {data['name']}" if data.get("name") else "", *provenance(comparison)]
    notes = [f"{label(entry)}: {entry.note}" for entry in comparison.entries if entry.note]
    first, second = titles(comparison)
    both = bool(comparison.timed)
    blocks = [
        ", ".join(part for part in parts if part) + ".",
        *([f"## {first}"] if both else []),
        block(plain(comparison)),
        *([f"## {second}", block(timed_plain(comparison))] if both else []),
        *(f"- {note}" for note in notes),
    ]
    return "\n\n".join(blocks) + "\n"
