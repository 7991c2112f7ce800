"""Check, then time recurrent models on a GPU beside torch.nn's: decoding, training, packed batches.

    python benchmarks/gpu_rnn_model.py --out benchmarks/results/gpu_rnn_model.jsonl --commit HASH
    python benchmarks/gpu_rnn_model.py --dry    small sizes on a CPU: tests the script alone

- decode: 4 layers of 1024 units, a token at a time, as a CUDA graph of several tokens, each fed with the one
  before; beside it the time of reading the weights at the bandwidth of a copy of 1 GiB.
- train: a language model on 4 layers of 1024 units, 64 x 1024 tokens, whole steps with fused AdamW; the peer
  has torch.nn.LSTM in the place of our layers and the same embedding, head and loss.
- packed: sequences of 16 to 1024 steps in one packed batch, against a batch in which all have 1024.

Each job runs in a child process with a time limit. What is timed has been checked in the same run.
"""

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import _rows
import torch
from _jobs import Workers, say, serve
from _rnn_jobs import DTYPES, JOBS

IMPLS = {"quatrain": "quatrain:cuda", "cudnn": "torch", "nn.LSTM": "torch"}  # in the rows
FULL: dict[str, Any] = {
    "device": "cuda", "impl": "cuda", "width": 1024, "layers": 4, "batches": (1, 64), "train": (64, 1024),
    "check": ((1, 1024, 1024), (5, 1000, 1000), (64, 1024, 1024)), "check_train": (8, 48),
    "vocabs": (256, 50280), "packed": ((512, 512), (1024, 256)), "steps": 1024, "shortest": 16,
}  # fmt: skip
DRY = FULL | {
    "device": "cpu", "impl": "auto", "width": 32, "layers": 2, "batches": (1, 3), "train": (2, 12),
    "check": ((1, 24, 32), (5, 7, 9)), "check_train": (2, 6), "vocabs": (16,), "packed": ((32, 8),),
    "steps": 24, "shortest": 3,
}  # fmt: skip


def check_all(sizes: dict[str, Any]) -> dict[str, bool]:
    """Whether steps and training are right; kinds at once, each in a process of its own."""
    shared = {"impl": sizes["impl"], "device": sizes["device"]}

    def steps(kind: str) -> bool:
        workers, right = Workers(__file__), True
        dtypes = list(DTYPES) if kind == "lstm" else ["bfloat16"]
        for dtype in dtypes if sizes["device"] == "cuda" else ["float32"]:
            for shape in sizes["check"]:
                found = workers.run("check_step", 40, kind=kind, dtype=dtype, sizes=shape, **shared)
                right = right and bool(found.get("ok"))
                say(f"{'ok  ' if found.get('ok') else 'FAIL'} step {kind} {dtype} B, I, D {shape} {found}")
        workers.stop()
        return right

    def training(_: str) -> bool:
        workers = Workers(__file__)
        model = {"width": sizes["width"], "layers": sizes["layers"], "sizes": sizes["check_train"]}
        found = workers.run("check_training", 60, **model, **shared)
        say(f"{'ok  ' if found.get('ok') else 'FAIL'} training bfloat16 {model} {found}")
        workers.stop()
        return bool(found.get("ok"))

    with ThreadPoolExecutor(4) as pool:
        of_steps = pool.map(steps, ("lstm", "gru", "rnn_tanh"))
        of_training = pool.map(training, ("lstm",))
        return {"step": all(of_steps), "training": all(of_training)}


def row(op: str, impl: str, case: str, dtype: str, mode: str, **measured: Any) -> dict[str, Any]:
    return {"op": op, "impl": impl, "case": case, "dtype": dtype, "mode": mode, **measured}


def decode_rows(workers: Workers, sizes: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    shape = {"width": sizes["width"], "layers": sizes["layers"], "device": sizes["device"]}
    for batch in sizes["batches"]:
        case = f"{sizes['layers']} x {sizes['width']} B{batch}"
        for job in ("decode", "decode_model"):
            found = workers.run(job, 40, batch=batch, **shape)
            if "failed" in found:
                say(f"{job} {case}: {found['failed']}")
                continue
            if found.get("kernels"):
                say(f"{job} {case}: {len(found['kernels'])} kernels a token: {found['kernels']}")
            more = {key: found[key] for key in ("copy_gb_s", "weights_mb") if key in found}
            more |= {"kernels_a_token": len(found["kernels"])} if found.get("kernels") else {}
            op = "lstm_stack" if job == "decode" else "lstm_model"
            for name, us in found["us"].items():
                impl, _, mode = name.partition(", ")
                impl, _, dtype = impl.partition(" ") if impl.startswith("cudnn") else (impl, "", "")
                rows.append(row(op, impl, case, dtype or "bfloat16", mode or "copy", us=round(us, 2), **more))
    return rows


def train_rows(workers: Workers, sizes: dict[str, Any], until: float) -> list[dict[str, Any]]:
    rows = []
    shape = {key: sizes[key] for key in ("width", "layers", "impl", "device")} | {"sizes": sizes["train"]}
    cases = [("quatrain", "bfloat16", False), ("nn.LSTM", "bfloat16", False), ("nn.LSTM", "float16", False)]
    cases += [("quatrain", "bfloat16", True), ("nn.LSTM", "bfloat16", True)]
    for vocab in sizes["vocabs"]:
        for name, dtype, autocast in cases if vocab == sizes["vocabs"][0] else cases[:3]:
            if time.monotonic() > until or (dtype == "float16" and sizes["device"] == "cpu"):
                continue
            found = workers.run("train", 40, who=name, dtype=dtype, autocast=autocast, vocab=vocab, **shape)
            case = f"{sizes['layers']} x {sizes['width']} B{sizes['train'][0]} T{sizes['train'][1]} V{vocab}"
            if "failed" in found:
                say(f"train {name} {dtype} {case}: {found['failed']}")
                continue
            mode = "training, autocast" if autocast else "training"
            rows.append(row("lstm_model", name, case, dtype, mode, **found))
            say(f"train {rows[-1]}")
    return rows


def packed_rows(workers: Workers, sizes: dict[str, Any], until: float) -> list[dict[str, Any]]:
    rows = []
    shape = {key: sizes[key] for key in ("steps", "shortest", "impl", "device")}
    for index, (width, sequences) in enumerate(sizes["packed"]):
        if time.monotonic() > until:
            continue
        found = workers.run("packed", 40, width=width, sequences=sequences, peer=index == 0, **shape)
        case = f"H{width} S{sequences} T{sizes['shortest']}-{sizes['steps']}"
        if "failed" in found:
            say(f"packed {case}: {found['failed']}")
            continue
        for name, ms in found["ms"].items():
            impl = "cudnn" if name.startswith("cudnn") else "quatrain"
            more = {"ms": round(ms, 3), "share": found["share"], "over": found["over"]}
            mode = "full" if name == "full" else "packed"
            rows.append(row("lstm_layer", impl, case, "bfloat16", mode, **more))
    return rows


def short_table(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each case and mode: what each implementation takes, best unit of its kind."""
    lines = []
    for key in dict.fromkeys((one["op"], one["case"], one["mode"].partition(",")[0]) for one in rows):
        cells = []
        for one in rows:
            if (one["op"], one["case"], one["mode"].partition(",")[0]) != key:
                continue
            unit = next(name for name in ("tokens_per_s", "us", "ms") if name in one)
            label = f"{one['impl']} {one['dtype']}{' autocast' if 'autocast' in one['mode'] else ''}"
            over = f" ({one['over']} x its share {one['share']})" if one["mode"] == "packed" else ""
            shown = f"{one[unit]:,} tokens/s" if unit == "tokens_per_s" else f"{one[unit]} {unit}"
            cells.append(f"{label} {shown}{over if one['impl'] == 'quatrain' else ''}")
        lines.append(f"{key[0]} {key[1]} {key[2]}: " + "; ".join(cells))
    return lines


def published(one: dict[str, Any]) -> dict[str, Any]:
    """A row as the other results have them: implementations by package, times in ms."""
    one = {**one, "impl": IMPLS.get(one["impl"], one["impl"])}
    if "us" in one:
        one["ms"] = round(one.pop("us") / 1000, 5)
    return _rows.row(**one)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry", action="store_true", help="small sizes on a CPU")
    parser.add_argument("--parts", nargs="+", default=["decode", "train", "packed"])
    parser.add_argument("--seconds", type=float, default=165, help="after which nothing new begins")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        serve(JOBS)
        return
    sizes, until, rows = DRY if args.dry else FULL, time.monotonic() + args.seconds, []
    right, workers = check_all(sizes), Workers(__file__)
    try:
        if "decode" in args.parts and right["step"]:
            rows += decode_rows(workers, sizes)
        if right["training"]:
            rows += train_rows(workers, sizes, until) if "train" in args.parts else []
            rows += packed_rows(workers, sizes, until) if "packed" in args.parts else []
    finally:
        workers.stop()
    machine = "a CPU, small sizes" if args.dry else torch.cuda.get_device_name()
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("".join(json.dumps(published(one)) + "\n" for one in rows), "utf-8")
    wrong = [name for name, good in right.items() if not good]
    say("\n".join([f"{machine}, torch {torch.__version__}, CUDA {torch.version.cuda}", *short_table(rows)]))
    say(f"wrong, not timed: {', '.join(wrong) or 'nothing'}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
