"""``quatrain train``: train a model, or go on with one."""

import sys
from collections.abc import Sequence
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quatrain.cli import _data
from quatrain.cli._display import TrainDisplay
from quatrain.cli._flags import DEVICE, Option, Parsed, Surface, parse
from quatrain.config.schema import to_dict
from quatrain.config.toml import load_toml
from quatrain.train.config import RunConfig

if TYPE_CHECKING:
    from quatrain.data.prepare import Data
    from quatrain.train.loop import Progress, Result

SURFACE = Surface(
    command="train",
    help=(
        "Train a model on text, series, labelled sequences or recordings: what the data is is recognised\n"
        "and said. Ctrl-C saves; the same command again goes on where it stopped, bit for bit."
    ),
    options=(
        Option("data", "a file, directory, glob, - for stdin, or python (default): Python's own library"),
        Option(
            "--mixer", "rnn, lstm, gru, attention, s6, s4d, or a pattern such as 's6 s6 attention'", "KIND"
        ),
        *_data.OPTIONS,
        Option("--config", "a TOML recipe", "FILE"),
        Option(
            "--out", "directory of the run (default: runs/<data>-<pattern>-<digest of the settings>)", "DIR"
        ),
        Option("--resume", "go on with the run in DIR; needs nothing else", "DIR"),
        Option("--init-from", "a checkpoint to fine-tune: its settings and weights begin the run", "DIR"),
        Option("--threads", "CPU threads (default: those the run began with, or all)", "N", int, 0),
        DEVICE,
    ),
    keys=RunConfig,
    examples=(
        "quatrain train --mixer lstm",
        "quatrain train readings.csv --target temperature --horizon 48",
        "quatrain train birds/ --mixer lstm    # one folder of recordings per class",
        "quatrain train book.txt --mixer 's6 s6 attention' --train.lr 3e-4 --out runs/hybrid",
        "quatrain train --config recipes/mamba.toml",
        "quatrain train --resume runs/hybrid",
        "quatrain train letters.txt --init-from runs/hybrid --train.lr 3e-4",
    ),
)

SHORT = _data.SHORT | {"mixer": "model.pattern", "init_from": "train.init_from"}


def run(args: Sequence[str]) -> int:
    parsed = parse(SURFACE, args)
    threads = parsed["threads"] if "threads" in parsed.given else None
    if threads is not None and threads < 1:
        parsed.problems.append(f"--threads = {threads}: must be at least 1")
    _shortcuts(parsed)
    config, out, data, says = _resumed(parsed) if parsed["resume"] else _begun(parsed)

    from quatrain.model.device import choose, name_of
    from quatrain.train.loop import train
    from quatrain.train.run_dir import device_of

    chosen = choose(parsed["device"], device_of(out))
    with TrainDisplay(config.train.steps) as display:
        if says:
            display.say(f"data: {says}")
        display.say(f"training {config.model.pattern} in {out} on {name_of(chosen)}")
        result = train(config, out, display, data=data, threads=threads, device=parsed["device"])
    sys.stdout.write(_summary(result))
    return 0


def _begun(parsed: Parsed) -> "tuple[RunConfig, Path, Data | None, str]":
    """A run from settings, new or to be gone on with."""
    config = _settings(parsed)

    from quatrain.data.recognise import recognise
    from quatrain.train.run_dir import default_out

    found = recognise(config.data)
    out = Path(parsed["out"]) if parsed["out"] else default_out(config, found.name)
    return config, out, None, found.says + _data.how_else(config.data.task)


def _settings(parsed: Parsed) -> RunConfig:
    """Defaults, the settings of a model to fine-tune over them, then the recipe, then the flags."""
    values: dict[str, Any] = load_toml(parsed["config"]) if parsed["config"] else {}
    source = parsed["init_from"] or dict(values.get("train") or {}).get("init_from")
    if source:
        from quatrain.train.warm_start import model_of

        given = dict(values.get("model") or {})
        begun = {} if "pattern" in given or "model.pattern" in parsed.keys else model_of(str(source))
        values = {**values, "model": {**begun, **given}}
    return parsed.config(RunConfig, values)


def _resumed(parsed: Parsed) -> "tuple[RunConfig, Path, Data | None, str]":
    """A run from its directory: its own settings and its own copy of the text."""
    out = Path(parsed["resume"])
    for name in ("out", "config"):
        if name in parsed.given:
            parsed.problems.append(f"--{name} = {parsed[name]!r}: --resume takes it from the run in '{out}'")
    parsed.raise_problems()

    from quatrain.data.prepare import open_data
    from quatrain.train.run_dir import DATA, stored_config

    config = parsed.config(RunConfig, to_dict(stored_config(out)))
    return config, out, open_data(out / DATA) if (out / DATA).is_dir() else None, ""


def _shortcuts(parsed: Parsed) -> None:
    """Arguments that stand for a config key."""
    _data.shortcuts(parsed, SHORT)


def _summary(result: "Result") -> str:
    from quatrain.checkpoint import load_meta

    progress, out = result.progress, result.out
    done = "was finished before" if result.resumed_from == progress.step else "is finished"
    speed = progress.tokens / progress.seconds if progress.seconds else 0.0
    best = out / "checkpoints" / f"step-{progress.best_step:08d}"
    head = f"{out} {done}: {progress.step:,} steps, {progress.tokens:,} tokens, {speed:,.0f} tokens/s\n"
    meta = load_meta(result.checkpoint)
    task = meta["data"].get("task", "lm")
    if task != "lm":
        return head + _answers(task, progress, best, out)
    bits = progress.best_valid / log(2)
    start = _data.prompt(meta.get("tokenizer", ""))
    return head + (
        f"validation: {progress.valid:.4f} nats per token at the end\n"
        f"best:       {progress.best_valid:.4f} nats, {bits:.4f} bits per token"
        f" at step {progress.best_step:,}: {best}\n"
        f"next:       quatrain generate {out} --prompt '{start}'\n"
        f"            quatrain eval {out}\n"
    )


def _answers(task: str, progress: "Progress", best: Path, out: Path) -> str:
    """The summary of a task other than lm."""
    from quatrain.data.task import TASKS

    metric, unit = TASKS[task].metrics[0], TASKS[task].unit
    value = progress.best_score if metric.lower else -progress.best_score
    shown = f"{value:.2%}" if metric.percent else f"{value:.4f}"
    return (
        f"validation: loss {progress.valid:.4f} {unit} at the end\n"
        f"best:       {metric.says} {shown} at step {progress.best_step:,}: {best}\n"
        f"next:       quatrain eval {best}\n"
        f"            quatrain predict {best} INPUT\n"
    )
