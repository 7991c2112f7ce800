"""How fast each model trains on this machine, measured once, so that a time becomes a number of tokens."""

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from quatrain.config.schema import to_dict
from quatrain.data.prepare import Data
from quatrain.data.task import TASKS
from quatrain.errors import ConfigError, OutOfMemoryError, shortage
from quatrain.train.config import RunConfig

STEPS = 12  # optimiser steps of a calibration, the first three not counted
_PREFIX = ".calibration-"


@dataclass(frozen=True)
class Speed:
    """What training one model costs here.

    Attributes:
        step_seconds: median time of an optimiser step.
        forward_seconds: time per token of a forward pass alone.
        peak_memory_bytes: largest resident memory of a process that does nothing but train this model.
        empty_memory_bytes: resident memory of that process before it had a model: Python and torch.
    """

    step_seconds: float
    forward_seconds: float
    peak_memory_bytes: int
    empty_memory_bytes: int


def measure(config: RunConfig, data: Data, out: Path, threads: int) -> Speed:
    """Train ``config`` for its few steps in a fresh process, as a comparison will, and report what it cost.

    The run is made in a temporary folder inside ``out`` and removed. Raises OutOfMemoryError where memory ran
    out, with the batch that would fit, ConfigError where the process was
    killed, as the system does when memory runs out, and RuntimeError where it failed. Cost: starting torch,
    and 12 steps or about 10 seconds.
    """
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=out, ignore_cleanup_errors=True) as folder:
        task = {
            "config": to_dict(config),
            "data": str(data.path),
            "out": str(Path(folder, "run")),
            "threads": threads,
        }
        done = subprocess.run(
            (sys.executable, "-m", "quatrain.lab._measure"),
            input=json.dumps(task),
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode < 0:
        raise ConfigError(
            f"mixers = {config.model.pattern!r}: its calibration was killed by signal {-done.returncode}; "
            f"if memory ran out, give smaller params, batch or sequence"
        )
    if done.returncode:
        reason = done.stderr.strip().splitlines() or ["no reason given"]
        raise RuntimeError(f"calibration of {config.model.pattern} failed: {reason[-1]}")
    found = json.loads(done.stdout)
    if "out_of_memory" in found:
        raise too_little(OutOfMemoryError(found["out_of_memory"], found["fits"]), config)
    return Speed(**found)


def too_little(error: OutOfMemoryError, config: RunConfig) -> OutOfMemoryError:
    """What a run says that ran out of memory, in the settings of a comparison: they are the same for all."""
    what = f"mixers = {config.model.pattern!r}: not enough memory{shortage(error)}"
    train = config.train
    rows = train.batch if TASKS[config.model.task].labelled is False else train.batch_sequences
    if set(error.fits) == {"train.accumulate"}:
        batch = max(1, rows // int(str(error.fits["train.accumulate"])))
        return OutOfMemoryError(f"{what}; tried and fits: batch = {batch}", {"batch": batch})
    return OutOfMemoryError(f"{what} for batch = 1 too: a smaller params or sequence takes less")


def clean(out: Path) -> None:
    """Remove what a calibration that was killed has left in ``out``."""
    for folder in out.glob(f"{_PREFIX}*"):
        shutil.rmtree(folder, ignore_errors=True)
