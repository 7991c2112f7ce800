"""``quatrain compare``: train the architectures side by side on one set of data and show a page."""

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quatrain.cli import _data
from quatrain.cli._flags import Option, Parsed, Surface, parse
from quatrain.data.config import DataConfig

if TYPE_CHECKING:
    from quatrain.lab.config import CompareConfig


@dataclass(frozen=True, kw_only=True)
class Keys:
    """The keys that are flags here: those of the data, as in a recipe."""

    data: DataConfig = field(default_factory=DataConfig)


SURFACE = Surface(
    command="compare",
    help=(
        "Train architectures side by side on text, series, labelled sequences or recordings: the same size,\n"
        "the same data in the same order, the same search for a learning rate, one test. What it is is\n"
        "recognised and said. Ends with a table and a page. Stopped at any moment, the same command goes on."
    ),
    options=(
        Option("data", "a file, directory, glob, - for stdin, or python (default): Python's own library"),
        *_data.OPTIONS,
        Option(
            "--budget",
            "training time in all, as 90s, 10m (default), 1h; or tokens per model, as 500Ktokens",
            "TIME",
        ),
        Option("--params", "parameters of each model without embedding, as 250K, 1M (default)", "N"),
        Option(
            "--equal",
            "tokens, time or both: what all get alike; both (default) trains anew for the same time, inside "
            "the budget; with a budget in tokens the default is tokens",
            "WHAT",
        ),
        Option("--seeds", "runs of each model; 1 (default) is a quick look", "N", int),
        Option(
            "--mixers",
            "architectures (default: rnn,lstm,attention,s6); also gru, s4d, 's6 s6 attention'",
            "A,B",
        ),
        Option("--out", "directory (default: runs/compare-<data>-<digest of the settings>)", "DIR"),
        Option("--learning-rates", "the grid, the same for each (default: 1e-3,3e-3,1e-2)", "X,Y"),
        Option(
            "--rung", "part of the run after which the learning rate is chosen (default: 0.25)", "X", float
        ),
        Option(
            "--sequence", "tokens of a training sequence and test window (default: by the data)", "N", int
        ),
        Option("--batch", "sequences of one optimiser step (default: by the data; text: 8)", "N", int),
        Option(
            "--dropout",
            "of every model; 0.3 may help where little data is read often (default: 0)",
            "P",
            float,
        ),
        Option("--contexts", "contexts at which one more step is timed (default: 128 to 16K)", "N,M"),
        Option("--context", "longest window of a text's loss by position (default: 4 sequences)", "N"),
        Option("--evaluation", "most time for all that is not training, roughly (default: 200s)", "TIME"),
        Option("--threads", "CPU threads (default: those it began with, or all)", "N", int),
    ),
    keys=Keys,
    examples=(
        "quatrain compare",
        "quatrain compare readings.csv --target temperature --horizon 48",
        "quatrain compare birds/ --mixers lstm,gru,s6    # one folder of recordings per class",
        "quatrain compare book.txt --budget 1h --params 4M --seeds 3",
        "quatrain compare book.txt --mixers 'lstm,s6,s6 s6 attention'",
    ),
)

_SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_UNITS = {"": 1, "K": 1_000, "M": 1_000_000, "G": 1_000_000_000}


def run(args: Sequence[str]) -> int:
    parsed = parse(SURFACE, args)
    config = settings(parsed)
    threads = parsed["threads"] if "threads" in parsed.given else None

    from quatrain.cli._comparison import CompareDisplay, show
    from quatrain.config.schema import digest
    from quatrain.data.recognise import recognise
    from quatrain.lab.compare import compare
    from quatrain.lab.config import for_text

    found = recognise(config.data)
    config = for_text(config) if found.task == "lm" else config
    name = found.name
    out = Path(parsed["out"]) if parsed["out"] else Path("runs") / f"compare-{name}-{digest(config)}"
    with CompareDisplay() as display:
        display.say(f"comparing {', '.join(config.mixers)} on {name} in {out}")
        display.say(f"data: {found.says}{_data.how_else(config.data.task)}")
        command = shlex.join(("quatrain", "compare", *args))
        outcome = compare(config, out, display, threads=threads, command=command)
    show(outcome.out, outcome.again)
    return 0


def settings(parsed: Parsed) -> "CompareConfig":
    """The comparison that the arguments ask for. One ConfigError lists everything that is wrong."""
    from quatrain.config.schema import from_dict, override
    from quatrain.errors import ConfigError
    from quatrain.lab.config import CompareConfig

    values: dict[str, Any] = {}
    readers: dict[str, tuple[str, Callable[[str], Any]]] = {
        "params": ("params", count),
        "context": ("context", count),
        "mixers": ("mixers", words),
        "learning_rates": ("learning_rates", lambda text: [float(word) for word in words(text)]),
        "contexts": ("contexts", lambda text: [count(word) for word in words(text)]),
        "evaluation": ("evaluation_seconds", seconds),
    }
    for name, (key, reader) in readers.items():
        if name in parsed.given:
            try:
                values[key] = reader(parsed[name])
            except ValueError as error:
                flag = f"--{name.replace('_', '-')}"
                parsed.problems.append(f"{flag} = {parsed[name]!r}: {_reason(error)}")
    if "budget" in parsed.given:
        try:
            values |= budget(parsed["budget"])
        except ValueError as error:
            parsed.problems.append(f"--budget = {parsed['budget']!r}: {error}")
    for name in ("equal", "seeds", "rung", "sequence", "batch", "dropout"):
        if name in parsed.given:
            values[name] = parsed[name]
            if name in ("sequence", "batch") and parsed[name] < 1:
                parsed.problems.append(f"{name} = {parsed[name]}: must be at least 1")
    _data.shortcuts(parsed, _data.SHORT)
    try:
        values |= override(Keys, {}, parsed.keys)
    except ConfigError as error:
        parsed.problems += str(error).splitlines()
    try:
        config = from_dict(CompareConfig, values)
    except ConfigError as error:
        parsed.problems += str(error).splitlines()
    parsed.raise_problems()
    return config


def _reason(error: ValueError) -> str:
    text = str(error)
    return (
        "must be numbers with commas between them, such as 1e-3,3e-3" if "could not convert" in text else text
    )


def budget(text: str) -> dict[str, float]:
    """``90s``, ``10m``, ``1h`` as seconds in all; ``500Ktokens`` as tokens per model. Raises ValueError."""
    number, tokens, _ = text.partition("tokens")
    if tokens:
        return {"budget_seconds": inf, "budget_tokens": float(count(number))}
    return {"budget_seconds": seconds(text)}


def seconds(text: str) -> float:
    """``90s``, ``10m``, ``1.5h``; a bare number has no unit, so it is refused. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(s|min|m|h)", text.strip())
    if not match:
        raise ValueError("must be a time with its unit, such as 90s, 10m or 1h")
    return float(match[1]) * _SECONDS[match[2]]


def count(text: str) -> int:
    """``250K``, ``1M``, ``1.5M``, ``1_000_000``. Raises ValueError."""
    match = re.fullmatch(r"(\d[\d_]*(?:\.\d*)?|\.\d+)\s*([kKMG]?)", text.strip())
    if not match:
        raise ValueError("must be a number such as 250K, 1M or 1000000")
    return round(float(match[1]) * _UNITS[match[2].upper()])


def words(text: str) -> list[str]:
    """The parts between commas, without spaces around them."""
    return [part.strip() for part in text.split(",") if part.strip()]
