"""What a public step costs beside its matrix-vector products, at batch 1 on the CPU, ways taken in turns.

For each model of 12 layers x 512: `LanguageModel.step` from state to state; `Decoder`, which runs the same
kernels with states of its own; and the products of a token alone, recorded (with attention also its read of
keys and values). Step less `Decoder`, over the layers, is the overhead per layer: checks, and states as
values. One layer of LSTM, likewise, against ``torch.nn.LSTM`` called step by step.
"""

import argparse
import sys
from collections.abc import Callable
from math import inf
from statistics import median
from time import perf_counter
from typing import Any

import torch
from _rows import row, save
from torch import nn

from quatrain.infer._decoder import Decoder
from quatrain.kernels._core.tape import Tape
from quatrain.kernels.attention import cpu as attention
from quatrain.kernels.linear_step import cpu as linear_step
from quatrain.mixers.lstm import LSTM
from quatrain.model import LanguageModel, ModelConfig

LAYERS, WIDTH = 12, 512
CASES = {  # kind of mixer, tokens before the first one measured
    "rnn": ("rnn", 1),
    "lstm": ("lstm", 1),
    "gru": ("gru", 1),
    "attention context 64": ("attention", 64),
    "attention context 1024": ("attention", 1024),
    "s6": ("s6", 1),
    "s4d": ("s4d", 1),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Timed = Callable[[], object]


@torch.no_grad()
def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, action="append", help="only this one; may be repeated")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="only this one; may be repeated")
    parser.add_argument("--tokens", type=int, default=150, help="of each way")
    parser.add_argument("--dry", action="store_true", help="save nothing")
    asked = parser.parse_args()
    rows = []
    for case in asked.case or CASES:
        for name in asked.dtype or DTYPES:
            rows += model_step(case, name, asked.tokens)
    if not asked.case:
        for width in (256, 512, 1024):
            rows += layer_step(width, asked.tokens)
    if not asked.dry:
        save("cpu_step", rows)


def alternate(ways: dict[str, Timed], times: int) -> dict[str, list[float]]:
    """Seconds of each way, taken in turns after three unmeasured rounds."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(times + 3):
        for name, way in ways.items():
            start = perf_counter()
            way()
            if turn >= 3:
                taken[name].append(perf_counter() - start)
    return taken


def model_step(case: str, dtype: str, tokens: int) -> list[dict[str, Any]]:
    """The rows of one model and dtype."""
    kind, context = CASES[case]
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(vocab=256, width=WIDTH, layers=LAYERS, pattern=kind))
    model = model.to(DTYPES[dtype]).eval()
    token = torch.zeros(1, dtype=torch.int64)
    _, state = model.hidden(torch.zeros(1, context, dtype=torch.int64))

    def step() -> None:
        nonlocal state
        _, state = model.step(token, state)

    decoder = Decoder(model, state)
    ways = {
        "quatrain:step": step,
        "quatrain:decoder": lambda: decoder(token),
        "products": products(model, context),
    }
    taken = alternate(ways, tokens)
    ours, kernels, alone = (median(seconds) for seconds in taken.values())
    extra = {
        "us_per_layer": round((ours - kernels) / LAYERS * 1e6, 1),
        "us_per_layer_over_products": round((ours - alone) / LAYERS * 1e6, 1),
        "of_products": round(ours / alone, 2),
        "best": round(min(taken["quatrain:step"]) * 1e3, 4),
    }
    name = f"{case} {LAYERS} x {WIDTH}"
    sys.stdout.write(
        f"{name:32s} {dtype:9s} step {ours * 1e3:6.3f} ms, decoder {kernels * 1e3:6.3f}, "
        f"products {alone * 1e3:6.3f}, {extra['us_per_layer']:6.1f} us a layer, "
        f"{extra['of_products']:.2f} x\n"
    )
    return [
        row("step", "quatrain:step", name, dtype, "step", ms=round(ours * 1e3, 4), **extra),
        row("step", "quatrain:decoder", name, dtype, "step", ms=round(kernels * 1e3, 4)),
        row("step", "products", name, dtype, "step", ms=round(alone * 1e3, 4)),
    ]


def products(model: LanguageModel, context: int) -> Timed:
    """All matrix-vector products of a token, recorded, and attention's read of its cache."""
    tape = Tape()
    named = {
        n: p for n, p in model.named_parameters() if p.ndim == 2 and "a_log" not in n and "conv" not in n
    }
    for name, weight in named.items():
        if name.endswith("mixer.c"):  # of S4D: no matrix, its rows belong to channels
            continue
        x = tape.buffer("x", 1, weight.shape[1], dtype=weight.dtype).zero_()
        linear_step.record(tape, x, weight, None, tape.buffer("y", 1, len(weight), dtype=weight.dtype))
        if "qkv_proj" in name:
            heads = ModelConfig(width=WIDTH).mixer_config("attention").heads
            k, v = torch.zeros(2, 1, context, heads, WIDTH // heads, dtype=weight.dtype).unbind(0)
            q = torch.zeros(1, heads, WIDTH // heads, dtype=weight.dtype)
            y = torch.empty_like(q)
            read = attention._arguments(q, k, v, y, False, inf, None, None)
            tape.add("qt_attention_step", read, q, k, v, y)
    return tape.run


def layer_step(width: int, tokens: int) -> list[dict[str, Any]]:
    """One layer of LSTM, step by step."""
    torch.manual_seed(0)
    ours, theirs = LSTM(width=width), nn.LSTM(width, width)
    x = torch.randn(1, width)
    state, other = ours.initial_state(1), (torch.zeros(1, 1, width), torch.zeros(1, 1, width))

    def step() -> None:
        nonlocal state
        _, state = ours.step(x, state)

    def their_step() -> None:
        nonlocal other
        _, other = theirs(x[None], other)

    taken = alternate({"quatrain:LSTM.step": step, "torch:nn.LSTM": their_step}, 4 * tokens)
    mine, yours = (median(seconds) * 1e3 for seconds in taken.values())
    case = f"lstm layer B1 H{width}"
    sys.stdout.write(
        f"{case:32s} float32   step {mine:7.4f} ms, nn.LSTM {yours:7.4f} ms, {yours / mine:.2f} x\n"
    )
    return [
        row("layer step", "quatrain:LSTM.step", case, "float32", "step", ms=round(mine, 5),
            speedup=round(yours / mine, 2)),
        row("layer step", "torch:nn.LSTM", case, "float32", "step", ms=round(yours, 5)),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
