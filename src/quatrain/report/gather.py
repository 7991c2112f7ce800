"""The rows of a comparison, put in order: what is known of each model, whatever is missing.

Nothing here raises on an absent or null field: a comparison may have been interrupted, a model may have
diverged, and the page then shows the rest. Rows that say the same thing twice (a resumed run) count once,
the last one wins.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import Any

from quatrain.report.measure import NATS, Measure, Words, measures, words
from quatrain.report.styles import BASELINE, Style, styles

Row = Mapping[str, Any]
Run = tuple[str, float, int]  # mixer, learning rate, seed

_KEYS = {
    "model": ("mixer",),
    "train": ("mixer", "lr", "seed", "step", "budget"),
    "valid": ("mixer", "lr", "seed", "step", "budget"),
    "result": ("mixer", "seed", "budget"),
    "position": ("mixer", "to"),
    "far": ("mixer",),
    "step_cost": ("mixer", "context"),
    "prefill": ("mixer", "length"),
    "prefill_fit": ("mixer",),
    "gradient": ("mixer", "k", "trained"),
    "sample": ("mixer", "prompt"),
    "baseline": ("name",),
}


def number(row: Row, key: str) -> float | None:
    """A finite number of a row, or None where the field is absent, null or not a number."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def table_of(row: Row, key: str) -> Row:
    """A nested table of a row, empty where the field is absent or something else."""
    value = row.get(key)
    return value if isinstance(value, Mapping) else {}


def list_of(row: Row, key: str) -> list[Any]:
    """A list of a row, empty where the field is absent or something else."""
    value = row.get(key)
    return list(value) if isinstance(value, list | tuple) else []


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the main table, a model or a baseline; ``values`` has one number a seed, or one in all.

    ``texts`` are cells that are no numbers, and "bits" says what bits are counted per; ``measure`` is what it
    is judged by; its values on the test part are ``values[measure.key]``.
    """

    key: str
    style: Style
    status: str  # ok, diverged, failed, unfinished, baseline
    note: str = ""
    seeds: tuple[int, ...] = ()
    values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    pieces: tuple[float, ...] = ()  # losses of stretches of the test part, mean over seeds
    measure: Measure = NATS

    @property
    def merit(self) -> float:
        """Mean of its measure on the test part such that less is better; inf where there is none."""
        test = self.mean(self.measure.key)
        return math.inf if test is None or self.status not in ("ok", "baseline") else self.measure.merit(test)

    def mean(self, key: str) -> float | None:
        """Mean over seeds, or None where nothing was measured."""
        values = self.values.get(key, ())
        return fmean(values) if values else None

    def spread(self, key: str) -> float | None:
        """Sample standard deviation over seeds, or None for fewer than two."""
        values = self.values.get(key, ())
        return stdev(values) if len(values) > 1 else None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything the report knows.

    ``rows[kind]`` are that kind's rows, repeated ones dropped, in order of writing.
    """

    about: Row
    end: Row
    rows: Mapping[str, list[Row]]
    mixers: tuple[str, ...]
    styles: Mapping[str, Style]
    entries: tuple[Entry, ...]  # models, best on the test part first, those without a result at the end
    baselines: tuple[Entry, ...]  # best first
    contexts: tuple[int, int]  # the shortest and longest context at which a generated token was timed
    timed: tuple[Entry, ...] = ()  # models trained anew for equal time, best first; entries have equal tokens
    timed_rows: Mapping[str, list[Row]] = field(default_factory=dict)  # their train, valid and result rows
    measures: tuple[Measure, ...] = (NATS,)  # the metrics of the task; the first one decides

    @property
    def alike(self) -> str:
        """What the models of ``entries`` got alike: "tokens", or "time" where nothing else was compared."""
        return "time" if list_of(self.about, "equal") == ["time"] else "tokens"

    def again(self) -> "Comparison":
        """The models trained anew for equal time, in place of those with equal tokens."""
        return replace(self, rows={**self.rows, **self.timed_rows}, entries=self.timed)

    @property
    def task(self) -> str:
        """The name of the task."""
        return str(self.about.get("task") or "lm")

    @property
    def measure(self) -> Measure:
        """What decides."""
        return self.measures[0]

    @property
    def words(self) -> Words:
        """How the task speaks of its inputs and losses."""
        return words(self.about)

    def judged(self, row: Row) -> float | None:
        """What a "valid" row says of the measure that decides."""
        if self.measure == NATS:
            return number(row, "loss")
        return number(table_of(row, "metrics"), self.measure.name)

    def style(self, mixer: str) -> Style:
        """The look of a mixer."""
        return self.styles[mixer]

    def of(self, kind: str, mixer: str) -> list[Row]:
        """The rows of one kind and mixer."""
        return [row for row in self.rows.get(kind, []) if row.get("mixer") == mixer]

    def chosen(self, mixer: str, kind: str) -> dict[Run, list[Row]]:
        """The curve of each seed at the rate that its result chose; without a result, the longest run."""
        runs = self.runs(mixer, kind)
        wanted = {(row.get("seed"), number(row, "lr")) for row in self.of("result", mixer)}
        found = {run: rows for run, rows in runs.items() if (run[2], run[1]) in wanted}
        if found or not runs:
            return found
        longest = max(runs, key=lambda run: number(runs[run][-1], "tokens") or 0.0)
        return {longest: runs[longest]}

    def runs(self, mixer: str, kind: str) -> dict[Run, list[Row]]:
        """The ``train`` or ``valid`` rows of each run of a mixer, by step; only rows with step and loss."""
        runs: dict[Run, list[Row]] = {}
        for row in self.of(kind, mixer):
            lr, step = number(row, "lr"), number(row, "step")
            if lr is not None and step is not None and number(row, "loss") is not None:
                runs.setdefault((mixer, lr, int(number(row, "seed") or 0)), []).append(row)
        return {run: sorted(rows, key=lambda row: number(row, "step") or 0.0) for run, rows in runs.items()}


# Control characters become pictures of themselves: in HTML most are forbidden, and vl-convert aborts at NUL.
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}


def _printable(value: Any) -> Any:
    """A row with every text in it fit for a page: no control character, no lone surrogate."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode().translate(_PICTURES)
    if isinstance(value, Mapping):
        return {_printable(key): _printable(item) for key, item in value.items()}
    return [_printable(item) for item in value] if isinstance(value, list | tuple) else value


def _unique(kind: str, rows: list[Row]) -> list[Row]:
    names = _KEYS.get(kind)
    if names is None:
        return rows
    return list({tuple(repr(row.get(name)) for name in names): row for row in rows}.values())


def _mixers(about: Row, rows: Mapping[str, list[Row]]) -> tuple[str, ...]:
    """Mixers asked for, then any others that have rows."""
    named = [name for name in list_of(about, "mixers") if isinstance(name, str)]
    seen = [row["mixer"] for kind in _KEYS for row in rows.get(kind, []) if isinstance(row.get("mixer"), str)]
    return tuple(dict.fromkeys(named + seen))


def _numbers(rows: Iterable[Row], key: str) -> tuple[float, ...]:
    return tuple(value for value in (number(row, key) for row in rows) if value is not None)


_FROM_RESULT = (
    "test_loss",
    "test_bits_per_byte",
    "test_bits_per_character",
    "test_items",
    "valid_loss",
    "lr",
    "tokens_per_second",
    "tokens",
    "train_seconds",
    "peak_memory_bytes",
)
_FROM_MODEL = ("params", "params_embedding", "width", "flops_per_token")


def _status(results: list[Row], seeds: int) -> tuple[str, str]:
    bad = [row for row in results if row.get("status", "ok") != "ok"]
    reasons = "; ".join(dict.fromkeys(str(row["reason"]) for row in bad if row.get("reason")))
    if not results:
        return "unfinished", "no result: the comparison stopped before it was done"
    if len(bad) == len(results):
        return str(bad[0]["status"]), reasons
    parts = (
        [f"{len(bad)} of {len(results)} seeds {bad[0]['status']}" + (f" ({reasons})" if reasons else "")]
        if bad
        else []
    )
    if len(results) < seeds:
        parts.append(f"{len(results)} of {seeds} seeds done")
    return "ok", "; ".join(parts)


def _metrics(rows: list[Row], judged: tuple[Measure, ...]) -> dict[str, tuple[float, ...]]:
    """The values of all metrics on both parts."""
    found = {}
    for measure in judged:
        if measure != NATS:
            found[measure.key] = _numbers([table_of(row, "metrics") for row in rows], measure.name)
            found[measure.valid] = _numbers([table_of(row, "valid_metrics") for row in rows], measure.name)
    return found


def _entry(
    mixer: str,
    style: Style,
    rows: Mapping[str, list[Row]],
    seeds: int,
    contexts: tuple[int, int],
    judged: tuple[Measure, ...],
    bits: Mapping[str, str],
) -> Entry:
    def mine(kind: str) -> list[Row]:
        return [row for row in rows.get(kind, []) if row.get("mixer") == mixer]

    results, models = mine("result"), mine("model")
    fine = [
        row for row in results if row.get("status", "ok") == "ok" and number(row, "test_loss") is not None
    ]
    values = {key: _numbers(fine or results, key) for key in _FROM_RESULT}
    values |= _metrics(fine or results, judged)
    values |= {key: _numbers(models, key) for key in _FROM_MODEL}
    for row in mine("step_cost"):
        for place, at in zip(("short", "long"), contexts, strict=True):
            if number(row, "context") == at:
                values[f"ms_{place}"] = _numbers([row], "ms_per_token")
                values[f"state_{place}"] = _numbers([row], "state_bytes")
    values["exponent"] = _numbers(mine("prefill_fit"), "exponent")
    texts = dict(bits)
    width, layers = (number(models[0], key) for key in ("width", "layers")) if models else (None, None)
    if width is not None and layers is not None:
        texts["width"] = f"{width:.0f} \N{MULTIPLICATION SIGN} {layers:.0f}"
    status, note = _status(results, seeds)
    seed_numbers = tuple(int(number(row, "seed") or 0) for row in fine)
    return Entry(
        key=mixer,
        style=style,
        status=status,
        note=note,
        seeds=seed_numbers,
        values=values,
        texts=texts,
        measure=judged[0],
        pieces=_pieces(fine),
    )


def _pieces(results: list[Row]) -> tuple[float, ...]:
    """Losses of the stretches of the test part, averaged over results that have the same ones."""
    each = [list_of(row, "test_pieces") for row in results]
    each = [found for found in each if found and all(isinstance(loss, int | float) for loss in found)]
    if not each or len({len(found) for found in each}) > 1:
        return ()
    return tuple(fmean(losses) for losses in zip(*each, strict=True))


_CURVES = ("train", "valid", "result")  # kinds of rows of which both parts of a comparison have some


def _split(about: Row, kinds: Mapping[str, list[Row]]) -> tuple[dict[str, list[Row]], dict[str, list[Row]]]:
    """The rows of the part that chose the learning rates, and those of models trained anew for equal time."""
    if list_of(about, "equal") == ["time"]:
        return dict(kinds), {}
    first, anew = dict(kinds), {}
    for kind in _CURVES:
        rows = kinds.get(kind, [])
        first[kind] = [row for row in rows if row.get("budget") != "time"]
        anew[kind] = [row for row in rows if row.get("budget") == "time"]
    return first, anew


def baseline_name(name: str) -> str:
    """``markov-3`` -> ``order-3 Markov``; other names as they are."""
    kind, _, order = name.partition("-")
    return f"order-{order} Markov" if kind == "markov" and order else name


def _baseline(row: Row, judged: tuple[Measure, ...], bits: Mapping[str, str]) -> Entry:
    name = str(row.get("name", "baseline"))
    keys = ("test_loss", "test_bits_per_byte", "test_bits_per_character", "valid_loss")
    return Entry(
        key=name,
        style=BASELINE._replace(name=baseline_name(name)),
        status="baseline",
        values={key: _numbers([row], key) for key in keys} | _metrics([row], judged),
        texts=bits,
        measure=judged[0],
    )


def gather(rows: Iterable[Row]) -> Comparison:
    """Sort the rows of a comparison's records by what they tell; unknown kinds are ignored."""
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        kinds.setdefault(str(row.get("kind")), []).append(_printable(row))
    kinds = {kind: _unique(kind, found) for kind, found in kinds.items()}
    about: Row = (kinds.get("comparison") or [{}])[-1]
    mixers = _mixers(about, kinds)
    kinds, anew = _split(about, kinds)
    looks = styles(mixers)
    at = sorted({int(value) for value in _numbers(kinds.get("step_cost", []), "context")}) or [128, 16384]
    contexts = (at[0], at[-1])
    seeds = max(1, len(list_of(about, "seeds")))
    judged = measures(about)
    bits = {"bits": "bits per base"} if table_of(about, "data").get("tokenizer") == "dna" else {}
    entries = [_entry(mixer, looks[mixer], kinds, seeds, contexts, judged, bits) for mixer in mixers]
    shared = {**anew, "model": kinds.get("model", [])}
    again = mixers if anew.get("result") else ()
    timed = [_entry(mixer, looks[mixer], shared, seeds, contexts, judged, bits) for mixer in again]
    baselines = [_baseline(row, judged, bits) for row in kinds.get("baseline", [])]
    return Comparison(
        about=about,
        end=(kinds.get("end") or [{}])[-1],
        rows=kinds,
        mixers=mixers,
        styles=looks,
        entries=tuple(sorted(entries, key=lambda entry: entry.merit)),
        baselines=tuple(sorted(baselines, key=lambda entry: entry.merit)),
        contexts=contexts,
        timed=tuple(sorted(timed, key=lambda entry: entry.merit)),
        timed_rows=anew,
        measures=judged,
    )
