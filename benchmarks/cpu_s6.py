"""S6 scan on the CPU beside other ways, in one process and in turns: medians, ratios, share of the limit.

The limit: nine vector operations for each vector of elements (with the backward pass three times that), at
the rate of fused multiply-adds measured in the same run. The two loops are written here after what
mamba-minimal and transformers do (every decay and drive of the sequence in memory, then one step of Python at
a time); mambapy's parallel scan is its own, where it is installed.
"""

import argparse
import ctypes
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from _rows import row, save
from torch import Tensor

from quatrain.kernels import _core, causal_conv, s6_scan

WIDTH, STATE = 1536, 16
OPERATIONS = 9  # of the forward pass for each vector of elements


def arguments(
    time: int, width: int = WIDTH, *, fused: bool, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Inputs like those of a Mamba layer; ``fused`` adds softplus, bias, skip and gate."""
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng).to(dtype)

    drawn: dict[str, Any] = {"u": normal(1, time, width), "delta": normal(1, time, width) - 3}
    drawn["a"] = -torch.arange(1.0, STATE + 1).repeat(width, 1)
    drawn |= {"b": normal(1, time, STATE), "c": normal(1, time, STATE)}
    if fused:
        drawn |= {"skip": normal(width).float(), "gate": normal(1, time, width)}
        drawn |= {"delta_bias": normal(width).float() / 10, "softplus": True}
    else:
        drawn["delta"] = torch.nn.functional.softplus(drawn["delta"])
    return drawn


def as_minimal(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """A loop over (B, T, E, N) decays, as mamba-minimal's."""
    decay = torch.exp(torch.einsum("bte,en->bten", delta, a))
    drive = torch.einsum("bte,btn,bte->bten", delta, b, u)
    state, outputs = torch.zeros_like(decay[:, 0]), []
    for t in range(u.shape[1]):
        state = decay[:, t] * state + drive[:, t]
        outputs.append(torch.einsum("ben,bn->be", state, c[:, t]))
    return torch.stack(outputs, dim=1)


def as_transformers(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """A loop over (B, E, T, N) decays, as transformers' without compiled kernels."""
    # as its convolution and its projection leave them
    u, delta = u.transpose(1, 2).contiguous(), delta.transpose(1, 2)
    decay = torch.exp(a[None, :, None] * delta[..., None])
    drive = delta[..., None] * b[:, None].float() * u[..., None].float()
    state, outputs = torch.zeros_like(decay[:, :, 0]), []
    for t in range(u.shape[2]):
        state = decay[:, :, t] * state + drive[:, :, t]
        outputs.append(torch.matmul(state, c[:, t, :, None])[..., 0])
    return torch.stack(outputs, dim=-1).transpose(1, 2)


def as_mambapy(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """mambapy's own parallel scan between its own preparation and its read-out."""
    from mambapy.pscan import pscan

    decay = torch.exp(delta[..., None] * a)
    states = pscan(decay, delta[..., None] * b[:, :, None] * u[..., None])
    return (states @ c[..., None])[..., 0]


def seconds(run: Callable[[], object]) -> float:
    began = perf_counter()
    run()
    return perf_counter() - began


def timed(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each way, taken in turns; short ones run several times in each turn."""
    first = {name: seconds(run) for name, run in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            for _ in range(max(1, min(10, int(0.2 / first[name])))):
                times[name].append(seconds(run))
    return {name: median(found) for name, found in times.items()}


def multiply_add_seconds() -> float:
    """Seconds per vector multiply-add and thread, the best of several tries."""
    probe = _core.library().qt_multiply_add
    probe.argtypes, probe.restype = (ctypes.c_int64, ctypes.c_int64), ctypes.c_int64
    count, threads = 2_000_000, torch.get_num_threads()
    return min(seconds(lambda: probe(count, threads)) for _ in range(9)) / (12 * count)


def limit(elements: int) -> float:
    lanes = _core.library().qt_lanes()
    return elements / lanes * OPERATIONS * multiply_add_seconds() / torch.get_num_threads()


def training(call: Callable[..., Any], given: dict[str, Any]) -> Callable[[], object]:
    leaves = {n: x.detach().clone().requires_grad_() for n, x in given.items() if isinstance(x, Tensor)}
    cotangent = torch.randn_like(given["u"])

    def run() -> None:
        result = call(**(given | leaves))
        y = result[0] if isinstance(result, tuple) else result
        torch.autograd.grad(y, list(leaves.values()), cotangent)

    return run


def forward(call: Callable[..., Any], given: dict[str, Any]) -> Callable[[], object]:
    def run() -> None:
        with torch.no_grad():
            call(**given)

    return run


def beside_peers(steps: int, mode: str, rounds: int) -> list[dict[str, Any]]:
    """One shape, every way, in turns."""
    plain, fused = (arguments(steps, fused=f) for f in (False, True))
    make = forward if mode == "forward" else training
    ways = {"quatrain:cpp": make(s6_scan, plain), "quatrain:cpp fused": make(s6_scan, fused)}
    ways["quatrain:cpp fused zoh"] = make(s6_scan, fused | {"zoh": True})
    ways["quatrain:torch"] = make(lambda **given: s6_scan(**given, impl="torch"), plain)
    if importlib.util.find_spec("mambapy") is not None:
        ways["mambapy pscan"] = make(as_mambapy, plain)
    if mode == "forward" or steps <= 512:  # behind that one training step takes minutes
        ways["loop as mamba-minimal"] = make(as_minimal, plain)
        ways["loop as transformers"] = make(as_transformers, plain)
    found = timed(ways, rounds)
    elements = steps * WIDTH * STATE
    least = limit(elements) * (1 if mode == "forward" else 3)
    rows = []
    for name, taken in found.items():
        ratio = taken / found["quatrain:cpp"]
        say(
            f"T {steps:5} {mode:8} {name:22} {taken * 1e3:10.2f} ms {taken / elements * 1e9:9.3f} ns/element "
            f"{ratio:8.1f}x  {least / taken:5.1%} of the limit"
        )
        rows.append(
            row(
                "s6_scan",
                name,
                f"B1 E{WIDTH} T{steps}",
                "float32",
                mode,
                ms=round(taken * 1e3, 3),
                ratio=round(ratio, 2),
                share_of_limit=round(least / taken, 4),
            )
        )
    return rows


def over_lengths(rounds: int) -> list[dict[str, Any]]:
    """B 1, E 64: the time of an element must not depend on T."""
    rows = []
    for power in (12, 14, 16, 18, 20):
        given = arguments(1 << power, 64, fused=True)
        for mode, make in (("forward", forward), ("training", training)):
            taken = timed({"ours": make(s6_scan, given)}, rounds)["ours"]
            each = taken / ((1 << power) * 64 * STATE) * 1e9
            say(f"B1 E64 T{1 << power:8} {mode:8} {each:.4f} ns/element")
            rows.append(
                row(
                    "s6_scan",
                    "quatrain:cpp fused",
                    f"B1 E64 T{1 << power}",
                    "float32",
                    mode,
                    ms=round(taken * 1e3, 3),
                    ns_per_element=round(each, 4),
                )
            )
    return rows


def over_threads(rounds: int) -> list[dict[str, Any]]:
    """One thread against torch's number of them, in turns."""
    many, rows = torch.get_num_threads(), []
    for mode, make in (("forward", forward), ("training", training)):
        for case, given in (
            (f"B1 E{WIDTH} T2048", arguments(2048, fused=True)),
            ("B1 E16 T16384", arguments(16384, 16, fused=True)),
        ):
            run, times = make(s6_scan, given), {1: [], many: []}
            for _ in range(5 * rounds):
                for threads, found in times.items():
                    torch.set_num_threads(threads)
                    found.append(seconds(run))
            gain = median(times[1]) / median(times[many])
            say(f"{case} {mode}: {many} threads {gain:.2f}x one")
            rows.append(
                row(
                    "s6_scan",
                    "quatrain:cpp fused",
                    f"{case} threads",
                    "float32",
                    mode,
                    value=round(gain, 3),
                    unit=f"times one thread, {many} threads",
                )
            )
    return rows


def memory() -> list[dict[str, Any]]:
    """Peak resident memory of forward and backward over inputs, outputs and gradients."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not clear.exists():
        return []
    given = arguments(8192, fused=True)
    run = training(s6_scan, given)
    held = 2 * sum(x.numel() * x.element_size() for x in given.values() if isinstance(x, Tensor))
    held += 2 * given["u"].numel() * 4  # y and its cotangent

    def resident(field: str) -> int:
        return (
            next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field))
            * 1024
        )

    before = (
        resident("VmRSS") - held // 2 - given["u"].numel() * 4
    )  # without inputs (twice: leaves) and cotangent
    clear.write_text("5")
    run()
    ratio = (resident("VmHWM") - before) / held
    say(f"peak of forward and backward: {ratio:.2f} x inputs, outputs and gradients ({held / 2**20:.0f} MiB)")
    return [
        row(
            "s6_scan",
            "quatrain:cpp fused",
            f"B1 E{WIDTH} T8192 memory",
            "float32",
            "training",
            value=round(ratio, 3),
            unit="peak over inputs, outputs and gradients",
        )
    ]


def convolution(rounds: int) -> list[dict[str, Any]]:
    """causal_conv beside torch's shifted products and its convolution."""
    x, weight, bias = torch.randn(1, 2048, WIDTH), torch.randn(WIDTH, 4), torch.randn(WIDTH)

    def conv1d(u: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        z = torch.nn.functional.conv1d(u.transpose(1, 2), weight[:, None], bias, padding=3, groups=WIDTH)
        return torch.nn.functional.silu(z[..., : u.shape[1]]).transpose(1, 2)

    def ours(impl: str) -> Callable[..., Any]:
        return lambda u, weight, bias: causal_conv(u, weight, bias, silu=True, impl=impl)

    given, rows = {"u": x, "weight": weight, "bias": bias}, []
    for mode, make in (("forward", forward), ("training", training)):
        found = timed(
            {
                "quatrain:cpp": make(ours("cpp"), given),
                "quatrain:torch": make(ours("torch"), given),
                "torch conv1d": make(conv1d, given),
            },
            rounds,
        )
        for name, taken in found.items():
            say(f"causal_conv {mode:8} {name:16} {taken * 1e3:8.2f} ms {taken / found['quatrain:cpp']:6.1f}x")
            rows.append(
                row("causal_conv", name, f"B1 E{WIDTH} T2048 W4", "float32", mode, ms=round(taken * 1e3, 3))
            )
    return rows


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


PARTS: dict[str, Callable[[int], list[dict[str, Any]]]] = {
    "memory": lambda rounds: memory(),  # first, in a process that holds nothing yet
    "forward-512": lambda rounds: beside_peers(512, "forward", rounds),
    "forward-2048": lambda rounds: beside_peers(2048, "forward", rounds),
    "training-512": lambda rounds: beside_peers(512, "training", 1),
    "training-2048": lambda rounds: beside_peers(2048, "training", rounds),
    "lengths": over_lengths,
    "threads": over_threads,
    "convolution": convolution,
}


def main() -> None:
    """Measure all parts, or those asked for, into one file; a stopped run keeps the parts it finished."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS, action="append", help="only this one; may be repeated")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way")
    asked = parser.parse_args()
    if _core.missing() is not None:
        parser.error(str(_core.missing()))
    torch.set_num_threads(torch.get_num_threads())
    rows: list[dict[str, Any]] = []
    for part in asked.part or PARTS:
        rows += PARTS[part](asked.rounds)
        save("_".join(["cpu_s6", *(asked.part or [])]), rows)


if __name__ == "__main__":
    main()
