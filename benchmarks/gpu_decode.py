"""Check, then time generation with Mamba-130M on a GPU: the block's step in one kernel, and in torch's parts.

    python benchmarks/gpu_decode.py --out benchmarks/results/gpu_decode.jsonl
    python benchmarks/gpu_decode.py --dry    small sizes on a CPU: tests the script alone

24 layers of width 768, a vocabulary of 50,280, bfloat16, batch 1 to 32. A token of the whole model and of
its layers alone, through the decoder, as CUDA graphs of several tokens, taken in turns; beside them the time
of reading the weights at the bandwidth of a copy of 1 GiB. What is timed has been checked in the same run.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from _budget import excess
from _jobs import say
from _rnn_jobs import DTYPES, alternating, bandwidth, captured, once
from _rows import row
from torch import Tensor

from quatrain.infer._decoder import Decoder
from quatrain.kernels import OPS, Case
from quatrain.mixers import s6
from quatrain.model.config import ModelConfig
from quatrain.model.lm import LanguageModel

FULL: dict[str, Any] = {
    "device": "cuda", "impl": "nvrtc", "vocab": 50280, "width": 768, "layers": 24,
    "batches": (1, 2, 4, 8, 16, 32), "tokens": 16, "rounds": 15, "checked": 24,
    "checks": (("bfloat16", (1, 768, 1536, 16, 48, 4)), ("bfloat16", (32, 768, 1536, 16, 48, 4)),
               ("float16", (5, 256, 512, 64, 16, 3)), ("float32", (1, 768, 1536, 16, 48, 4))),
}  # fmt: skip
DRY = FULL | {
    "device": "cpu", "impl": "torch", "vocab": 60, "width": 32, "layers": 2, "batches": (1, 3), "tokens": 2,
    "rounds": 3, "checked": 4, "checks": (("float32", (2, 32, 64, 16, 2, 4)),),
}  # fmt: skip
_ALL = ("norm_weight", "conv_bias", "dt_bias", "skip")


def parts() -> Any:
    """A context in which a layer's step is made of its parts."""
    return patch.object(s6, "block_step", lambda *args, **flags: None)


def check_op(dtype: str, sizes: tuple[int, ...], impl: str, device: str) -> float:
    """The worst error of a result of one step, as a multiple of what the error budget allows."""
    op, narrow = OPS["s6_block_step"], DTYPES[dtype]
    drawn = op.example(Case(dict(zip("BDENRW", sizes, strict=True)), _ALL), torch.Generator().manual_seed(0))

    def cast(to: torch.dtype) -> dict[str, Any]:
        return {k: x.to(device, narrow).to(to) if isinstance(x, Tensor) else x for k, x in drawn.items()}

    rounding = {} if narrow is torch.float32 else {"operand_dtype": narrow}
    got = op.run(cast(narrow), impl)
    exact = op.reference(**cast(torch.float64))
    plain = op.reference(**cast(torch.float32), **rounding)
    worst = max(excess(g, p, e) for g, p, e in zip(got, plain, exact, strict=True))
    return worst


def check_model(model: LanguageModel, batch: int, tokens: int) -> float:
    """The last logits' error against float32 after so many tokens, as a multiple of that of the parts."""
    device = model.device
    text = torch.randint(0, model.config.vocab, (tokens, batch), device=device)

    def last(one: LanguageModel) -> Tensor:
        decoder = Decoder(one, one.initial_state(batch))
        for token in text:
            logits = decoder(token)
        return logits.double()

    got = last(model)
    with parts():
        plain = last(model)
        wide = LanguageModel(model.config).to(device).eval()
        wide.load_state_dict(model.state_dict())
        exact = last(wide)
    return float(((got - exact).norm() / (plain - exact).norm().clamp_min(1e-30)).nan_to_num(torch.inf))


def check_all(model: LanguageModel, sizes: dict[str, Any]) -> bool:
    right = True
    for dtype, shape in sizes["checks"]:
        start = time.perf_counter()
        worst = check_op(dtype, shape, sizes["impl"], sizes["device"])
        took = f"{worst:.3f}, {time.perf_counter() - start:.1f} s"
        say(f"{'ok  ' if worst <= 1 else 'FAIL'} step {dtype} B, D, E, N, R, W {shape}: {took}")
        right = right and worst <= 1
    for batch in sizes["batches"] if sizes["device"] == "cuda" else ():
        worst = check_model(model, batch, sizes["checked"])
        say(
            f"{'ok  ' if worst <= 2 else 'FAIL'} model bfloat16 B {batch}: {worst:.3f} times the parts' error"
        )
        right = right and worst <= 2
    return right


def kernels_of(run: Callable[[], object]) -> int:
    """Kernels that one call launches."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
        run()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in trace.events())


def tokens(run: Callable[[], object], decoder: Decoder, count: int) -> Callable[[], None]:
    """``run`` so many times; holds the states that it began with, which a graph reads and does not keep."""
    begun = []

    def many() -> None:
        begun.append(decoder.state())
        for _ in range(count):
            run()

    return many


def time_batch(model: LanguageModel, batch: int, rate: float, sizes: dict[str, Any]) -> list[dict[str, Any]]:
    device, count = sizes["device"], sizes["tokens"]
    token = torch.zeros(batch, dtype=torch.int64, device=device)
    x = torch.randn(batch, model.config.width, device=device, dtype=model.head_weight.dtype)

    def whole(decoder: Decoder) -> object:
        return decoder(token)

    def layers(decoder: Decoder) -> object:
        y = x
        for layer in decoder._layers[: model.config.layers]:
            y = layer(y)
        return y

    graphs, eager, kernels = {}, {}, {}
    for op, run in (("mamba_model", whole), ("mamba_layers", layers)):
        for impl in ("nvrtc", "torch"):
            with torch.no_grad(), parts() if impl == "torch" else patch.object(s6, "S6", s6.S6):
                decoder = Decoder(model, model.initial_state(batch))
                many = tokens(partial(run, decoder), decoder, count)
                graphs[op, impl] = captured(many, device)
                eager[op, impl] = min(once(many, device) for _ in range(3)) / count
                kernels[op, impl] = kernels_of(partial(run, decoder)) if device == "cuda" else 0
    named = {f"{op} {impl}": graph for (op, impl), graph in graphs.items()}
    alternating(named, device, 3)
    taken = alternating(named, device, sizes["rounds"])
    case = f"{model.config.layers} x {model.config.width} B{batch}"
    rows = []
    for op, impl in graphs:
        ms = taken[f"{op} {impl}"] / count
        read = model if op == "mamba_model" else model.backbone
        weights = sum(p.numel() * p.element_size() for p in read.parameters())
        more = {
            "tokens_per_s": round(1e3 * batch / ms),
            "eager_ms": round(eager[op, impl], 4),
            "kernels_a_token": kernels[op, impl],
            "weights_mb": round(weights / 1e6, 1),
            "weights_ms": round(1e3 * weights / rate, 5),
            "copy_gb_s": round(rate / 1e9),
        }
        rows.append(row(op, f"quatrain:{impl}", case, "bfloat16", "graph", ms=round(ms, 5), **more))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry", action="store_true", help="small sizes on a CPU")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    sizes = DRY if args.dry else FULL
    torch.manual_seed(0)
    fields = {name: sizes[name] for name in ("vocab", "width", "layers")}
    with torch.device(sizes["device"]):
        model = LanguageModel(ModelConfig(pattern="s6", **fields)).to(torch.bfloat16).eval()
    with torch.no_grad():
        right, rate = check_all(model, sizes), bandwidth(sizes["device"])
        rows = (
            [one for batch in sizes["batches"] for one in time_batch(model, batch, rate, sizes)]
            if right
            else []
        )
    if args.out is not None and rows:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("".join(json.dumps(one) + "\n" for one in rows), "utf-8")
    for one in rows:
        times, kernels = one["ms"] / one["weights_ms"], one["kernels_a_token"]
        say(
            f"{one['op']:13} {one['case']:15} {one['impl']:15} {1e3 * one['ms']:8.1f} us "
            f"{one['tokens_per_s']:9,} tokens/s  {times:5.2f} times the weights  {kernels} kernels"
        )
    say("ok" if right else "wrong, not timed")
    sys.exit(not right)


if __name__ == "__main__":
    main()
