"""A few real training steps in a process of their own: how fast they are and how much memory they take.

``python -m quatrain.lab._measure`` reads a JSON object on stdin (``config``, ``data``, ``out``, ``threads``)
and writes one on stdout: the fields of `quatrain.lab.calibrate.Speed`, or ``out_of_memory`` and
``fits``. A fresh process, because memory that one model has freed stays with the process, and the next one
would be charged for it.
"""

import json
import sys
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from quatrain.config.schema import from_dict
from quatrain.data.prepare import open_data
from quatrain.errors import OutOfMemoryError
from quatrain.train import _machine
from quatrain.train.config import RunConfig
from quatrain.train.loop import train

_WARM = 3  # first steps, which are slower
_SECONDS = 10.0  # after which no further step is waited for


class _Enough(Exception):
    """Raised between two steps of a model that is too slow to be watched for longer."""


class _Watch:
    """Takes the rows of a run and keeps the times in them."""

    def __init__(self) -> None:
        self.began = perf_counter()
        self.totals = [0.0]  # seconds of all steps so far, after each step
        self.last = 0.0
        self.look = 0.0  # seconds of the look at the validation part
        self.look_tokens = 0

    def __call__(self, row: dict[str, Any]) -> None:
        now = perf_counter()
        if row["kind"] == "run":
            self.look_tokens = row["validation_tokens"]
        elif row["kind"] == "step":
            self.totals.append(row["seconds"])
            self.last = now
            if now - self.began > _SECONDS and len(self.totals) > 2:
                raise _Enough
        elif row["kind"] == "eval":
            self.look = now - self.last

    def step(self) -> float:
        """Median seconds of a step, without the first ones where there are others."""
        times = [after - before for before, after in pairwise(self.totals)]
        return median(times[_WARM:] or times[1:] or times)


def main() -> None:
    """Train as stdin says, and say on stdout what it cost."""
    task = json.load(sys.stdin)
    config = from_dict(RunConfig, task["config"])
    data = open_data(task["data"])
    before = _machine.memory_bytes()
    watch = _Watch()
    try:
        with suppress(_Enough):
            train(config, Path(task["out"]), watch, data=data, threads=task["threads"])
    except OutOfMemoryError as error:
        json.dump({"out_of_memory": str(error), "fits": error.fits}, sys.stdout)
        return
    step = watch.step()
    # A forward pass is about a third of a step; where the run was cut short, that has to do.
    forward = watch.look / watch.look_tokens if watch.look else step / config.train.batch_tokens / 3
    found = {
        "step_seconds": step,
        "forward_seconds": forward,
        "peak_memory_bytes": _machine.peak_memory_bytes(),
        "empty_memory_bytes": before,
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
