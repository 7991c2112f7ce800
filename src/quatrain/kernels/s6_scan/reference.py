"""Readable S6 scan: the definition every other implementation is tested against."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from quatrain.kernels._batch import by_sequence
from quatrain.kernels._check import wide_dtype


def s6_scan_reference(
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor | None = None,
    gate: Tensor | None = None,
    delta_bias: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    softplus: bool = False,
    zoh: bool = False,
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The selective state-space recurrence one step at a time; see `quatrain.kernels.s6_scan`."""
    wide = wide_dtype(u.dtype)
    rate = a.to(wide)
    skip = None if skip is None else skip.to(wide)
    delta_bias = None if delta_bias is None else delta_bias.to(wide)

    def run(data: list[Any], states: list[Any]) -> tuple[Tensor, Tensor]:
        (u, delta, b, c, gate), (h,) = data, states
        batch, time, width = u.shape
        h = u.new_zeros(batch, *rate.shape) if h is None else h
        outputs = [u[:, :0]]
        for t in range(time):
            dt = delta[:, t]  # (B, E)
            dt = dt if delta_bias is None else dt + delta_bias
            dt = (torch.logaddexp(dt, torch.zeros_like(dt)) if softplus else dt)[..., None]  # (B, E, 1)
            hold = torch.expm1(dt * rate) / rate if zoh else dt
            h = torch.exp(dt * rate) * h + hold * u[:, t, :, None] * _per_channel(b[:, t], width)
            y = (h * _per_channel(c[:, t], width)).sum(-1)
            y = y if skip is None else y + skip * u[:, t]
            y = y if gate is None else y * F.silu(gate[:, t])
            outputs.append(y[:, None])
        return torch.cat(outputs, dim=1), h

    data = [None if x is None else x.to(wide) for x in (u, delta, b, c, gate)]
    start = None if h0 is None else h0.to(wide)
    y, h = by_sequence(run, data, [start], lengths, cu_seqlens)
    return y.to(u.dtype), h


def _per_channel(x: Tensor, width: int) -> Tensor:
    """(B, N) or (B, G, N) to (B, E or 1, N)."""
    return x[:, None] if x.ndim == 2 else x.repeat_interleave(width // x.shape[1], dim=1)
