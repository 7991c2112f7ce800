"""Check, then time the recurrent kernels on a GPU beside cuDNN; rows go to a JSON Lines file.

    python benchmarks/gpu_rnn.py --check                    what is right, in under a minute
    python benchmarks/gpu_rnn.py --out benchmarks/results/gpu_rnn.jsonl
    python benchmarks/gpu_rnn.py --tune --out benchmarks/results/gpu_rnn_steps.jsonl    plans of each row

Every job runs in a child process, with a time limit: where one fails, is killed or does not end, the next one
begins in a new one. Nothing is timed of a kind whose check is red.
"""

import argparse
import json
import os
import queue
import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _budget import excess
from _jobs import Workers, say, serve
from _rows import row
from torch import Tensor

from quatrain.kernels import OPS, Case, _nvrtc, _recurrent_cuda
from quatrain.kernels._recurrent_cuda import _launch, _plan

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
GATES = {"rnn": 1, "lstm": 4, "gru": 3}
KINDS = {"rnn": "rnn_tanh", "lstm": "lstm", "gru": "gru"}
TABLE = ((16, 512), (64, 512), (16, 1024), (64, 1024), (64, 2048), (1, 1024))
OURS, CUDNN = "quatrain:cuda", "torch"  # torch.nn's layers are cuDNN's
TIME, WARM, SAMPLE = 1024, 0.2, 15.0  # steps; seconds; ms
TARGETS = {  # (kind, B, H): ms forward, forward + backward
    ("lstm", 16, 512): (1.5, 4.5), ("lstm", 64, 512): (2.5, 7), ("lstm", 16, 1024): (2.0, 6.5),
    ("lstm", 64, 1024): (4, 12), ("lstm", 64, 2048): (14, 38), ("lstm", 1, 1024): (2.0, 5.5),
    ("rnn", 16, 512): (1.3, 3.5), ("rnn", 64, 512): (1.6, 4.5), ("rnn", 16, 1024): (1.7, 4.5),
    ("rnn", 64, 1024): (2.2, 6), ("rnn", 64, 2048): (5, 14), ("rnn", 1, 1024): (1.6, 4.5),
}  # fmt: skip
PLANS: dict[str, tuple[tuple[int, int, int, int], dict[str, Any]]] = {
    # name: units, blocks of a cluster, rows, groups of a width of 60 and 11 sequences
    "one block": ((64, 1, 4, 3), {}),
    "cluster": ((16, 4, 3, 2), {}),
    "cluster, warps over columns": ((16, 4, 3, 2), {"down": 1}),
    "cluster, weights from everywhere": ((16, 4, 9, 1), {"held": 1, "shared": 1}),
    "grid, polled": ((16, 1, 6, 2), {"grid": True, "chunks": (0, 0)}),
    "grid, in bulk": ((16, 1, 6, 2), {"grid": True}),
    "grid that shares columns": ((16, 4, 6, 2), {"grid": True}),
    "polled grid that shares columns": ((16, 2, 6, 2), {"grid": True, "chunks": (0, 0)}),
    "grid, in chunks": ((16, 1, 6, 2), {"grid": True, "chunks": (2, 2)}),
    "grid, in a ring": ((16, 1, 6, 2), {"grid": True, "chunks": (4, 2)}),
    "grid that shares columns, in a ring": ((16, 2, 6, 2), {"grid": True, "chunks": (2, 1)}),
}


# -- jobs: each is a function of plain values, run in a child


def arguments(kind: str, case: Case, dtype: torch.dtype, seed: int = 0) -> dict[str, Any]:
    """A case's arguments on the GPU."""
    op = OPS[f"{kind}_scan"]
    drawn = op.example(case, torch.Generator().manual_seed(seed))
    return {
        name: x.to("cuda", dtype if x.is_floating_point() else None) if isinstance(x, Tensor) else x
        for name, x in drawn.items()
    }


def outcome(kind: str, given: dict[str, Any], impl: str, **flags: Any) -> dict[str, Tensor]:
    """Results and gradients of one run."""
    op = OPS[f"{kind}_scan"]
    run = op.reference if impl == "reference" else next(i.fn for i in op.impls if i.name == impl)
    floats = [name for name, x in given.items() if isinstance(x, Tensor) and x.is_floating_point()]
    leaves = dict(given) | {name: given[name].detach().clone().requires_grad_() for name in floats}
    results = run(**leaves, **flags)
    rng = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(r.shape, generator=rng).to(r) for r in results]
    grads = torch.autograd.grad(results, [leaves[name] for name in floats], cotangents)
    named = zip((*op.outputs, *(f"d {name}" for name in floats)), (*results, *grads), strict=True)
    return {name: x.detach().double() for name, x in named}


def force(numbers: tuple[int, int, int, int] | None, flags: dict[str, Any]) -> None:
    """Make the launches that follow use this plan; None: the cheapest again."""
    if numbers is None:
        _launch.plan = _plan.plan
        return
    units, cluster, rows, groups = numbers

    def plan(problem: _plan.Problem) -> _plan.Plan | str:
        chunks = flags.get("chunks", (1, 1))
        grid, down = flags.get("grid", False), flags.get("down", 0)
        made = _plan.fit(problem, units, cluster, grid, rows, groups, chunks, down)
        if made is None:
            return "does not fit"
        held = min(flags.get("held", 999), made.held)
        shared = min(flags.get("shared", 999), made.tiles[1] - held, made.shared + made.held - held)
        made = replace(made, held=held, shared=shared)
        return replace(made, shared_bytes=_plan.shared_bytes(problem, made))

    _launch.plan = plan


def errors(kind: str, given: dict[str, Any], narrow: torch.dtype) -> dict[str, Any]:
    """The worst error of any result or gradient, as a multiple of what the error budget allows."""
    got = outcome(kind, given, "cuda")
    torch.cuda.synchronize()
    _recurrent_cuda.check(torch.device("cuda", 0))
    wide = {k: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for k, x in given.items()}
    exact = outcome(kind, wide, "reference")
    single = {
        k: x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for k, x in given.items()
    }
    rounding = {} if narrow is torch.float32 else {"operand_dtype": narrow}
    plain = outcome(kind, single, "reference", **rounding)
    worst, name_of_worst = 0.0, ""
    for name, e in exact.items():
        kept = torch.float32 if name in ("h", "c") else narrow
        ratio = excess(got[name], plain[name], e, kept)
        if not ratio <= worst:
            worst, name_of_worst = ratio, name
    again = outcome(kind, given, "cuda")
    same = all(torch.equal(got[name], again[name]) for name in got)
    return {"ok": worst <= 1 and same, "worst": round(worst, 3), "of": name_of_worst, "repeats": same}


def check(
    kind: str, dtype: str, dims: dict[str, int], optional: list[str], plan: str | None
) -> dict[str, Any]:
    """`errors` of one case, by a plan of ``PLANS`` or the planner's."""
    force(*(PLANS[plan] if plan else (None, {})))
    return errors(kind, arguments(kind, Case(dims, tuple(optional)), DTYPES[dtype]), DTYPES[dtype])


def drawn_plan(draw: random.Random) -> tuple[tuple[int, int, int, int], dict[str, Any]]:
    """Numbers for `force`, of a layer of at most four blocks of the smallest size."""
    chunks = draw.choice([(0, 0), (0, 0), (1, 1), (2, 2), (2, 1), (4, 2)])
    numbers = (
        draw.choice([16, 16, 32, 64]),
        draw.choice([1, 2, 3, 4]),
        draw.randint(1, 20),
        draw.randint(1, 3),
    )
    grid = draw.random() < 0.6
    flags = {"grid": grid, "chunks": chunks if grid else (1, 1), "down": draw.choice([0, 1, 2, 4, 8])}
    if draw.random() < 0.3:
        flags |= {"held": draw.randint(0, 2), "shared": draw.randint(0, 2)}
    return numbers, flags


def fuzz(kind: str, seed: int, seconds: float, each: int = 40) -> dict[str, Any]:
    """Random plans, sizes, flags, dtypes and strides against the definition; the worst that was found."""
    draw, until = random.Random(seed), time.monotonic() + seconds
    count, plans_used, worst = 0, 0, {"worst": 0.0}
    states = {"rnn": ["h0"], "lstm": ["h0", "c0"], "gru": ["bias", "h0"]}[kind]
    while time.monotonic() < until:
        numbers, flags = drawn_plan(draw)
        width, dtype = draw.randint(1, 64), draw.choice(list(DTYPES))
        size = DTYPES[dtype].itemsize
        problems = [
            _plan.Problem(_plan.KINDS[KINDS[kind]], width, 8, size, back, _nvrtc.residents(0))
            for back in (False, True)
        ]
        blocks = -(-width // numbers[0])
        fits = blocks % numbers[1] == 0 and (flags["grid"] or blocks == numbers[1])
        force(numbers, flags)
        if not fits or any(isinstance(_launch.plan(problem), str) for problem in problems):
            continue
        plans_used += 1
        for _ in range(each):
            form = draw.choice(["lengths", "cu_seqlens", ""])
            rows = 1 if form == "cu_seqlens" else draw.randint(1, 40)
            dims = {"B": rows, "T": draw.randint(1, 60 if rows == 1 else 20), "D": width}
            optional = [name for name in states if draw.random() < 0.6] + [form] * bool(form)
            given = arguments(kind, Case(dims, tuple(optional)), DTYPES[dtype], draw.randrange(1 << 30))
            if draw.random() < 0.3:
                given["x"] = given["x"].repeat_interleave(2, -1)[..., ::2]
            found = errors(kind, given, DTYPES[dtype])
            count += 1
            if not found["ok"] or found["worst"] > worst["worst"]:
                worst = found | {"dtype": dtype, "dims": dims, "optional": optional}
                worst |= {"plan": [numbers, flags]}
            if not found["ok"]:
                return {"ok": False, "cases": count, "plans": plans_used, **worst}
            if time.monotonic() > until:
                break
    return {"ok": True, "cases": count, "plans": plans_used, **worst}


def times(runs: dict[str, Callable[[], object]], count: int = 7) -> dict[str, float]:
    """Median ms of each, in turns, after a while of work: an idle GPU has a low clock.

    A sample is several runs that are queued together, so that the GPU does not wait for the host.
    """
    found: dict[str, list[float]] = {name: [] for name in runs}
    together = dict.fromkeys(runs, 1)

    def sample(name: str) -> float:
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(together[name]):
            runs[name]()
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop) / together[name]

    until, rounds = time.monotonic() + WARM, 0
    while time.monotonic() < until or rounds < 3:  # the first round loads and compiles: it tells nothing
        rounds += 1
        for name in runs:
            together[name] = max(1, min(16, round(SAMPLE / sample(name))))
    for _ in range(count):
        for name in runs:
            found[name].append(sample(name))
    return {name: median(each) for name, each in found.items()}


def ours(kind: str, layer: Any, x: Tensor) -> Tensor:
    """A whole layer: the projection of all steps, then the scan."""
    bias = layer.bias_ih_l0
    if kind != "gru":
        bias = bias + layer.bias_hh_l0
    drive = torch.nn.functional.linear(x, layer.weight_ih_l0, bias)
    op = OPS[f"{kind}_scan"]
    run = next(i.fn for i in op.impls if i.name == "cuda")
    if kind == "gru":
        width = layer.hidden_size
        drive = torch.cat(
            (drive[..., : 2 * width] + layer.bias_hh_l0[: 2 * width], drive[..., 2 * width :]), -1
        )
        return run(x=drive, weight=layer.weight_hh_l0, bias=layer.bias_hh_l0[2 * width :])[0]
    return run(x=drive, weight=layer.weight_hh_l0)[0]


def table(kind: str, batch: int, width: int, dtypes: list[str]) -> dict[str, Any]:
    """ms of our layer in bfloat16 and cuDNN's in every dtype, forward and forward + backward."""
    force(None, {})
    torch.manual_seed(0)
    make = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[kind]
    forward: dict[str, Callable[[], object]] = {}
    training: dict[str, Callable[[], object]] = {}
    for name in dtypes:
        layer = make(width, width, batch_first=True).to("cuda", DTYPES[name])
        x = torch.randn(batch, TIME, width, device="cuda", dtype=DTYPES[name], requires_grad=True)
        dy, leaves = torch.randn_like(x), [x, *layer.parameters()]
        each: dict[str, Callable[[], Tensor]] = {f"{CUDNN} {name}": lambda m=layer, v=x: m(v)[0]}
        if name == "bfloat16":
            each[f"{OURS} {name}"] = lambda m=layer, v=x: ours(kind, m, v)
        for key, run in each.items():

            def infer(run: Callable[[], Tensor] = run) -> None:
                with torch.no_grad():
                    run()

            def train(
                run: Callable[[], Tensor] = run, leaves: list[Tensor] = leaves, dy: Tensor = dy
            ) -> None:
                torch.autograd.grad(run(), leaves, dy)

            forward[key], training[key] = infer, train
    return {"forward": times(forward), "training": times(training, 5)}


def launch_of(kind: str, batch: int, width: int, back: bool, made: _plan.Plan, time: int) -> _launch.Launch:
    """One pass alone, ready to run: a forward pass keeps nothing, a backward pass has no initial state."""
    rows = GATES[kind]
    x = torch.randn(batch, time, rows * width, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(rows * width, width, device="cuda", dtype=torch.bfloat16) * width**-0.5
    inputs = _launch.Inputs(KINDS[kind], x, weight, None, None, None, None, None)
    launch = _launch.Launch(inputs, back, made)
    if not back:
        out = _launch.results(inputs, False)
        launch.steps("x", x)
        for name, value in (("y", out.y), ("last_h", out.h), ("last_c", out.c)):
            launch.set(name, value)
        return launch
    y, _, _, gates, cells = _recurrent_cuda.forward(*inputs, True)
    launch.steps("dy", y)
    for name, value in (("gates", gates), ("cells", cells), ("dx", torch.empty_like(x))):
        launch.set(name, value)
    launch.set("dinner", torch.empty_like(y))
    launch.set("dbias", torch.empty(made.slots, width, device="cuda"))
    return launch


def step_us(kind: str, batch: int, width: int, back: bool, empty: bool, made: _plan.Plan) -> float:
    """us of a step of one pass, the kernel alone, from two lengths: what a launch costs cancels."""
    found = []
    for length in (TIME // 4, TIME):
        launch = launch_of(kind, batch, width, back, made, length)
        found.append(times({"": lambda run=launch: run.run(False, False, empty)}, 5)[""])
    _recurrent_cuda.check(torch.device("cuda", 0))
    return 1000 * (found[1] - found[0]) / (TIME - TIME // 4)


def plans(kind: str, batch: int, width: int, back: bool, count: int) -> list[_plan.Plan]:
    """The planned one, the cheapest of each other way of exchange, then the cheapest of other forms.

    A form is units, blocks that share columns, exchange and turns: within one, guesses differ little.
    """
    problem = _plan.Problem(_plan.KINDS[KINDS[kind]], width, batch, 2, back, _nvrtc.residents(0))
    planned = _plan.plan(problem)
    assert not isinstance(planned, str), planned
    near = (made for made in _plan.candidates(problem) if made.cost <= 1.5 * planned.cost)
    cheapest = [planned, *sorted(near, key=lambda p: p.cost)]
    ways: dict[object, _plan.Plan] = {}
    forms: dict[object, _plan.Plan] = {}
    for made in cheapest:
        ways.setdefault((made.grid, made.polled), made)
        forms.setdefault((made.units, made.cluster, made.polled, -(-batch // made.slots)), made)
    return list(dict.fromkeys((*ways.values(), *forms.values(), *cheapest)))[:count]


def compiled(
    kind: str,
    batch: int,
    width: int,
    back: bool,
    count: int,
    empty: bool,
    part: int,
    parts: int,
) -> dict[str, Any]:
    """Compile a share of what `tune` runs, for all processes to find; with no ``count`` what `table` runs."""
    if count:
        wanted = [(m, False, e) for m in plans(kind, batch, width, back, count) for e in {False, empty}]
    else:
        problem = _plan.Problem(_plan.KINDS[KINDS[kind]], width, batch, 2, back, _nvrtc.residents(0))
        made = _plan.plan(problem)
        assert not isinstance(made, str), made
        wanted = [(made, keep, False) for keep in {False, not back}]
    for made, keep, silent in wanted[part::parts]:
        x = torch.empty(1, 1, GATES[kind] * width, device="cuda", dtype=torch.bfloat16)
        x = x.expand(batch, TIME, -1)  # its size decides how the gates are kept
        weight = torch.empty(GATES[kind] * width, width, device="cuda", dtype=torch.bfloat16)
        inputs = _launch.Inputs(KINDS[kind], x, weight, None, None, None, None, None)
        _launch.Launch(inputs, back, made).kernel(keep, False, silent)
    return {}


def tune(kind: str, batch: int, width: int, back: bool, count: int, empty: bool) -> dict[str, Any]:
    """us of a step by several plans, whole and empty, beside the planner's guess."""
    force(None, {})
    lines = []
    for plan in plans(kind, batch, width, back, count):
        about = f"U{plan.units} blocks {plan.blocks} x {plan.groups} rows {plan.rows}"
        about += f" cluster {plan.cluster} warps {plan.warps}"
        about += f" held {plan.held} shared {plan.shared}/{plan.tiles[1]}"
        about += " polled" if plan.polled else f" chunks {plan.chunks}"
        line: dict[str, Any] = {"plan": about, "guess": round(plan.cost, 2)}
        lines.append(line)
        try:
            line["us"] = round(step_us(kind, batch, width, back, False, plan), 2)
            if empty:
                line["empty"] = round(step_us(kind, batch, width, back, True, plan), 2)
        except RuntimeError as error:
            line["error"] = str(error)[:200]
            if "illegal" in str(error) or "launch failure" in str(error):
                return {"rows": lines}
    return {"rows": lines}


def residents() -> dict[str, Any]:
    """How many clusters of each size run at once."""
    return {"clusters of 1 to 16 blocks": _nvrtc.residents(0)}


JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    "check": check,
    "fuzz": fuzz,
    "table": table,
    "tune": tune,
    "compiled": compiled,
    "residents": residents,
}


# -- what is run


def check_kind(kind: str) -> dict[tuple[str, str], bool]:
    """Whether a kind is right in each dtype, in every way of exchanging operands and as planned."""
    right, workers = {}, Workers(__file__)
    states = {"rnn": ["h0"], "lstm": ["h0", "c0"], "gru": ["bias", "h0"]}[kind]
    few = ["cluster", "polled grid that shares columns", "grid that shares columns, in a ring"]
    for dtype in DTYPES:
        right[kind, dtype] = True
        plans = list(PLANS) if (kind, dtype) == ("lstm", "bfloat16") else few
        jobs: list[tuple[dict[str, int], list[str], str | None]] = [
            ({"B": 11, "T": 17, "D": 60}, [*states, "lengths"], plan) for plan in plans
        ]
        jobs.append(({"B": 1, "T": 150, "D": 33}, [*states, "cu_seqlens"], None))
        jobs.append(({"B": 4, "T": 300, "D": 60}, states, "polled grid that shares columns"))
        if dtype == "bfloat16":
            sizes = ((64, 512), (16, 1024), (64, 1024), (64, 2048))
            jobs += [({"B": b, "T": 12, "D": h}, states, None) for b, h in sizes]
        for dims, optional, plan in jobs:
            result = workers.run("check", 40, kind=kind, dtype=dtype, dims=dims, optional=optional, plan=plan)
            good = bool(result.get("ok"))
            right[kind, dtype] = right[kind, dtype] and good
            what = ", ".join(f"{k} {v}" for k, v in dims.items())
            say(f"{'ok  ' if good else 'FAIL'} {kind} {dtype} {what} {plan or 'as planned'} {result}")
    workers.stop()
    return right


def check_all(kinds: list[str]) -> dict[tuple[str, str], bool]:
    """All kinds at once, each in a process of its own: most of the time is compiling."""
    right: dict[tuple[str, str], bool] = {}
    with ThreadPoolExecutor(len(kinds)) as pool:
        for found in pool.map(check_kind, kinds):
            right |= found
    return right


Pass = tuple[str, int, int, bool]  # kind, batch, width, backwards


def compile_all(passes: list[Pass], until: float, count: int = 0, empty: bool = False) -> None:
    """Compile what is to be timed, in as many processes as there are cores."""
    cores, free = max(2, (os.cpu_count() or 2) - 1), queue.SimpleQueue[Workers]()
    for _ in range(cores):
        free.put(Workers(__file__))

    def share(one: Pass, part: int) -> None:
        mine, names = free.get(), ("kind", "batch", "width", "back")
        if time.monotonic() < until:
            values = dict(zip(names, one, strict=True), count=count, empty=empty)
            values |= {"part": part, "parts": 3}
            found = mine.run("compiled", 60, **values)
            if "failed" in found:
                say(f"{one}: {found['failed']}")
        free.put(mine)

    began = time.monotonic()
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(lambda job: share(*job), [(one, part) for one in passes for part in range(3)]))
    for _ in range(cores):
        free.get().stop()
    say(f"compiled in {time.monotonic() - began:.0f} s")


def fuzz_all(kinds: list[str], seconds: float) -> bool:
    """Fuzz in as many processes as there are cores."""
    cores = max(2, (os.cpu_count() or 2) - 1)

    def one(seed: int) -> dict[str, Any]:
        workers, kind = Workers(__file__), kinds[seed % len(kinds)]
        found = workers.run("fuzz", seconds + 60, kind=kind, seed=seed, seconds=seconds)
        workers.stop()
        return {"kind": kind, **found}

    with ThreadPoolExecutor(cores) as pool:
        every = list(pool.map(one, range(cores)))
    for found in every:
        say(f"{'ok  ' if found.get('ok') else 'FAIL'} {found}")
    say(f"{sum(found.get('cases', 0) for found in every)} cases")
    return all(found.get("ok") for found in every)


def tabulate(workers: Workers, kinds: list[str], until: float) -> list[dict[str, Any]]:
    """The rows of the table: ours beside cuDNN in three dtypes."""
    rows = []
    compile_all([(k, *row, back) for k in kinds for row in TABLE for back in (False, True)], until)
    for kind in kinds:
        for batch, width in TABLE:
            if time.monotonic() > until:
                say(f"{kind} {batch} {width}: no time left")
                continue
            dtypes = list(DTYPES) if (batch, width) != (64, 2048) else ["bfloat16", "float16"]
            found = workers.run("table", 60, kind=kind, batch=batch, width=width, dtypes=dtypes)
            case = f"B{batch} H{width} T{TIME}"
            if "failed" in found:
                say(f"{kind} {case}: {found['failed']}")
                continue
            for mode in ("forward", "training"):
                for name, ms in found[mode].items():
                    impl, dtype = name.split()
                    rows.append(row(kind, impl, case, dtype, mode, ms=round(ms, 4)))
    return rows


def short_table(rows: list[dict[str, Any]]) -> list[str]:
    """Ours, cuDNN's bf16, its best and the target, forward / training."""
    lines = []
    for op, case in dict.fromkeys((r["op"], r["case"]) for r in rows):
        cells = [f"{op:4} {case:16}"]
        for i, mode in enumerate(("forward", "training")):
            ms = {
                (r["impl"], r["dtype"]): r["ms"]
                for r in rows
                if (r["op"], r["case"], r["mode"]) == (op, case, mode)
            }
            mine = ms.pop((OURS, "bfloat16"))
            batch, width = (int(word[1:]) for word in case.split()[:2])
            target = TARGETS.get((op, batch, width))
            wanted = f" target {target[i]}" if target else ""
            today = ms[CUDNN, "bfloat16"]
            cells.append(
                f"{mode} {mine:.2f} ms, cuDNN bf16 {today:.2f}, best {min(ms.values()):.2f}{wanted};"
            )
        lines.append(" ".join(cells))
    return lines


def tune_all(
    workers: Workers, passes: list[Pass], count: int, empty: bool, until: float
) -> list[dict[str, Any]]:
    """Measure several plans of each pass; a row for each."""
    rows = []
    compile_all(passes, until, count, empty)
    for kind, batch, width, back in passes:
        if time.monotonic() > until:
            say("no time left")
            break
        values = {"kind": kind, "batch": batch, "width": width, "back": back, "count": count, "empty": empty}
        found = workers.run("tune", 60, **values)
        say(f"{kind} B{batch} H{width} {'backward' if back else 'forward'}: {found.get('failed', '')}")
        for line in found.get("rows", ()):
            say(f"    {line}")
            if "us" in line:
                case = f"B{batch} H{width} T{TIME} {line['plan']}"
                more = {"value": line["us"], "unit": "us a step"}
                more |= {"empty": line["empty"]} if "empty" in line else {}
                mode = "backward" if back else "forward"
                rows.append(row(f"{kind}_scan", OURS, case, "bfloat16", mode, **more))
    return rows


def write(out: Path | None, rows: list[dict[str, Any]]) -> None:
    """The rows as JSON Lines, where a file is named."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("".join(json.dumps(one) + "\n" for one in rows), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="check only")
    parser.add_argument("--fuzz", action="store_true", help="random cases, for --seconds")
    parser.add_argument("--tune", action="store_true", help="measure plans, whole and empty steps")
    parser.add_argument("--kinds", default="lstm,rnn,gru")
    parser.add_argument("--rows", default="", help="of the table with --tune, such as 16x512,64x1024")
    parser.add_argument("--plans", type=int, default=6, help="plans of each row with --tune")
    parser.add_argument("--empty", action="store_true", help="with --tune, steps without a product too")
    parser.add_argument("--seconds", type=float, default=460, help="after which nothing new begins")
    parser.add_argument("--unchecked", action="store_true", help="the check has just been run")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        serve(JOBS)
        return
    workers, kinds, until = Workers(__file__), args.kinds.split(","), time.monotonic() + args.seconds
    if args.fuzz:
        sys.exit(not fuzz_all(kinds, args.seconds))
    try:
        if args.tune:
            wanted = [r for r in TABLE if not args.rows or f"{r[0]}x{r[1]}" in args.rows.split(",")]
            passes = [(kind, *r, back) for kind in kinds for r in wanted for back in (False, True)]
            write(args.out, tune_all(workers, passes, args.plans, args.empty, until))
            return
        if not args.unchecked:
            say(f"at once: {workers.run('residents', 60)}")
            bad = [f"{kind} {dtype}" for (kind, dtype), good in check_all(kinds).items() if not good]
            say(f"wrong: {', '.join(bad) or 'nothing'}")
            if args.check or bad:
                sys.exit(bool(bad))
        rows = tabulate(workers, kinds, until)
    finally:
        workers.stop()
    write(args.out, rows)
    say("\n".join([torch.cuda.get_device_name(), *short_table(rows)]))


if __name__ == "__main__":
    main()
