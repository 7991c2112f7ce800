"""``quatrain train``: train a language model, or go on with one."""

import sys
from collections.abc import Sequence
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quatrain.cli._display import TrainDisplay
from quatrain.cli._flags import Option, Parsed, Surface, parse
from quatrain.config.schema import to_dict
from quatrain.config.toml import load_toml
from quatrain.train.config import RunConfig

if TYPE_CHECKING:
    from quatrain.data.tokens import TokenFile
    from quatrain.train.loop import Result

SURFACE = Surface(
    command="train",
    help=(
        "Train a language model on bytes of text. Ctrl-C saves; the same command again goes on where it\n"
        "stopped, bit for bit."
    ),
    options=(
        Option("data", "a file, directory, glob, - for stdin, or python (default): Python's own library"),
        Option(
            "--mixer", "rnn, lstm, gru, attention, s6, s4d, or a pattern such as 's6 s6 attention'", "KIND"
        ),
        Option("--config", "a TOML recipe", "FILE"),
        Option(
            "--out", "directory of the run (default: runs/<data>-<pattern>-<digest of the settings>)", "DIR"
        ),
        Option("--resume", "go on with the run in DIR; needs nothing else", "DIR"),
        Option("--threads", "CPU threads (default: those the run began with, or all)", "N", int, 0),
    ),
    keys=RunConfig,
    examples=(
        "quatrain train --mixer lstm",
        "quatrain train book.txt --mixer 's6 s6 attention' --train.lr 3e-4 --out runs/hybrid",
        "quatrain train --config recipes/shakespeare-s6.toml",
        "quatrain train --resume runs/hybrid",
    ),
)


def run(args: Sequence[str]) -> int:
    parsed = parse(SURFACE, args)
    threads = parsed["threads"] if "threads" in parsed.given else None
    if threads is not None and threads < 1:
        parsed.problems.append(f"--threads = {threads}: must be at least 1")
    _shortcuts(parsed)
    config, out, tokens = _resumed(parsed) if parsed["resume"] else _begun(parsed)

    from quatrain.train.loop import train

    with TrainDisplay(config.train.steps) as display:
        display.say(f"training {config.model.pattern} in {out}")
        result = train(config, out, display, tokens=tokens, threads=threads)
    sys.stdout.write(_summary(result))
    return 0


def _begun(parsed: Parsed) -> "tuple[RunConfig, Path, TokenFile | None]":
    """A run from settings, new or to be gone on with."""
    config = _settings(parsed)

    from quatrain.data.corpus import find
    from quatrain.train.run_dir import default_out

    name = find(config.data.source).name
    return config, Path(parsed["out"]) if parsed["out"] else default_out(config, name), None


def _settings(parsed: Parsed) -> RunConfig:
    """Defaults, the recipe over them, the flags over both."""
    values: dict[str, Any] = load_toml(parsed["config"]) if parsed["config"] else {}
    return parsed.config(RunConfig, values)


def _resumed(parsed: Parsed) -> "tuple[RunConfig, Path, TokenFile | None]":
    """A run from its directory: its own settings and its own copy of the text."""
    out = Path(parsed["resume"])
    for name in ("out", "config"):
        if name in parsed.given:
            parsed.problems.append(f"--{name} = {parsed[name]!r}: --resume takes it from the run in '{out}'")
    parsed.raise_problems()

    from quatrain.data.tokens import TokenFile
    from quatrain.train.run_dir import DATA, stored_config

    config = parsed.config(RunConfig, to_dict(stored_config(out)))
    return config, out, TokenFile.open(out / DATA) if (out / DATA).is_dir() else None


def _shortcuts(parsed: Parsed) -> None:
    """Arguments that stand for a config key."""
    for name, key in (("data", "data.source"), ("mixer", "model.pattern")):
        if name not in parsed.given:
            continue
        if key in parsed.keys:
            parsed.problems.append(
                f"--{key} = {parsed.keys[key]!r}: contradicts {name} = {parsed[name]!r}; give one of them"
            )
        parsed.keys[key] = parsed[name]


def _summary(result: "Result") -> str:
    progress, out = result.progress, result.out
    done = "was finished before" if result.resumed_from == progress.step else "is finished"
    speed = progress.tokens / progress.seconds if progress.seconds else 0.0
    step, bits = progress.best_step, progress.best_valid / log(2)
    best = out / "checkpoints" / f"step-{step:08d}"
    return (
        f"{out} {done}: {progress.step:,} steps, {progress.tokens:,} tokens, {speed:,.0f} tokens/s\n"
        f"validation: {progress.valid:.4f} nats per token at the end\n"
        f"best:       {progress.best_valid:.4f} nats, {bits:.4f} bits per token at step {step:,}: {best}\n"
        f"next:       quatrain generate {out} --prompt 'The '\n"
        f"            quatrain eval {out}\n"
    )
