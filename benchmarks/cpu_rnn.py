"""RNN, LSTM and GRU layers on the CPU against torch.nn, in one process, taken in turns.

A layer is input projection and recurrence together, input as wide as the state; training is forward and
backward with gradients of the input and of every parameter. Shares: of the fastest matrix product of the same
run, and at batch 1 of the time that reading the recurrent weights by a matrix-vector product takes.
"""

import argparse
import sys
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import torch
from _rows import row, save
from torch import Tensor, nn

import quatrain
from quatrain.kernels import linear_step

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LAYERS = {
    "lstm": (nn.LSTM, quatrain.LSTM, 4),
    "rnn": (nn.RNN, quatrain.RNN, 1),
    "gru": (nn.GRU, quatrain.GRU, 3),
}
MODES = ("forward", "training", "step")
Timed = Callable[[], object]


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=LAYERS, action="append", help="only this one; may be repeated")
    parser.add_argument("--dtype", choices=DTYPES, action="append")
    parser.add_argument("--mode", choices=MODES, action="append")
    parser.add_argument("--batch", type=int, action="append", help="default 1, 16, 64")
    parser.add_argument("--width", type=int, action="append", help="default 256, 512, 1024")
    parser.add_argument("--time", type=int, action="append", help="default 128, 1024")
    parser.add_argument("--seconds", type=float, default=1.0, help="for both ways of one case, about")
    parser.add_argument("--save", default="cpu_rnn", help="name of the file in benchmarks/results")
    asked = parser.parse_args()
    torch.set_num_threads(torch.get_num_threads())
    rows = []
    for dtype in asked.dtype or DTYPES:
        limit = product_limit(DTYPES[dtype])
        rows.append(row("product", "torch:mm", "2048", dtype, "forward", value=round(limit), unit="GFLOP/s"))
        for kind in asked.kind or LAYERS:
            ratios: dict[str, list[float]] = {}
            for mode in asked.mode or MODES:
                for batch, width, time in cases(asked, mode):
                    found, ratio = case(kind, dtype, mode, batch, width, time, asked.seconds, limit)
                    rows += found
                    ratios.setdefault(mode, []).append(ratio)
            for mode, values in ratios.items():
                text = f"{kind} {dtype} {mode}: median {median(values):.2f}x, least {min(values):.2f}x\n"
                sys.stdout.write(text)
    save(asked.save, rows)


def cases(asked: argparse.Namespace, mode: str) -> list[tuple[int, int, int]]:
    """(B, H, T) of one mode."""
    widths = asked.width or (256, 512, 1024)
    if mode == "step":
        return [(1, width, 1) for width in widths]
    return [
        (batch, width, time)
        for time in asked.time or (128, 1024)
        for width in widths
        for batch in asked.batch or (1, 16, 64)
    ]


def case(
    kind: str, dtype: str, mode: str, batch: int, width: int, time: int, seconds: float, limit: float
) -> tuple[list[dict[str, Any]], float]:
    """Two rows, torch.nn's and ours, and how many times faster ours is."""
    torch.manual_seed(0)
    theirs, ours, gates = LAYERS[kind]
    layers = (
        theirs(width, width, batch_first=True).to(DTYPES[dtype]),
        ours(width=width).to(DTYPES[dtype]),
    )
    x = torch.randn(batch, time, width).to(DTYPES[dtype])
    ways = {"step": steps, "forward": forward, "training": training}[mode](*layers, x)
    old, new = (1e3 * median(taken) for taken in alternate(ways, seconds))
    flops = 4 * gates * width**2 * batch * time * (3 if mode == "training" else 1)
    shares = {"of_product_limit": round(flops / new / 1e6 / limit, 3)}
    if batch == 1:
        weight = torch.randn(gates * width, width).to(DTYPES[dtype])
        vector = torch.randn(1, width).to(DTYPES[dtype])
        (alone,) = alternate((lambda: linear_step(vector, weight),), 0.1)
        products = {"forward": time, "training": 2 * time, "step": 2}[mode]
        shares["of_weight_reading"] = round(products * median(alone) * 1e3 / new, 3)
    name = f"B{batch} H{width} T{time}"
    head = f"{kind:4s} {dtype:8s} {mode:8s} {name:18s}"
    sys.stdout.write(f"{head} nn {old:10.3f} ms  ours {new:10.3f} ms  {old / new:5.2f}x  {shares}\n")
    sys.stdout.flush()
    found = [
        row(kind, f"torch.nn.{theirs.__name__}", name, dtype, mode, ms=round(old, 4)),
        row(kind, "quatrain:cpp", name, dtype, mode, ms=round(new, 4), times=round(old / new, 3), **shares),
    ]
    return found, old / new


def forward(theirs: nn.RNNBase, ours: Any, x: Tensor) -> tuple[Timed, Timed]:
    """Without gradients."""

    def of(layer: Any) -> Timed:
        def run() -> object:
            with torch.no_grad():
                return layer(x)

        return run

    return of(theirs), of(ours)


def training(theirs: nn.RNNBase, ours: Any, x: Tensor) -> tuple[Timed, Timed]:
    """Forward and backward from a given cotangent of all outputs."""
    x, dy = x.requires_grad_(), torch.randn_like(x)

    def of(layer: Any, more: dict[str, bool]) -> Timed:
        leaves = [x, *layer.parameters()]
        return lambda: torch.autograd.grad(layer(x, **more)[0], leaves, dy)

    return of(theirs, {}), of(ours, {"keep_state": False})


def steps(theirs: nn.RNNBase, ours: Any, x: Tensor) -> tuple[Timed, Timed]:
    """One token with a state, as a stream is read."""
    with torch.no_grad():
        old, new = theirs(x)[1], ours(x)[1]

    def of_theirs() -> object:
        with torch.no_grad():
            return theirs(x, old)

    def of_ours() -> object:
        with torch.no_grad():
            return ours.step(x[:, 0], new)

    return of_theirs, of_ours


def alternate(ways: tuple[Timed, ...], seconds: float) -> list[list[float]]:
    """Seconds of each way, in turns after one unmeasured round: three rounds, more while there is time."""
    taken: list[list[float]] = [[] for _ in ways]
    for way in ways:
        way()
    start = perf_counter()
    while len(taken[0]) < 3 or (perf_counter() - start < seconds and len(taken[0]) < 1000):
        for way, times in zip(ways, taken, strict=True):
            before = perf_counter()
            way()
            times.append(perf_counter() - before)
    return taken


def product_limit(dtype: torch.dtype) -> float:
    """GFLOP/s of a product of matrices of 2048; the best of ten."""
    x = torch.randn(2048, 2048).to(dtype)
    (taken,) = alternate((lambda: x @ x,), 0.5)
    return 2 * 2048**3 / min(taken) / 1e9


if __name__ == "__main__":
    main()
