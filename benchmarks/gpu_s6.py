"""Check, then time the S6 scan on a GPU, and print a table; rows go to a JSON Lines file.

    python benchmarks/gpu_s6.py --out benchmarks/results/gpu_s6.jsonl --commit HASH

Times are medians of replayed CUDA graphs, so they hold no time of Python. The peer's numbers beside them are
mamba-ssm 2.3.2's on one H200 with the same shapes and arguments.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from quatrain.kernels import OPS, s6_scan

SHAPES = {  # (B, E, T): mamba-ssm's ms, forward and forward + backward
    (8, 2048, 2048): (0.590, 2.887),
    (1, 2048, 65536): (2.888, 13.98),
    (64, 1536, 1024): (1.658, 8.352),
    (1, 1536, 1048576): (33.98, 160.5),
}
GRADS = ("u", "delta", "a", "b", "c", "skip", "gate", "delta_bias")


def draw(batch: int, width: int, time: int, dtype: torch.dtype, states: int = 16) -> dict[str, Any]:
    """Arguments as a Mamba block makes them at its initialisation: step sizes from 0.001 to 0.1."""
    torch.manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", dtype=dtype)

    size = torch.empty(width, device="cuda").uniform_(-6.9, -2.3).exp()
    return {
        "u": normal(batch, time, width),
        "delta": normal(batch, time, width).mul_(0.5),
        "a": -torch.arange(1, states + 1, device="cuda").float().repeat(width, 1),
        "b": normal(batch, time, states),
        "c": normal(batch, time, states),
        "skip": torch.ones(width, device="cuda"),
        "gate": normal(batch, time, width),
        "delta_bias": size + torch.log(-torch.expm1(-size)),
        "softplus": True,
    }


def check(impl: str = "auto") -> None:
    """Refuse to time wrong kernels: float32 against the definition in float64."""
    given = draw(2, 70, 700, torch.float32)
    exact = {name: x.double() if isinstance(x, Tensor) else x for name, x in given.items()}
    found, wanted = [], []
    for arguments, out, by in ((given, found, impl), (exact, wanted, "reference")):
        leaves = [arguments[name].requires_grad_() for name in GRADS]
        y, h = s6_scan(**arguments, impl=by)
        out += [y, h, *torch.autograd.grad(y.sin().sum() + h.sin().sum(), leaves)]
    for got, want in zip(found, wanted, strict=True):
        error = float(((got.double() - want).norm() / want.norm()).detach())
        if not error < 1e-5:
            sys.exit(f"relative error {error:.2g}: nothing is timed")


def milliseconds(run: Callable[[], object], calls: int = 10, count: int = 15) -> float:
    """Median time of one call, from replays of a graph that holds ``calls`` of them."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            run()
    times = []
    for _ in range(count + 1):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop) / calls)
    return median(times[1:])


def measure(given: dict[str, Any], count: int, impl: str) -> tuple[float, float, float]:
    """ms forward, ms forward and backward, and the most memory of the latter in GiB."""
    with torch.no_grad():
        forward = milliseconds(lambda: s6_scan(**given, impl=impl), 1, count)
    leaves = [given[name].requires_grad_() for name in GRADS]
    cotangent = torch.randn_like(given["u"])

    def train() -> None:
        torch.autograd.grad(s6_scan(**given, impl=impl)[0], leaves, cotangent)

    torch.cuda.reset_peak_memory_stats()
    training = milliseconds(train, 1, count)
    return forward, training, torch.cuda.max_memory_allocated() / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commit", required=True, help="of the code that runs")
    parser.add_argument("--impl", default="auto", help="such as triton")
    args = parser.parse_args()
    check(args.impl)
    machine = torch.cuda.get_device_name()
    versions = f"torch {torch.__version__}"
    impl = OPS["s6_scan"].choose(draw(1, 2, 2, torch.bfloat16) | {"h0": None}, args.impl).name
    rows, lines = [], [f"{machine}, {versions}, impl {impl}"]
    for dtype in (torch.bfloat16, torch.float32):
        for (batch, width, time), peer in SHAPES.items():
            if dtype is torch.float32 and time > 1 << 16:
                continue
            given = draw(batch, width, time, dtype)
            forward, training, memory = measure(given, 5 if time > 1 << 16 else 15, impl)
            del given
            torch.cuda.empty_cache()
            case = f"B{batch} E{width} T{time}"
            name = str(dtype)[6:]
            for mode, ms in (("forward", forward), ("training", training)):
                rows.append(
                    {"op": "s6_scan", "impl": f"quatrain:{impl}", "case": case, "dtype": name, "mode": mode}
                    | {"ms": round(ms, 4), "peak_gib": round(memory, 2), "machine": machine}
                    | {"versions": versions, "commit": args.commit, "command": " ".join(sys.argv)}
                )
            per = 1e9 / (batch * width * time * 16)
            lines.append(
                f"{case:22} {name:8} {forward:8.3f} ms ({peer[0] / forward:.2f}x, {forward * per:.3f} ps)"
                f" {training:8.3f} ms ({peer[1] / training:.2f}x, {training * per:.3f} ps) {memory:.1f} GiB"
            )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
