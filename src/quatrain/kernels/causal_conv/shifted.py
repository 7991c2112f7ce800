"""Causal depthwise convolution as a sum of W shifted products; README.md derives the backward pass."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from quatrain.kernels._autograd import call, first_order
from quatrain.kernels._batch import mask, rows_and_steps
from quatrain.kernels._check import wide_dtype


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    silu: bool = False,
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `causal_conv_reference`. Nothing is read on the host."""
    taps = weight.shape[1]
    if cu_seqlens is not None:
        return _packed(x, weight, bias, h0, silu, cu_seqlens)
    seen = F.pad(x, (0, 0, taps - 1, 0)) if h0 is None else torch.cat((h0, x), dim=1)  # (B, W - 1 + T, E)
    row = torch.arange(len(x), device=x.device)[:, None]
    edge = torch.arange(taps - 1, device=x.device)
    if lengths is None:
        y, h = call(_Convolve, seen, weight, bias, silu, row, edge + x.shape[1])
        return y, h
    past = ~mask(lengths, x.shape[1])[..., None]
    seen = seen.masked_fill(F.pad(past, (0, 0, taps - 1, 0)), 0)
    y, h = call(_Convolve, seen, weight, bias, silu, row, edge + lengths.to(torch.int64)[:, None])
    return y.masked_fill(past, 0), h


def _packed(
    x: Tensor, weight: Tensor, bias: Tensor | None, h0: Tensor | None, silu: bool, cu_seqlens: Tensor
) -> tuple[Tensor, Tensor]:
    """Each sequence with its W - 1 earlier inputs in front of it, all in one row."""
    reach, total = weight.shape[1] - 1, x.shape[1]
    bounds = cu_seqlens.to(torch.int64)
    sequences = len(bounds) - 1
    row, _ = rows_and_steps(bounds, total)
    place = torch.arange(total, device=x.device) + reach * (row + 1)  # of each input
    edge = torch.arange(reach, device=x.device)
    numbers = torch.arange(sequences, device=x.device)[:, None]
    front = (bounds[:-1, None] + reach * numbers + edge).flatten()  # of the earlier inputs
    past = x.new_zeros(sequences, reach, x.shape[2]) if h0 is None else h0
    seen = x.new_zeros(total + sequences * reach, x.shape[2])
    seen = seen.index_copy(0, place, x[0]).index_copy(0, front, past.flatten(0, 1))
    last = bounds[1:, None] + reach * numbers + edge  # (S, W - 1)
    y, h = call(_Convolve, seen[None], weight, bias, silu, torch.zeros_like(last), last)
    return y[:, place - reach], h


class _Convolve(torch.autograd.Function):
    """``x (B, W - 1 + T, E)`` to (B, T, E), and the inputs at ``row``, ``step`` for the state.

    The state is a result of this function so that its cotangent joins the sum before that is rounded.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, row: Tensor, step: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, weight, bias, row, step)
        ctx.silu = silu
        z = _products(x, weight, bias)
        return (F.silu(z, inplace=True) if silu else z).to(x.dtype), x[row, step]

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor, dh: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, row, step = ctx.saved_tensors
        dz = dy.to(wide_dtype(x.dtype))
        if ctx.silu:
            z = _products(x, weight, bias)
            s = torch.sigmoid(z)
            dz = z.mul_(1 - s).add_(1).mul_(s).mul_(dz)  # s (1 + z (1 - s)) dz
        matrix, time = weight.to(dz.dtype), dy.shape[1]
        dx = dz.new_zeros(x.shape)
        d_weight = torch.empty_like(matrix)
        work = torch.empty_like(dz)
        for j in range(weight.shape[1]):
            dx[:, j : j + time].addcmul_(dz, matrix[:, j])
            d_weight[:, j] = torch.mul(dz, x[:, j : j + time], out=work).sum((0, 1))
        dx[row, step] += dh
        d_bias = None if bias is None else dz.sum((0, 1)).to(bias.dtype)
        return dx.to(x.dtype), d_weight.to(weight.dtype), d_bias, None, None, None


def _products(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """bias + sum_j weight_j x_{t + j}, wide."""
    wide, taps = wide_dtype(x.dtype), weight.shape[1]
    time = x.shape[1] - taps + 1
    x, matrix = x.to(wide), weight.to(wide)
    z = x[:, :time] * matrix[:, 0]
    for j in range(1, taps):
        z.addcmul_(x[:, j : j + time], matrix[:, j])
    return z if bias is None else z.add_(bias.to(wide))
