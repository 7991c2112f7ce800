"""``quatrain claims``: what everybody says about the four architectures, each as a measurement."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quatrain.cli._flags import DEVICE, Option, Surface, parse

if TYPE_CHECKING:
    from quatrain.lab.claims.config import ClaimsConfig

SURFACE = Surface(
    command="claims",
    help=(
        "Measure on this machine what everybody says about RNN, LSTM, Transformer and Mamba: cost, "
        "gradients,\ngates, caches, speed. Rows that need long training come from records that ship with the "
        "package, with\ntheir machine and date. Ends with a table and a page: each belief with its "
        "measurement, picture and\nverdict. About six minutes on two cores; stopped at any moment, the same "
        "command goes on."
    ),
    options=(
        Option("--out", "directory (default: runs/claims)", "DIR", str, "runs/claims"),
        Option(
            "--train",
            "also train the rows that need it, as quatrain reproduce does, in the place of the shipped "
            "records",
            kind=bool,
            default=False,
        ),
        DEVICE,
        Option("--threads", "CPU threads (default: those it began with, or all)", "N", int),
    ),
    examples=("quatrain claims", "quatrain claims --device cuda --out claims-gpu"),
)


def run(args: Sequence[str]) -> int:
    parsed = parse(SURFACE, args)
    threads = parsed["threads"] if "threads" in parsed.given else None
    if threads is not None and threads < 1:
        parsed.problems.append(f"--threads = {threads}: must be at least 1")
    parsed.raise_problems()

    from quatrain.cli._claims import ClaimsDisplay, show
    from quatrain.lab.claims.run import run as measure

    config = settings(parsed["device"], threads, parsed["train"])
    out = Path(parsed["out"])
    with ClaimsDisplay() as display:
        display.say(f"measuring what people say, in {out}")
        outcome = measure(config, out, display, command=shlex.join(("quatrain", "claims", *args)))
    show(outcome.out, outcome.again)
    return 0


def settings(device: str, threads: int | None, train: bool) -> "ClaimsConfig":
    """The measurements on this machine: the device chosen, threads counted."""
    import torch

    from quatrain.lab.claims.config import ClaimsConfig
    from quatrain.model.device import choose

    return ClaimsConfig(device=choose(device).type, threads=threads or torch.get_num_threads(), train=train)
