"""Tokens per second at batch 1 on the CPU, against plain torch and against the memory, ways taken in turns.

For each model: `Decoder` (what generation uses), `LanguageModel.step` (states as values), both again with
torch's products in the place of the core's, the matrix products of a token alone, and the limit: bytes of
weights, states and cache that a token reads, over the read bandwidth measured in the same run.
"""

import argparse
import sys
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any
from unittest.mock import patch

import torch
from _rows import row, save
from torch import Tensor

from quatrain.infer._decoder import Decoder
from quatrain.kernels import _core, linear_step
from quatrain.kernels._core.tape import Tape
from quatrain.kernels.linear_step import cpu
from quatrain.model import LanguageModel, ModelConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CASES: dict[str, tuple[dict[str, Any], int]] = {  # settings and tokens before the first one measured
    "mamba-130m": ({"vocab": 50280, "width": 768, "layers": 24, "pattern": "s6"}, 1),
    # a gated MLP of 2048 has the parameters of a plain one of 3072
    "gpt2-124m context 1024": (
        {
            "vocab": 50257,
            "width": 768,
            "layers": 12,
            "pattern": "attention",
            "mixer": {"attention": {"heads": 12}},
        },
        1024,
    ),
    **{
        f"{kind} 12 x 512": ({"vocab": 256, "width": 512, "layers": 12, "pattern": kind}, 1)
        for kind in ("s6", "lstm", "rnn", "gru")
    },
}
Timed = Callable[[], object]


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, action="append", help="only this one; may be repeated")
    parser.add_argument("--tokens", type=int, default=20, help="of each way")
    parser.add_argument("--prefill", type=int, default=512, help="tokens of a prompt, read at once")
    asked = parser.parse_args()
    torch.set_num_threads(torch.get_num_threads())
    bandwidth = read_bandwidth()
    sys.stdout.write(f"read bandwidth {bandwidth / 1e9:.1f} GB/s\n")
    rows = [row("read", "quatrain:cpp", "0.8 GB", "float32", "forward", value=bandwidth / 1e9, unit="GB/s")]
    for case in asked.case or CASES:
        for name, dtype in DTYPES.items():
            rows += decode(case, name, dtype, asked.tokens, bandwidth)
            if case == "mamba-130m":
                rows += prefill(case, name, dtype, asked.prefill)
    save("cpu_decode", rows)


def read_bandwidth() -> float:
    """Bytes per second of a product with a matrix that no cache holds; the best of five."""
    weight, x = torch.ones(2**18, 768), torch.ones(1, 768)
    return weight.numel() * 4 / min(alternate({"read": lambda: linear_step(x, weight)}, 5)["read"])


def alternate(ways: dict[str, Timed], times: int) -> dict[str, list[float]]:
    """Seconds of each way, taken in turns after one unmeasured round."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(times + 1):
        for name, way in ways.items():
            start = perf_counter()
            way()
            if turn:
                taken[name].append(perf_counter() - start)
    return taken


@torch.no_grad()
def build(case: str, dtype: torch.dtype) -> LanguageModel:
    """A model of random weights: speed does not depend on them."""
    with torch.device("meta"):
        model = LanguageModel(ModelConfig(**CASES[case][0]))
    model = model.to_empty(device="cpu").to(dtype).eval()
    for name, weight in model.named_parameters():
        weight.fill_(0.5) if name.endswith("a_log") else weight.normal_(std=0.02)
    return model


@torch.no_grad()
def decode(case: str, name: str, dtype: torch.dtype, tokens: int, bandwidth: float) -> list[dict[str, Any]]:
    """The rows of one model and dtype."""
    model, token = build(case, dtype), torch.zeros(1, dtype=torch.int64)
    _, state = model.hidden(torch.zeros(1, CASES[case][1], dtype=torch.int64))
    matrices = [
        p for n, p in model.named_parameters() if p.ndim == 2 and "a_log" not in n and "conv" not in n
    ]
    with patch.object(_core, "missing", lambda: "torch alone"):
        plain = Decoder(model, state)

    def alone(way: Timed) -> Timed:
        def run() -> object:
            with patch.object(_core, "missing", lambda: "torch alone"):
                return way()

        return run

    decoder = Decoder(model, state)
    ways: dict[str, Timed] = {
        "quatrain:decoder": lambda: decoder(token),
        "quatrain:step": lambda: model.step(token, state),
        "quatrain:decoder torch": alone(lambda: plain(token)),
        "quatrain:step torch": alone(lambda: model.step(token, state)),
        "products cpp": products(matrices),
        "torch:F.linear products": plain_products(matrices),
    }
    taken = alternate(ways, tokens)
    read = sum(p.numel() * p.element_size() for p in model.parameters())
    read += model.state_bytes(1, CASES[case][1])
    limit = bandwidth / read
    rows = [row("decode", "limit", case, name, "forward", value=limit, unit="tokens/s", bytes=read)]
    for way, seconds in taken.items():
        rate = 1 / median(seconds)
        share = {"of_limit": round(rate / limit, 3), "best": round(1 / min(seconds), 2)}
        rows.append(row("decode", way, case, name, "forward", value=round(rate, 2), unit="tokens/s", **share))
        sys.stdout.write(
            f"{case:24s} {name:9s} {way:24s} {rate:8.1f} tokens/s {rate / limit:6.1%} of the limit\n"
        )
    return rows


def products(matrices: list[Tensor]) -> Timed:
    """All matrix-vector products of a token, recorded, with nothing between them."""
    tape = Tape()
    for weight in matrices:
        x = tape.buffer("x", 1, weight.shape[1], dtype=weight.dtype).zero_()
        cpu.record(tape, x, weight, None, tape.buffer("y", 1, len(weight), dtype=weight.dtype))
    return tape.run


def plain_products(matrices: list[Tensor]) -> Timed:
    """The same by torch."""
    inputs = {w.shape[1]: torch.zeros(1, w.shape[1], dtype=w.dtype) for w in matrices}
    return lambda: [torch.nn.functional.linear(inputs[w.shape[1]], w) for w in matrices]


@torch.no_grad()
def prefill(case: str, name: str, dtype: torch.dtype, time: int) -> list[dict[str, Any]]:
    """Tokens per second of reading a prompt, and of its matrix products alone."""
    model, prompt = build(case, dtype), torch.zeros(1, time, dtype=torch.int64)
    matrices = [p for n, p in model.backbone.named_parameters() if p.ndim == 2 and "proj" in n]
    inputs = {w.shape[1]: torch.zeros(time, w.shape[1], dtype=w.dtype) for w in matrices}
    ways: dict[str, Timed] = {
        "quatrain": lambda: model.hidden(prompt),
        "products torch": lambda: [torch.nn.functional.linear(inputs[w.shape[1]], w) for w in matrices],
    }
    rows = []
    for way, seconds in alternate(ways, 3).items():
        rate = time / median(seconds)
        rows.append(
            row("prefill", way, f"{case} T{time}", name, "forward", value=round(rate, 1), unit="tokens/s")
        )
        sys.stdout.write(f"{case:24s} {name:9s} prefill {way:16s} {rate:8.0f} tokens/s\n")
    return rows


if __name__ == "__main__":
    main()
