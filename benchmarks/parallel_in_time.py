"""Newton iterations over the whole sequence against step-by-step scans: iterations, error, time, memory.

    python benchmarks/parallel_in_time.py                                 small, one CPU thread
    python benchmarks/parallel_in_time.py --device cuda --commit HASH     in at most four minutes

Full tanh RNN and LSTM (quasi-Newton with the diagonal, or 2 x 2 blocks, of the Jacobian; the same with none;
on the CPU also with the whole Jacobian), and cells whose recurrent matrix is diagonal, where the method is
exact. The recurrent weights: normal, scaled to a spectral radius; or of a layer trained here for a few
hundred steps, to continue this repository's own text or to hold the last of rare pulses. Every case is
checked against the recurrence in float64 on its first row. On a GPU nothing is timed unless the kernels
agree with plain torch.
"""

import argparse
import ctypes
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from _newton import Problem, solve, step_by_step
from _rows import RESULTS, row
from torch import Tensor, nn

from quatrain.kernels import OPS, lstm_scan, rnn_scan

GATES = {"rnn": 1, "lstm": 4}
TRAINED = ("text", "pulses")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SPREAD = 4096  # steps at which weights are compared; the other lengths are measured with one or two of them


class Asked(NamedTuple):
    """One sequence of cases that differ in length, batch and dtype."""

    cell: str
    diagonal: bool
    weights: str  # spectral radius, or how trained
    times: tuple[int, ...]
    batches: tuple[int, ...]
    dtypes: tuple[str, ...]
    jacobians: tuple[str, ...]
    width: int


# -- problems


def bytes_of_this_project(count: int, device: str) -> Tensor:
    """Its sources and pages, one after the other, again from the start if they are too short."""
    root = Path(__file__).resolve().parent.parent
    files = [*sorted(root.glob("*.md")), *sorted((root / "src").rglob("*.py"))]
    text = b"".join(path.read_bytes() for path in files)
    read = torch.frombuffer(bytearray(text), dtype=torch.uint8).long().clamp(max=127)
    return read.repeat(-(-count // len(read)))[:count].to(device)


def task(name: str, batch: int, steps: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs (B, T, F) and targets: the next byte (B, T), or the last pulse of each channel (B, T, F)."""
    device = str(rng.device)
    if name == "text":
        text = bytes_of_this_project(batch * steps + 1, device)
        inputs = nn.functional.one_hot(text[:-1], 128).float()
        return inputs.view(batch, steps, 128), text[1:].view(batch, steps)
    chance = torch.rand(batch, steps, 3, device=device, generator=rng)
    pulses = (chance < 0.02).float() - (chance > 0.98).float()
    last = torch.where(pulses != 0, torch.arange(steps, device=device)[:, None], 0).cummax(1).values
    return pulses, pulses.gather(1, last)


@torch.enable_grad()
def trained(cell: str, name: str, width: int, device: str, updates: int) -> nn.RNNBase:
    """A torch.nn layer after some updates by Adam on windows of 128 steps."""
    torch.manual_seed(0)
    rng = torch.Generator(device).manual_seed(0)
    inputs, targets = task(name, 32, 16 * 128, rng)
    make = {"rnn": nn.RNN, "lstm": nn.LSTM}[cell]
    layer = make(inputs.shape[-1], width, batch_first=True).to(device)
    head = nn.Linear(width, inputs.shape[-1], device=device)
    optimiser = torch.optim.Adam([*layer.parameters(), *head.parameters()], lr=4e-3)
    for count in range(updates):
        part = slice(count % 16 * 128, count % 16 * 128 + 128)
        out = head(layer(inputs[:, part])[0])
        if name == "text":
            loss = nn.functional.cross_entropy(out.flatten(0, 1), targets[:, part].flatten())
        else:
            loss = nn.functional.mse_loss(out, targets[:, part])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
        optimiser.step()
    say(f"trained {cell} on {name}: {updates} updates, loss {loss.item():.3f}")
    return layer


def draw(asked: Asked, device: str, updates: int) -> Problem:
    """The longest and widest problem, in bfloat16's numbers, so that both dtypes solve the same one."""
    cell, width, gates = asked.cell, asked.width, GATES[asked.cell]
    batch, steps = max(asked.batches), max(asked.times)
    rng = torch.Generator(device).manual_seed(0)
    if asked.weights in TRAINED:
        layer = trained(cell, asked.weights, width, device, updates)
        with torch.no_grad():
            inputs = task(asked.weights, batch, steps, rng)[0].bfloat16()
            bias = (layer.bias_ih_l0 + layer.bias_hh_l0).bfloat16()
            x = nn.functional.linear(inputs, layer.weight_ih_l0.bfloat16(), bias)
            return Problem(cell, x, layer.weight_hh_l0.detach().bfloat16(), False)
    radius = float(asked.weights)
    x = torch.randn(batch, steps, gates * width, device=device, generator=rng, dtype=torch.bfloat16)
    if asked.diagonal:
        weight = radius * (2 * torch.rand(gates, width, device=device, generator=rng) - 1)
    else:
        weight = radius * width**-0.5 * torch.randn(gates * width, width, device=device, generator=rng)
    return Problem(cell, x, weight.bfloat16(), asked.diagonal)


def part(problem: Problem, batch: int, steps: int, dtype: torch.dtype) -> Problem:
    x = problem.x[:batch, :steps].to(dtype).contiguous()
    return problem._replace(x=x, weight=problem.weight.to(dtype).contiguous())


def stepwise(problem: Problem, impl: str) -> Tensor:
    """h of the library's scan, which takes a diagonal cell's weights as a matrix."""
    run = rnn_scan if problem.cell == "rnn" else lstm_scan
    return run(problem.x, problem.matrix(), impl=impl)[0]


# -- measuring


def milliseconds(run: Callable[[], object], device: str) -> float:
    """Median of three calls, fewer where they take long; everything is warm from the call before."""
    taken: list[float] = []
    while len(taken) < 3 and sum(taken) < 1000:
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(1e3 * (time.perf_counter() - start))
    return median(taken)


def peak_mib(run: Callable[[], Any], device: str) -> tuple[Any, float]:
    """What a call returns, and the memory that it needs beside what it is given, its results included."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = run()
        torch.cuda.synchronize()
        return result, (torch.cuda.max_memory_allocated() - before) / 2**20

    def status(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key))

    if not Path("/proc/self/clear_refs").exists():
        return run(), 0.0
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    result = run()
    return result, (status("VmHWM") - before) / 2**10


def measured(run: Callable[[], Any], truth: Tensor, device: str) -> dict[str, Any]:
    """Error relative to the largest |h|, ms, memory; iterations where there are any."""
    run()  # compiles, fills caches
    result, peak = peak_mib(run, device)
    h = result if isinstance(result, Tensor) else result.h
    off = (h[0].double() - truth).abs().max() / truth.abs().max()
    about: dict[str, Any] = {"error": float(f"{float(off):.3g}"), "peak_mib": round(peak, 1)}
    if not isinstance(result, Tensor):
        about |= {"iterations": result.iterations, "converged": result.converged}
    del result, h
    return about | {"ms": round(milliseconds(run, device), 3)}


def ways(problem: Problem, asked: Asked, device: str, cap: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Implementations by name: those that take one step after the other first."""
    impl = "cuda" if device == "cuda" else "cpp"
    op = OPS[f"{problem.cell}_scan"]
    given = dict.fromkeys(("h0", "c0", "lengths", "cu_seqlens"))
    chosen = next(i for i in op.impls if i.name == impl)
    reason = chosen.why_not({**given, "x": problem.x, "weight": problem.matrix()}) if chosen.why_not else None
    if reason is None:
        yield f"quatrain:{impl}", lambda: stepwise(problem, impl)
    else:
        say(f"{impl}: {reason}")
    if problem.diagonal and device == "cuda":
        yield "steps:unit", lambda: step_by_step(problem)
    for jacobian in asked.jacobians:
        name = "quatrain:newton" + ("" if jacobian == "diagonal" else f"-{jacobian}")
        yield name, lambda jacobian=jacobian: solve(problem, jacobian, cap)


def compare(asked: Asked, device: str, cap: int, train: int, until: float) -> Iterator[dict[str, Any]]:
    """Rows of one kind of weights; none is begun after ``until``."""
    whole = draw(asked, device, train)
    first = part(whole, 1, max(asked.times), torch.float64)
    truth = stepwise(first, "torch")[0]
    del first
    kind = "diagonal" if asked.diagonal else "full"
    radius = asked.weights if asked.weights in TRAINED else f"radius {asked.weights}"
    for steps in asked.times:
        for batch in asked.batches:
            for dtype in asked.dtypes:
                problem = part(whole, batch, steps, DTYPES[dtype])
                if time.perf_counter() > until:
                    return say(f"no time left for {asked.cell} {kind} {radius} T {steps} and what follows")
                case = f"B{batch} H{asked.width} T{steps} {kind} {radius}"
                for impl, run in ways(problem, asked, device, cap):
                    try:
                        about = measured(run, truth[:steps], device)
                    except torch.cuda.OutOfMemoryError:
                        say(f"{asked.cell} {case} {dtype} {impl}: out of memory")
                        continue
                    yield {"op": f"{asked.cell}_scan", "impl": impl, "case": case, "dtype": dtype} | about
                    say(line(about | {"op": asked.cell, "impl": impl, "case": case, "dtype": dtype}))
                del problem


def plan(device: str) -> list[Asked]:
    """What is measured: lengths with two kinds of weights, all kinds at one length."""
    cells = ("lstm", "rnn")
    if device == "cuda":
        width, batches, dtypes, jacobians = 512, (1, 16), ("bfloat16", "float32"), ("diagonal",)
        lengths: tuple[int, ...] = (1024, 4096, 16384, 65536)
    else:
        width, batches, dtypes, jacobians = 64, (1,), ("float32",), ("diagonal", "none")
        lengths = (1024, 4096)
    full = [
        Asked(cell, False, weights, lengths, batches, dtypes, jacobians, width)
        for weights in ("0.9", "text")
        for cell in cells
    ]
    diagonal = [Asked(cell, True, "0.9", lengths, batches, dtypes, ("diagonal",), width) for cell in cells]
    others = [
        Asked(cell, False, weights, (SPREAD,), (1,), ("float32",), ("diagonal", "none"), width)
        for weights in ("0.5", "1.0", "3.0", "pulses")
        for cell in cells
    ]
    more = [
        Asked(cell, True, weights, (SPREAD,), (1,), ("float32",), ("diagonal",), width)
        for weights in ("0.5", "1.0", "3.0")
        for cell in cells
    ]
    small = [
        Asked(cell, False, weights, (1024,), (1,), ("float32",), ("diagonal", "none", "whole"), 16)
        for weights in ("0.9", "3.0", "pulses")
        for cell in cells
    ]
    return [*full, *diagonal, *others, *more, *(small if device == "cpu" else [])]


def check(device: str) -> bool:
    """Whether the kernels compute what plain torch does, iterate by iterate, on odd sizes."""
    good = True
    for cell in GATES:
        for diagonal in (False, True):
            for dtype in DTYPES.values():
                asked = Asked(cell, diagonal, "0.9", (1000,), (3,), (), (), 37)
                here = part(draw(asked, "cpu", 0), 3, 1000, dtype)
                there = here._replace(x=here.x.to(device), weight=here.weight.to(device))
                for count in (1, 3, 100):
                    mine, plain = solve(there, cap=count), solve(here, cap=count)
                    off = float((mine.h.cpu().double() - plain.h.double()).abs().max())
                    right = off <= (1e-4 if dtype is torch.float32 else 2**-6)
                    right &= abs(mine.iterations - plain.iterations) <= 1
                    good &= right
                    say(f"{'ok  ' if right else 'FAIL'} {cell} {diagonal=} {dtype} {count}: {off:.1e}")
                if diagonal and device == "cuda":
                    off = float((step_by_step(there).cpu().double() - plain.h.double()).abs().max())
                    good &= off <= (1e-4 if dtype is torch.float32 else 2**-6)
                    say(f"     step by step: {off:.1e}")
    return good


# -- saying


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def line(found: dict[str, Any]) -> str:
    count = ""
    if "iterations" in found:
        count = f"{found['iterations']:4d} iterations" + ("" if found["converged"] else ", NOT converged")
    numbers = f"{found['ms']:10.3f} ms {found['peak_mib']:8.1f} MiB error {found['error']:.1e}"
    return f"{found['op']:9} {found['case']:34} {found['dtype']:8} {found['impl']:22} {numbers} {count}"


def short_table(rows: list[dict[str, Any]]) -> list[str]:
    """A line a case: the fastest step by step, Newton beside it, its error, iterations (+: not converged)."""
    lines = []
    for key in dict.fromkeys((r["op"], r["case"], r["dtype"]) for r in rows):
        here = {r["impl"]: r for r in rows if (r["op"], r["case"], r["dtype"]) == key}
        newton = here.get("quatrain:newton")
        steps = [r for name, r in here.items() if "newton" not in name]
        if newton is None or not steps:
            continue
        best = min(steps, key=lambda r: r["ms"])
        counts = [
            f"{r['iterations']}{'' if r['converged'] else '+'}{name.removeprefix('quatrain:newton')}"
            for name, r in here.items()
            if "newton" in name
        ]
        head = f"{key[0][:-5]:4} {key[1]:34} {key[2]:8} {best['impl'].split(':')[1]:4} {best['ms']:9.2f} ms"
        times = f"{newton['ms']:9.2f} ms = {best['ms'] / newton['ms']:5.2f}x, {newton['error']:.0e}"
        lines.append(f"{head}, Newton {times}, iterations {' '.join(counts)}")
    return lines


def main() -> None:
    """Measure, save, and print a short table last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--cap", type=int, default=100, help="iterations")
    parser.add_argument("--train", type=int, default=400, help="updates of a trained layer")
    parser.add_argument("--seconds", type=float, default=210.0, help="after which nothing new is measured")
    parser.add_argument("--out", type=Path, help="default benchmarks/results/parallel_in_time-DEVICE.jsonl")
    parser.add_argument("--commit", default="", help="of the code that runs; default: git's")
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: torch finds no GPU")
    if asked.cap < 1 or asked.train < 1:
        sys.exit(f"--cap {asked.cap}, --train {asked.train}: must be at least 1")
    torch.set_num_threads(1)
    until, rows = time.perf_counter() + asked.seconds, []
    if asked.device == "cuda" and not check("cuda"):
        sys.exit("the kernels disagree with plain torch: nothing is timed")
    about = row("", "", "", "", "forward")
    about = {key: about[key] for key in ("mode", "machine", "versions", "commit", "command")}
    about["commit"] = asked.commit or about["commit"]
    with torch.no_grad():
        for each in plan(asked.device):
            rows += [found | about for found in compare(each, asked.device, asked.cap, asked.train, until)]
    out = asked.out or RESULTS / f"parallel_in_time-{asked.device}.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(json.dumps(found) + "\n" for found in rows), "utf-8")
    say("\n".join([about["machine"], *short_table(rows)]))


if __name__ == "__main__":
    main()
