"""``quatrain train``: train a language model, or go on with one."""

import sys
from collections.abc import Sequence
from math import log
from pathlib import Path
from typing import Any

from quatrain.cli._display import TrainDisplay
from quatrain.cli._flags import Option, Parsed, Surface, parse
from quatrain.config.schema import to_dict
from quatrain.config.toml import load_toml
from quatrain.data.corpus import find
from quatrain.data.tokens import TokenFile
from quatrain.train import run_dir
from quatrain.train.config import RunConfig
from quatrain.train.loop import Result, train

SURFACE = Surface(
    command="train",
    help=(
        "Train a language model on bytes of text. The same command again goes on where it stopped, bit for bit;\n"
        "Ctrl-C saves."
    ),
    options=(
        Option("data", "a file, directory, glob, - for stdin, or python (default): Python's own library"),
        Option("--mixer", "rnn, lstm, attention, s6, s4d, or a pattern such as 's6 s6 attention'", "KIND"),
        Option("--config", "a TOML recipe", "FILE"),
        Option("--out", "directory of the run (default: runs/<data>-<pattern>-<digest of the settings>)", "DIR"),
        Option("--resume", "go on with the run in DIR; needs nothing else", "DIR"),
        Option("--threads", "CPU threads (default: those the run began with, or all)", "N", int, 0),
    ),
    keys=RunConfig,
    examples=(
        "quatrain train --mixer lstm",
        "quatrain train book.txt --mixer 's6 s6 attention' --model.width 128 --train.lr 3e-4 --out runs/hybrid",
        "quatrain train --config recipes/shakespeare-s6.toml",
        "quatrain train --resume runs/hybrid",
    ),
)


def run(args: Sequence[str]) -> int:
    parsed = parse(SURFACE, args)
    threads = parsed["threads"] if "threads" in parsed.given else None
    if threads is not None and threads < 1:
        parsed.problems.append(f"--threads = {threads}: must be at least 1")
    tokens: TokenFile | None = None
    if parsed["resume"]:
        out = Path(parsed["resume"])
        config = _resumed(parsed, out)
        if (out / run_dir.DATA).is_dir():
            tokens = TokenFile.open(out / run_dir.DATA)
    else:
        config = _config(parsed)
        out = Path(parsed["out"]) if parsed["out"] else run_dir.default_out(config, _data_name(config.data.source))
    with TrainDisplay(config.train.steps) as display:
        display.say(f"training {config.model.pattern} in {out}")
        result = train(config, out, display, tokens=tokens, threads=threads)
    sys.stdout.write(_summary(result))
    return 0


def _config(parsed: Parsed) -> RunConfig:
    """Defaults, the recipe over them, the flags over both."""
    _shortcut(parsed, "data", "data.source")
    _shortcut(parsed, "mixer", "model.pattern")
    values: dict[str, Any] = load_toml(parsed["config"]) if parsed["config"] else {}
    return parsed.config(RunConfig, values)


def _resumed(parsed: Parsed, out: Path) -> RunConfig:
    for name in ("out", "config"):
        if name in parsed.given:
            parsed.problems.append(f"--{name} = {parsed[name]!r}: --resume takes it from the run in '{out}'")
    _shortcut(parsed, "data", "data.source")
    _shortcut(parsed, "mixer", "model.pattern")
    return parsed.config(RunConfig, to_dict(run_dir.stored_config(out)))


def _shortcut(parsed: Parsed, name: str, key: str) -> None:
    """An argument that stands for a config key."""
    if name not in parsed.given:
        return
    if key in parsed.keys:
        parsed.problems.append(f"--{key} = {parsed.keys[key]!r}: contradicts {name} = {parsed[name]!r}; give one of them")
    parsed.keys[key] = parsed[name]


def _data_name(source: str) -> str:
    return "stdin" if source == "-" else find(source).name


def _summary(result: Result) -> str:
    progress = result.progress
    done = "was finished before" if result.resumed_from == progress.step else "is finished"
    speed = progress.tokens / progress.seconds if progress.seconds else 0.0
    best = result.out / "checkpoints" / f"step-{progress.best_step:08d}"
    return "".join(
        f"{line}\n"
        for line in (
            f"{result.out} {done}: {progress.step:,} steps, {progress.tokens:,} tokens, {speed:,.0f} tokens/s",
            f"validation: {progress.valid:.4f} nats per token, best {progress.best_valid:.4f} "
            f"({progress.best_valid / log(2):.4f} bits) at step {progress.best_step:,}: {best}",
            f"next: quatrain generate {result.out} --prompt 'The '",
            f"      quatrain eval {result.out}",
        )
    )


