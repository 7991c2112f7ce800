"""S6 step in few vectorised operations; autograd follows them."""

import torch
from torch import Tensor
from torch.nn import functional as F

from quatrain.kernels._check import wide_dtype


def step(
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor | None,
    gate: Tensor | None,
    delta_bias: Tensor | None,
    h0: Tensor,
    *,
    softplus: bool = False,
    zoh: bool = False,
) -> tuple[Tensor, Tensor]:
    """See `s6_step_reference`. Channels are grouped as (G, E / G), which needs no copy of b and c."""
    dtype, wide = u.dtype, wide_dtype(u.dtype)
    batch, width = u.shape
    state = a.shape[1]
    u, delta, a, b, c = u.to(wide), delta.to(wide), a.to(wide), b.to(wide), c.to(wide)
    dt = delta if delta_bias is None else delta + delta_bias.to(wide)
    if softplus:
        dt = torch.logaddexp(dt, dt.new_zeros(()))
    rate = dt[..., None] * a  # (B, E, N)
    groups = b.shape[1] if b.ndim == 3 else 1
    if zoh:
        drive = (torch.expm1(rate) / a * u[..., None]).view(batch, groups, -1, state)  # (B, G, E / G, N)
    else:
        drive = (dt * u).view(batch, groups, -1, 1)
    fresh = drive * b.reshape(batch, groups, 1, state)
    h = torch.addcmul(fresh.view_as(rate), torch.exp(rate), h0.to(wide))
    y = (h.view(batch, groups, -1, state) * c.reshape(batch, groups, 1, state)).sum(-1).view(batch, width)
    if skip is not None:
        y = torch.addcmul(y, u, skip.to(wide))
    if gate is not None:
        y = y * F.silu(gate.to(wide))
    return y.to(dtype), h
