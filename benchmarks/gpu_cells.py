"""Time training steps of small models on a GPU: kernel by kernel, as a CUDA graph, several cells at once.

    python benchmarks/gpu_cells.py [--models s6 attention s4d lstm rnn] [--seconds 1] [--dry]

First the losses of 24 steps, recorded and not, are compared, for batches of induction heads and of parity.
Then rounds of induction heads as published (8 sequences of 256 steps, float32) are timed by the wall clock,
with drawing, copying, reading loss and gradient norm, and the records of the run; looks and checkpoints are
left out. LSTM and RNN run their CUDA kernels where these can be asked for.
``--dry``: on the CPU, where nothing is recorded, to see that it runs.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _rows import row, save

from quatrain import records
from quatrain.config.schema import replace_in
from quatrain.lab.paper import cells
from quatrain.lab.paper import recipe as recipes
from quatrain.lab.paper._feed import Drawn
from quatrain.lab.paper.cells import Job
from quatrain.train import _graph, _machine
from quatrain.train._signals import StopSignals
from quatrain.train.company import Company
from quatrain.train.config import RunConfig
from quatrain.train.loop import stepwise, train

TASK, ALSO = "induction_heads", "parity"  # what is timed, and what is compared too: 128 sequences of 40
STEPS, FAR = 24, 10**6  # steps that are compared; more than are timed
WARM = 8  # rounds before a measurement: compiling, and recording in the third step
TOGETHER = (1, 3, 6)
_KERNEL = {kind: {"mixer": {kind: {"impl": "cuda"}}} for kind in ("lstm", "rnn")}


def config_of(task: str, name: str, seed: int, device: str) -> tuple[RunConfig, Drawn]:
    """A cell of the recipe, and what it reads: batches of the longest length."""
    recipe = recipes.load(task)
    recipe = replace_in(recipe, {"train.lengths": [recipe.train.high]})
    if device == "cuda" and name in ("lstm", "rnn"):
        recipe = replace_in(recipe, {f"models.{name}.model": {"width": 64, "layers": 2, **_KERNEL[name]}})
    generator = cells.generator_of(recipe)
    config = cells.run_config(recipe, Job("train", name, 1e-3, seed), generator)
    settings = replace(config.train, steps=FAR, eval_every=FAR, save_every=FAR, warmup=0.0)
    return replace(config, train=settings), Drawn(task, generator, replace(recipe.train, look_sequences=8))


@contextmanager
def eager() -> Iterator[None]:
    """Nothing is recorded."""
    before = _graph.tapes
    _graph.tapes = lambda device, turn: None
    try:
        yield
    finally:
        _graph.tapes = before


def losses(task: str, name: str, device: str, out: Path, said: list[str]) -> list[float]:
    """Loss and gradient norm of every step."""
    config, data = config_of(task, name, 0, device)
    config = replace(config, train=replace(config.train, steps=STEPS, log_every=1))

    def told(event: dict[str, Any]) -> None:
        if event["kind"] == "note":
            said.append(event["text"])

    train(config, out, told, data=data, threads=1, device=device)
    steps = [one for one in records.read(out / "records.jsonl") if one["kind"] == "step"]
    return [one[key] for one in steps for key in ("loss", "grad_norm")]


def check(task: str, name: str, device: str) -> float:
    """Largest relative difference between recorded and eager steps. Raises where they do not agree."""
    said: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        recorded = losses(task, name, device, Path(folder, "recorded"), said)
        with eager():
            plain = losses(task, name, device, Path(folder, "eager"), [])
    if said and device == "cuda":
        raise SystemExit(f"{task}, {name}: {'; '.join(said)}")
    worst = max(abs(one - other) / abs(other) for one, other in zip(recorded, plain, strict=True))
    if not worst < 1e-3:
        raise SystemExit(f"{task}, {name}: recorded and eager steps differ by {worst:.2g}")
    return worst


def rate(name: str, device: torch.device, count: int, seconds: float) -> float:
    """Milliseconds of a round in which each of ``count`` runs takes a step."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as entered:
        entered.enter_context(_machine.numerics(1, device))
        company = Company(StopSignals(), numerics=lambda threads, device: nullcontext())
        runs: list[Generator[None, None, Any]] = []
        for seed in range(count):
            config, data = config_of(TASK, name, seed, device.type)
            steps = stepwise(
                config, Path(folder, str(seed)), data=data, threads=1, device=device.type, company=company
            )
            entered.callback(steps.close)
            runs.append(steps)
        for _ in range(WARM):
            for steps in runs:
                next(steps)
        rounds, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            for steps in runs:
                next(steps)
            rounds += 1
        if device.type == "cuda":
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - began) / rounds


def measure(name: str, device: torch.device, seconds: float) -> list[dict[str, Any]]:
    """Rows of one model."""
    worst = max(check(task, name, device.type) for task in (TASK, ALSO) if name in recipes.load(task).models)
    sys.stdout.write(f"{name:10} recorded and eager steps differ by {worst:.2g} at most, relative\n")
    case = f"{name}, {TASK}: 8 x 256"
    found = []
    with eager():
        times = {("eager", 1): rate(name, device, 1, seconds)}
    for count in TOGETHER:
        times["graph", count] = rate(name, device, count, seconds)
    for (impl, count), ms in times.items():
        more = {
            "cells": count,
            "ms_a_cell": round(ms / count, 4),
            "steps_per_second": round(1e3 * count / ms),
        }
        sys.stdout.write(
            f"{name:10} {impl:6} {count} cells: {ms:8.3f} ms a round, {ms / count:8.3f} ms a step\n"
        )
        sys.stdout.flush()
        found.append(
            row("step", impl, case, "float32", "training", ms=round(ms, 4), **more, difference=worst)
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["s6", "attention", "s4d", "lstm", "rnn"])
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--dry", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cpu") if args.dry else torch.device("cuda", 0)
    rows = [one for name in args.models for one in measure(name, device, args.seconds)]
    if not args.dry:
        save("gpu_cells", rows)


if __name__ == "__main__":
    main()
