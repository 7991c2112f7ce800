"""Whole models: training steps, and a million tokens in training and in prefill."""

import sys
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from _gpu import BF16, VOCAB, Row, once, row
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from quatrain.model.config import ModelConfig
from quatrain.model.lm import LanguageModel

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
    return rows


def prefill() -> list[Row]:
    """A million tokens in chunks, from each to the next with the state."""
    rows = []
    with torch.device("cuda"):
        model = LanguageModel(CONFIGS["s6"]).to(BF16).eval()
    tokens = torch.randint(0, 50277, (1, 1 << 20), device="cuda")
    for chunk in (1 << 16, 1 << 18, 1 << 19, 1 << 20):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()

        def read(chunk: int = chunk) -> None:
            state = None
            for part in tokens.split(chunk, 1):
                x, state = model.hidden(part, state)
                model.logits(x[:, -1])

        with torch.no_grad():
            ms = min(once(read) for _ in range(2))
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
