"""Readable causal depthwise convolution: the definition every other implementation is tested against."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from quatrain.kernels._batch import by_sequence
from quatrain.kernels._check import wide_dtype


def causal_conv_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    silu: bool = False,
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One output at a time from the last W inputs; see `quatrain.kernels.causal_conv`."""
    wide, taps = wide_dtype(x.dtype), weight.shape[1]
    weight = weight.to(wide)
    bias = None if bias is None else bias.to(wide)

    def run(data: list[Any], states: list[Any]) -> tuple[Tensor, Tensor]:
        (x,), (past,) = data, states
        if past is None:
            past = x.new_zeros(x.shape[0], taps - 1, x.shape[2])
        seen = torch.cat((past, x), dim=1)  # (B, W - 1 + T, E)
        outputs = [x[:, :0]]
        for t in range(x.shape[1]):
            z = (seen[:, t : t + taps] * weight.T).sum(1, keepdim=True)
            z = z if bias is None else z + bias
            outputs.append(F.silu(z) if silu else z)
        return torch.cat(outputs, dim=1), seen[:, x.shape[1] :]

    start = None if h0 is None else h0.to(wide)
    y, h = by_sequence(run, [x.to(wide)], [start], lengths, cu_seqlens)
    return y.to(x.dtype), h.to(x.dtype)
