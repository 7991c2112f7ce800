"""Readable long causal convolution: the definition every other implementation is tested against."""

from typing import Any

import torch
from torch import Tensor

from quatrain.kernels._batch import by_sequence
from quatrain.kernels._check import wide_dtype


def lti_conv_reference(
    u: Tensor,
    kernel: Tensor,
    *,
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor]:
    """The sum of the definition, step by step; see `quatrain.kernels.lti_conv`."""
    wide = wide_dtype(u.dtype)
    taps = kernel.to(wide).T  # (R, E)

    def run(data: list[Any], states: list[Any]) -> tuple[Tensor]:
        (u,) = data
        outputs = [u[:, :0]]
        for t in range(u.shape[1]):
            past = u[:, max(0, t + 1 - len(taps)) : t + 1].flip(1)  # (B, up to R, E), newest first
            outputs.append((past * taps[: past.shape[1]]).sum(1, keepdim=True))
        return (torch.cat(outputs, dim=1),)

    (y,) = by_sequence(run, [u.to(wide)], [], lengths, cu_seqlens)
    return (y.to(u.dtype),)
