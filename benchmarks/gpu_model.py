"""Time what surrounds the scan on a GPU, whole models, and S6 beside attention; rows go to a JSON Lines file.

    python benchmarks/gpu_model.py --out benchmarks/results/gpu_model.jsonl --commit HASH [--parts ops ...]

Results are checked first (`gpu_s6.check`). Ops and blocks: medians of replayed CUDA graphs, several calls in
a graph where one is short. Models: whole training steps (forward, backward, fused AdamW), wall clock.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from gpu_s6 import check, draw, milliseconds
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from quatrain.kernels import causal_conv, cross_entropy, rms_norm, s6_scan, s6_step
from quatrain.mixers.s6 import S6
from quatrain.model.config import ModelConfig
from quatrain.model.lm import LanguageModel

VOCAB = 50280  # 50,277 padded to a multiple of 8
BF16 = torch.bfloat16
Row = dict[str, Any]


def once(run: Callable[[], object]) -> float:
    """Time of one call, for what takes seconds."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def normal(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=dtype)


def row(op: str, impl: str, case: str, mode: str, ms: float, **more: object) -> Row:
    sys.stdout.write(f"{op:18} {impl:22} {case:28} {mode:9} {ms:10.4f} ms  {more or ''}\n")
    sys.stdout.flush()
    return {
        "op": op,
        "impl": impl,
        "case": case,
        "dtype": "bfloat16",
        "mode": mode,
        "ms": round(ms, 4),
        **more,
    }


def both_ways(
    op: str, impl: str, case: str, run: Callable[[], Tensor], leaves: list[Tensor], calls: int = 10
) -> list[Row]:
    """Forward alone, and with the backward pass."""
    with torch.no_grad():
        rows = [row(op, impl, case, "forward", milliseconds(run, calls))]
    for leaf in leaves:
        leaf.requires_grad_()
    cotangent = torch.randn_like(run())
    rows.append(
        row(
            op,
            impl,
            case,
            "training",
            milliseconds(lambda: torch.autograd.grad(run(), leaves, cotangent), calls),
        )
    )
    return rows


def ops() -> list[Row]:
    rows = []
    big, copy = normal(1 << 30), torch.empty(1 << 30, device="cuda", dtype=BF16)
    ms = milliseconds(lambda: copy.copy_(big), 1)
    rows.append(row("copy", "torch", "2 GiB", "forward", ms, tb_per_s=round(2 * 2**31 / ms / 1e9, 3)))
    big = copy = None
    x, weight, bias = (
        normal(8, 2048, 2048),
        normal(2048, 4, dtype=torch.float32),
        normal(2048, dtype=torch.float32),
    )
    rows += both_ways(
        "causal_conv",
        "quatrain:nvrtc",
        "B8 T2048 E2048 W4 silu",
        lambda: causal_conv(x, weight, bias, silu=True)[0],
        [x, weight, bias],
    )
    rows += both_ways(
        "causal_conv",
        "quatrain:torch",
        "B8 T2048 E2048 W4 silu",
        lambda: causal_conv(x, weight, bias, silu=True, impl="torch")[0],
        [x, weight, bias],
        1,
    )
    del x
    for batch in (1, 64, 256):
        step = {
            "u": normal(batch, 1536),
            "delta": normal(batch, 1536),
            "a": -normal(1536, 16, dtype=torch.float32).exp(),
            "b": normal(batch, 16),
            "c": normal(batch, 16),
            "skip": normal(1536),
            "gate": normal(batch, 1536),
            "delta_bias": normal(1536),
            "h0": normal(batch, 1536, 16, dtype=torch.float32),
            "softplus": True,
        }
        compiled = torch.compile(s6_step, fullgraph=True)
        limit = 2 * step["h0"].numel() * 4
        for impl, run in (
            ("quatrain:nvrtc", s6_step),
            ("quatrain:torch", partial(s6_step, impl="torch")),
            ("torch.compile", compiled),
        ):
            with torch.no_grad():
                ms = milliseconds(lambda run=run, step=step: run(**step))
            rows.append(
                row(
                    "s6_step",
                    impl,
                    f"B{batch} E1536 N16",
                    "forward",
                    ms,
                    state_tb_per_s=round(limit / ms / 1e9, 3),
                )
            )
    x, residual, weight = normal(16, 2048, 768), normal(16, 2048, 768), normal(768)

    def norm_add() -> Tensor:
        return rms_norm(x + residual, weight)

    rows += both_ways("rms_norm+residual", "eager", "B16 T2048 D768", norm_add, [x, residual, weight])
    rows += both_ways(
        "rms_norm+residual", "torch.compile", "B16 T2048 D768", torch.compile(norm_add), [x, residual, weight]
    )
    logits, targets = normal(2560, VOCAB), torch.randint(0, VOCAB, (2560,), device="cuda")
    for impl in ("nvrtc", "torch"):
        rows += both_ways(
            "cross_entropy",
            f"quatrain:{impl}",
            f"R2560 V{VOCAB}",
            lambda impl=impl: cross_entropy(logits, targets, impl=impl),
            [logits],
            1,
        )
    loss = torch.compile(lambda x: torch.nn.functional.cross_entropy(x.float(), targets, reduction="none"))
    rows += both_ways("cross_entropy", "torch.compile", f"R2560 V{VOCAB}", lambda: loss(logits), [logits], 1)
    given = draw(1, 1536, 4096, BF16)
    with torch.no_grad():
        fast, slow = (
            milliseconds(lambda impl=impl: s6_scan(**given, impl=impl), 1) for impl in ("nvrtc", "torch")
        )
    rows.append(
        row("s6_scan", "quatrain:nvrtc", "B1 E1536 T4096", "forward", fast, times_torch=round(slow / fast, 1))
    )
    return rows


def block() -> list[Row]:
    layer = S6(width=1024).to("cuda", BF16)
    x = normal(8, 2048, 1024)
    rows = []
    for name, run in (("eager", layer), ("torch.compile", torch.compile(layer, fullgraph=True))):
        call = lambda run=run: run(x, keep_state=False)[0]  # noqa: E731
        rows += both_ways(
            "mamba block", f"quatrain:{name}", "D1024 B8 T2048", call, [x, *layer.parameters()], 1
        )
    return rows


CONFIGS = {
    "s6": ModelConfig(vocab=VOCAB, width=768, layers=24, pattern="s6"),
    "attention": ModelConfig(
        vocab=VOCAB, width=768, layers=12, pattern="attention", tied=False, mixer={"attention": {"heads": 12}}
    ),
}


def train_step(
    model: LanguageModel, optimizer: torch.optim.Optimizer, tokens: Tensor, dtype: torch.dtype | None
) -> Tensor:
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cuda", dtype or BF16, enabled=dtype is not None):
        loss, _ = model.loss(tokens[:, :-1], tokens[:, 1:], keep_state=False)
    loss.backward()
    optimizer.step()
    return loss.detach()


def measure_training(
    name: str,
    kind: str,
    dtype: torch.dtype | None = BF16,
    *,
    compiled: bool = False,
    whole: bool = False,
    graph: bool = False,
    backend: SDPBackend | None = None,
    show: bool = False,
) -> Row:
    """A training step of 16 x 2048 tokens: compiled layer by layer or whole; ``graph``: as one CUDA graph."""
    torch.manual_seed(0)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with torch.device("cuda"):
        model = LanguageModel(CONFIGS[kind])
    if compiled:
        for layer in model.backbone.layers:
            layer.compile(fullgraph=True)
    if whole:
        model.backbone.compile(fullgraph=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True, capturable=True)
    tokens = torch.randint(0, 50277, (16, 2049), device="cuda")

    def step() -> Tensor:
        return train_step(model, optimizer, tokens, dtype)

    with sdpa_kernel(backend) if backend else torch.enable_grad():
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            warm = once(lambda: [step() for _ in range(3)])
        run: Callable[[], object] = step
        if graph:
            optimizer.zero_grad(set_to_none=True)
            recorded = torch.cuda.CUDAGraph()
            with torch.cuda.graph(recorded):
                step()
            run = recorded.replay
        ms = median(once(run) for _ in range(9))
        if show:
            profile(run)
    peak = torch.cuda.max_memory_allocated() / 1e9
    impl = "torch.compile, whole" if whole else "torch.compile" if compiled else "eager"
    return row(
        name,
        f"{impl}, CUDA graph" if graph else impl,
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f}M B16 T2048",
        "step",
        ms,
        dtype="float32" if dtype is None else "autocast bfloat16",
        tokens_per_s=round(16 * 2048 / ms * 1e3),
        peak_gb=round(peak, 2),
        warm_s=round(warm / 1e3, 1),
    )


def profile(run: Callable[[], object], lines: int = 26) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
        run()
        torch.cuda.synchronize()
    events = sorted(trace.key_averages(), key=lambda e: -e.self_device_time_total)
    total = sum(e.self_device_time_total for e in events)
    sys.stdout.write(f"  all kernels {total / 1e3:.2f} ms\n")
    for e in events[:lines]:
        sys.stdout.write(f"  {e.self_device_time_total / 1e3:8.2f} ms {e.count:5d}  {e.key[:100]}\n")


def models() -> list[Row]:
    mamba, transformer = ("mamba-130m", "s6"), ("transformer-12x768", "attention")
    cudnn, flash = SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION
    return [
        measure_training(*mamba),
        measure_training(*mamba, compiled=True),
        measure_training(*mamba, compiled=True, graph=True, show=True),
        measure_training(*transformer),
        measure_training("transformer, flash", "attention", compiled=True, backend=flash),
        measure_training("transformer, cudnn", "attention", compiled=True, backend=cudnn),
        measure_training(*transformer, compiled=True, graph=True, show=True),
        measure_training(*mamba, None, compiled=True),
        measure_training(*mamba, whole=True, graph=True, show=True),
    ]


def long() -> list[Row]:
    rows = []
    config = ModelConfig(vocab=VOCAB, width=768, layers=24, pattern="s6", checkpoint_layers=True)
    for steps in (1 << 18, 1 << 20):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        with torch.device("cuda"):
            model = LanguageModel(config).to(BF16)
        for layer in model.backbone.layers:
            layer.compile(fullgraph=True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        tokens = torch.randint(0, 50277, (1, steps + 1), device="cuda")
        try:
            ms = min(once(partial(train_step, model, optimizer, tokens, None)) for _ in range(3))
        except torch.cuda.OutOfMemoryError as error:
            sys.stdout.write(f"T {steps}: {str(error)[:200]}\n")
            continue
        peak = torch.cuda.max_memory_allocated() / 1e9
        more = {"peak_gb": round(peak, 1), "tokens_per_s": round(steps / ms * 1e3)}
        rows.append(row("mamba-130m", "checkpoint, bf16 weights", f"B1 T{steps}", "step", ms, **more))
        model = optimizer = None
    torch.cuda.empty_cache()
    with torch.device("cuda"):
        model = LanguageModel(CONFIGS["s6"]).to(BF16).eval()
    tokens = torch.randint(0, 50277, (1, 1 << 20), device="cuda")
    for chunk in (1 << 16, 1 << 18, 1 << 20):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()

        def prefill(chunk: int = chunk) -> None:
            state = None
            for part in tokens.split(chunk, 1):
                x, state = model.hidden(part, state)
                model.logits(x[:, -1])

        with torch.no_grad():
            ms = min(once(prefill) for _ in range(2))
        peak = (torch.cuda.max_memory_allocated() - before) / 1e9
        rows.append(
            row(
                "mamba-130m",
                "prefill",
                f"T1048576 in {chunk}",
                "forward",
                ms,
                peak_gb=round(peak, 2),
                tokens_per_s=round((1 << 20) / ms * 1e3),
            )
        )
    return rows


def crossover() -> list[Row]:
    """S6's scan beside attention (16 heads x 64, cuDNN) at equal width and equal tokens."""
    rows = []
    for power in range(9, 21):
        batch, steps = max(1, (1 << 15) >> power), 1 << power
        timer = (lambda run: milliseconds(run, 1, 5)) if power <= 16 else once
        for one in (_scan, _attention):
            run, leaves, cotangent = one(batch, steps)
            case = f"B{batch} T{steps} width 1024"
            with torch.no_grad():
                if one is _scan:
                    run()
                rows.append(row("crossover", one.__name__[1:], case, "forward", timer(run)))
            train = partial(_train, run, leaves, cotangent)
            rows.append(row("crossover", one.__name__[1:], case, "training", timer(train)))
            run = leaves = cotangent = train = None
            torch.cuda.empty_cache()
    return rows


def _train(run: Callable[[], Tensor], leaves: list[Tensor], cotangent: Tensor) -> object:
    return torch.autograd.grad(run(), leaves, cotangent)


def _scan(batch: int, steps: int) -> tuple[Callable[[], Tensor], list[Tensor], Tensor]:
    given = draw(batch, 1024, steps, BF16)
    leaves = [x.requires_grad_() for x in given.values() if isinstance(x, Tensor)]
    return lambda: s6_scan(**given)[0], leaves, torch.randn_like(given["u"])


def _attention(batch: int, steps: int) -> tuple[Callable[[], Tensor], list[Tensor], Tensor]:
    q = [normal(batch, 16, steps, 64).requires_grad_() for _ in range(3)]

    def attend() -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(*q, is_causal=True)

    return attend, q, torch.randn_like(q[0])


PARTS = {"ops": ops, "block": block, "models": models, "long": long, "crossover": crossover}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commit", required=True, help="of the code that runs")
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=tuple(PARTS))
    args = parser.parse_args()
    check()
    common = {
        "machine": torch.cuda.get_device_name(),
        "versions": f"torch {torch.__version__}, CUDA {torch.version.cuda}",
        "commit": args.commit,
        "command": " ".join(sys.argv),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for part in args.parts:
        rows = PARTS[part]()
        with args.out.open("a") as file:
            file.writelines(json.dumps({**one, **common}) + "\n" for one in rows)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
