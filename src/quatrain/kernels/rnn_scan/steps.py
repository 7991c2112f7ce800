"""Elman scan in PyTorch, two operations in place per step; README.md derives the backward pass."""

from typing import Any

import torch
from torch import Tensor

from quatrain.kernels._autograd import call, first_order, no_autocast
from quatrain.kernels._check import wide_dtype
from quatrain.kernels._rows import Rows, first_rows


def scan(
    x: Tensor,
    weight: Tensor,
    h0: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `rnn_scan_reference`; sums and operands are float32 or wider.

    ``lengths`` and ``cu_seqlens`` are read on the host once.
    """
    y, h = call(_Scan, x, weight, h0, nonlinearity, Rows(x, lengths, cu_seqlens))
    return y, h


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, h0: Tensor | None, nonlinearity: str, rows: Rows
    ) -> tuple[Tensor, Tensor]:
        wide, alive = wide_dtype(x.dtype), rows.alive
        matrix = weight.to(wide).T
        start = rows.start(h0, x.shape[2], wide, x.device)
        states = torch.empty(alive + rows.total, x.shape[2], dtype=wide, device=x.device)
        states[:alive] = start[:alive]
        rows.gather(x, states[alive:])
        f = torch.Tensor.tanh_ if nonlinearity == "tanh" else torch.Tensor.relu_
        h = states[:alive]
        for step in rows.steps(states[alive:]):
            previous, h = first_rows(h, len(step)), step
            f(h.addmm_(previous, matrix))
        start[:alive] = rows.last(states[alive:])
        ctx.save_for_backward(weight, states)
        ctx.rows, ctx.tanh = rows, nonlinearity == "tanh"
        ctx.dtypes = (x.dtype, None if h0 is None else h0.dtype)
        return rows.scatter(states[alive:], x.dtype), rows.unrank(start)

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor, dh: Tensor) -> tuple[Tensor | None, ...]:
        weight, states = ctx.saved_tensors
        rows: Rows = ctx.rows
        x_dtype, h0_dtype = ctx.dtypes
        wide, alive = states.dtype, rows.alive
        matrix = weight.to(wide)
        h = states[alive:]
        grad = torch.empty_like(h)  # of h_t, then of what f is applied to
        rows.gather(dy, grad)
        start = rows.rank(dh).clone()
        rows.add_to_last(grad, start[:alive])
        slope = 1 - h * h if ctx.tanh else (h > 0).to(wide)
        with no_autocast(dy):
            later = grad[:0]
            for block, factor in zip(rows.steps(grad)[::-1], rows.steps(slope)[::-1], strict=True):
                first_rows(block, len(later)).addmm_(later, matrix)
                later = block.mul_(factor)
            torch.mm(later, matrix, out=start[:alive])
            d_weight = grad.T @ rows.before(states)
        dx = rows.scatter(grad, x_dtype)
        dh0 = None if h0_dtype is None else rows.unrank(start).to(h0_dtype)
        return dx, d_weight.to(weight.dtype), dh0, None, None
