"""S6 step in the C++ core: one call. Under autograd it is the scan at T = 1."""

import torch
from torch import Tensor

from quatrain.kernels import _core
from quatrain.kernels._autograd import recorded
from quatrain.kernels._check import wide_dtype
from quatrain.kernels.s6_scan.cpu import scan, why_not

__all__ = ["step", "why_not"]


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
    """See `s6_step_reference`."""
    if torch.compiler.is_compiling() or recorded(u, delta, a, b, c, skip, gate, delta_bias, h0):
        lifted = (u[:, None], delta[:, None], a, b[:, None], c[:, None], skip)
        later = (None if gate is None else gate[:, None], delta_bias, h0)
        y, h = scan(*lifted, *later, softplus=softplus, zoh=zoh)
        return y[:, 0], h
    batch, width = u.shape
    wide = wide_dtype(u.dtype)
    y = torch.empty((batch, width), dtype=u.dtype)
    h = torch.empty((batch, width, a.shape[1]), dtype=wide)
    grouped = b.ndim == 3
    maps = (b, c) if grouped else (b.unsqueeze(1), c.unsqueeze(1))  # (B, G, N)
    sizes = (batch, width, a.shape[1], b.shape[1] if grouped else 1)
    values = [_core.threads(), int(softplus), int(zoh), _core.DTYPES[wide], *sizes]
    for x in (u, delta, a, *maps, skip, gate, delta_bias, h0, y, h):
        values += _core.tensor(x)
    _core.run("qt_s6_step", values)
    return y, h
