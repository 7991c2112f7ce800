"""Diagonal linear time-invariant systems: kernel, response to an initial state, last state.

h_t = exp(r) h_{t-1} + drive u_t,  y_t = Re(sum_m c_m h_tm), with one rate r (negative real part) per channel
and mode, real or complex. Powers exp(r t) for t < T are never held for every t: t = i J + j splits them into
exp(r J i) and exp(r j), about sqrt(T) values each, and the sums over modes or steps become matrix products of
these two.
"""

from math import isqrt

import torch
from torch import Tensor
from torch.nn import functional as F


def powers(rate: Tensor, time: int) -> tuple[Tensor, Tensor]:
    """exp(rate J i) as (E, I, M) and exp(rate j) as (E, M, J), with I J >= time; ``rate`` (E, M)."""
    inner = isqrt(time - 1) + 1
    outer = -(-time // inner)
    i = torch.arange(outer, device=rate.device)[:, None] * inner  # (I, 1)
    j = torch.arange(inner, device=rate.device)  # (J,)
    return torch.exp(rate[:, None, :] * i), torch.exp(rate[..., None] * j)


def impulse_response(coarse: Tensor, fine: Tensor, c: Tensor, drive: Tensor, time: int) -> Tensor:
    """k_t = Re(sum_m c_m drive_m exp(r_m t)): (E, T) from `powers` and ``c``, ``drive`` (E, M). Cost E T
    M.
    """
    split = (coarse * (c * drive)[:, None, :]) @ fine  # (E, I, J)
    return _real(split).flatten(1)[:, :time]


def free_response(coarse: Tensor, fine: Tensor, c: Tensor, rate: Tensor, h0: Tensor, time: int) -> Tensor:
    """y_t = Re(sum_m c_m exp(r_m (t + 1)) h0_m), what ``h0 (B, E, M)`` adds to the output: (B, T, E). Cost B
    E T M.
    """
    first = c * torch.exp(rate) * h0  # (B, E, M)
    split = (coarse * first[:, :, None, :]) @ fine  # (B, E, I, J)
    return _real(split).flatten(2)[:, :, :time].transpose(1, 2)


def last_state(
    coarse: Tensor,
    fine: Tensor,
    rate: Tensor,
    drive: Tensor,
    u: Tensor,
    h0: Tensor | None,
    lengths: Tensor | None,
) -> Tensor:
    """h = exp(r L) h0 + drive sum_s exp(r s) u_{L-1-s}: (B, E, M) after L = lengths (or T) steps. Cost B E T
    M.

    ``u (B, T, E)`` is read backwards from each row's own last step.
    """
    batch, time, channels = u.shape
    if lengths is None:
        back = u.flip(1)
        steps = torch.full((batch,), time, device=u.device)
    else:
        steps = lengths
        source = steps[:, None] - 1 - torch.arange(time, device=u.device)  # (B, T)
        rows = torch.arange(batch, device=u.device)[:, None]
        back = u[rows, source.clamp(min=0)].masked_fill((source < 0)[..., None], 0)
    outer, inner = coarse.shape[1], fine.shape[2]
    back = F.pad(back.transpose(1, 2), (0, outer * inner - time))  # (B, E, I J)
    blocks = back.reshape(batch, channels, outer, inner)
    if fine.is_complex():  # a real matrix product with (real, imaginary) columns costs half of a complex one
        table = torch.view_as_real(fine.transpose(1, 2).contiguous()).flatten(2)  # (E, J, 2M)
        sums = torch.view_as_complex((blocks @ table).reshape(batch, channels, outer, -1, 2))  # (B, E, I, M)
    else:
        sums = blocks @ fine.transpose(1, 2)  # (B, E, I, M)
    h = drive * (sums * coarse).sum(2)
    if h0 is not None:
        h = h + torch.exp(rate * steps[:, None, None]) * h0
    return h


def _real(x: Tensor) -> Tensor:
    return x.real if x.is_complex() else x
