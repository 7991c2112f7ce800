"""The same weights here and in code by others: how far outputs and gradients differ, as rows.

S6 against mambapy's block, where it is installed; RNN, LSTM and GRU stacks against torch.nn. The number is
the greatest difference over the greatest value, the worst of output, gradient of the input and gradients of
S6's weights; 1.2e-7 is one rounding in float32. mambapy computes a part in float32 whatever its weights are.
"""

import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import torch
from _rows import row, save
from torch import Tensor, nn

import quatrain
from quatrain.interop.torch_rnn import from_torch

NAMES = {"conv_weight": "conv1d.weight", "conv_bias": "conv1d.bias", "skip": "D", "a_log": "A_log"}


def difference(
    ours: Callable[[Tensor], Tensor],
    theirs: Callable[[Tensor], Tensor],
    pairs: list[tuple[Tensor, Tensor]],
    x: Tensor,
) -> float:
    """Greatest relative difference of the outputs and of the gradients of x and of ``pairs`` of weights."""
    x, found = x.requires_grad_(), []
    for layer, side in ((ours, 0), (theirs, 1)):
        y = layer(x)
        cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
        leaves = [x, *(pair[side] for pair in pairs)]
        found.append([y.detach(), *torch.autograd.grad(y, leaves, cotangent)])
    return max(
        ((a.reshape(b.shape) - b).abs().max() / b.abs().max()).item() for a, b in zip(*found, strict=True)
    )


def s6(dtype: torch.dtype) -> list[tuple[str, str, float]]:
    """One Mamba block at several sizes."""
    if importlib.util.find_spec("mambapy") is None:
        return []
    from mambapy.mamba import MambaBlock, MambaConfig

    found = []
    for batch, width, time in ((1, 64, 512), (2, 256, 100), (3, 48, 37)):
        torch.manual_seed(0)
        ours, theirs = quatrain.S6(width=width).to(dtype), MambaBlock(MambaConfig(width, 1)).to(dtype)
        known, pairs = dict(theirs.named_parameters()), []
        for name, weight in ours.named_parameters():
            pairs.append((weight, known[NAMES.get(name, name)]))
            with torch.no_grad():
                weight.copy_(pairs[-1][1].reshape(weight.shape))
        x = torch.randn(batch, time, width, dtype=dtype)
        worst = difference(lambda x, layer=ours: layer(x)[0], theirs, pairs, x)
        found.append(("mambapy", f"B{batch} D{width} T{time}", worst))
    return found


def recurrent(kind: str, dtype: torch.dtype) -> list[tuple[str, str, float]]:
    """Two layers, both from torch's own module."""
    found = []
    for batch, width, time in ((1, 64, 512), (16, 256, 100), (3, 50, 37)):
        torch.manual_seed(0)
        theirs: Any = getattr(nn, kind.upper())(width, width, 2, batch_first=True).to(dtype)
        ours = from_torch(theirs)
        x = torch.randn(batch, time, width, dtype=dtype)
        worst = difference(lambda x, layer=ours: layer(x)[0], lambda x, layer=theirs: layer(x)[0], [], x)
        found.append((f"torch.nn.{kind.upper()}", f"B{batch} H{width} T{time} layers 2", worst))
    return found


def main() -> None:
    """Compare, print and save."""
    rows = []
    for dtype in (torch.float64, torch.float32):
        name = str(dtype).removeprefix("torch.")
        checks = {"s6": s6(dtype)} | {kind: recurrent(kind, dtype) for kind in ("rnn", "lstm", "gru")}
        for op, found in checks.items():
            for peer, case, worst in found:
                sys.stdout.write(f"{op:5} {name} {peer:14} {case:24} {worst:.1e}\n")
                unit = f"greatest relative difference to {peer}"
                rows.append(row(op, "quatrain", case, name, "training", value=worst, unit=unit))
    save("cross_check", rows)


if __name__ == "__main__":
    main()
