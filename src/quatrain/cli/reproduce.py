"""``quatrain reproduce``: a table of a paper again, on this machine, beside the published numbers."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quatrain.cli._flags import DEVICE, Option, Parsed, Surface, parse

if TYPE_CHECKING:
    from quatrain.lab.paper.recipe import Size

SURFACE = Surface(
    command="reproduce",
    help=(
        "Train and test the models of a paper's table on the paper's task, which is drawn without end from\n"
        "a seed, and show our numbers beside the published ones. Without a name: what there is. Stopped at\n"
        "any moment, the same command goes on."
    ),
    options=(
        Option(
            "task",
            "name of a task, such as parity, or a recipe.toml of your own; without one they are listed",
        ),
        Option(
            "--reduced",
            "smaller settings, labelled so: what two CPU cores, or one GPU, do in minutes",
            kind=bool,
            default=False,
        ),
        Option("--mixers", "models of the recipe to run (default: all)", "A,B"),
        Option("--seeds", "runs of each model at its learning rate (default: the recipe's)", "N", int),
        Option("--data", "file of a task that reads one, such as sequential_mnist", "FILE"),
        Option("--out", "directory (default: runs/paper-<task>[-reduced]-<digest>)", "DIR"),
        DEVICE,
        Option("--processes", "cells at a time (default: one a core on a CPU, 6 on a GPU)", "N", int),
    ),
    examples=(
        "quatrain reproduce",
        "quatrain reproduce parity --reduced",
        "quatrain reproduce induction_heads --mixers s6,attention --seeds 1",
        "quatrain reproduce sequential_mnist --data mnist.npz",
    ),
)
_ON_A_GPU = 6  # streams: a model of 100,000 parameters leaves most of a GPU idle


def run(args: Sequence[str]) -> int:
    parsed = parse(SURFACE, args)
    for name in ("seeds", "processes"):
        if name in parsed.given and parsed[name] < 1:
            parsed.problems.append(f"--{name} = {parsed[name]}: must be at least 1")
    parsed.raise_problems()
    if not parsed["task"]:
        sys.stdout.write(_list())
        return 0
    return _reproduce(parsed, args)


def _reproduce(parsed: Parsed, args: Sequence[str]) -> int:
    from quatrain.cli._reproduction import ReproduceDisplay, show
    from quatrain.cli.compare import words
    from quatrain.errors import ConfigError
    from quatrain.lab.paper import recipe as recipes

    size = _size(parsed["device"]) if parsed["reduced"] else ""
    recipe = recipes.load(parsed["task"], reduced=size, source=parsed["data"])
    names = recipe.chosen(tuple(words(parsed["mixers"])))
    seeds = parsed["seeds"] if "seeds" in parsed.given else 0

    from quatrain.lab.paper import cells
    from quatrain.lab.paper.reproduce import default_out, forecast, reproduce
    from quatrain.model.device import choose

    cells.check(recipe)
    device = choose(parsed["device"]).type
    if recipe.gpu and device == "cpu" and parsed["device"] == "auto":
        raise ConfigError(_too_slow(parsed, forecast(recipe, names, seeds)))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = (
        parsed["processes"] if "processes" in parsed.given else (cores if device == "cpu" else _ON_A_GPU)
    )
    out = Path(parsed["out"]) if parsed["out"] else default_out(recipe)
    with ReproduceDisplay() as display:
        kind = "reduced settings; " if recipe.reduced else ""
        display.say(f"{recipe.title}: {', '.join(names)}; {kind}in {out}")
        outcome = reproduce(
            recipe,
            out,
            display,
            names=names,
            seeds=seeds,
            processes=processes,
            device=device,
            command=shlex.join(("quatrain", "reproduce", *args)),
        )
    refused = show(outcome, names, seeds)
    return 1 if outcome.failed or refused else 0


def _size(device: str) -> "Size":
    """Whose reduced settings: those of the device that will be used."""
    from quatrain.model.device import choose

    return "cpu" if choose(device).type == "cpu" else "gpu"


def _too_slow(parsed: Parsed, seconds: float) -> str:
    from quatrain.cli._display import duration

    smaller = f"quatrain reproduce {parsed['task']} --reduced"
    return (
        f"device = 'auto': needs a GPU and finds none: by a few steps of each model, one core of this CPU "
        f"would train for {duration(seconds)}; give --reduced ({smaller}), or --device cpu to do it anyway"
    )


def _list() -> str:
    """The tasks with a recipe, a line each."""
    from quatrain.lab.paper import recipe as recipes

    known = {name: recipes.load(name, source="FILE") for name in recipes.names()}
    width = max(map(len, known))
    lines = [
        f"  {name:<{width}}  {recipe.title} ({recipe.source.partition(',')[0]})"
        for name, recipe in known.items()
    ]
    return "\n".join(
        [
            "tasks: quatrain reproduce NAME, with --reduced for what two cores, or one GPU, do in minutes",
            "",
            *lines,
            "",
        ]
    )
