"""LSTM scan in PyTorch, a few operations in place per step; README.md derives the backward pass."""

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
    c0: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `lstm_scan_reference`; sums and operands are float32 or wider.

    ``lengths`` and ``cu_seqlens`` are read on the host once.
    """
    y, h, c = call(_Scan, x, weight, h0, c0, Rows(x, lengths, cu_seqlens))
    return y, h, c


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, h0: Tensor | None, c0: Tensor | None, rows: Rows
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide, alive, width = wide_dtype(x.dtype), rows.alive, weight.shape[1]
        matrix = weight.to(wide).T
        h_start, c_start = (rows.start(s, width, wide, x.device) for s in (h0, c0))
        gates = torch.empty(rows.total, 4 * width, dtype=wide, device=x.device)
        rows.gather(x, gates)
        hs, cs = gates.new_empty(2, alive + rows.total, width).unbind(0)
        hs[:alive], cs[:alive] = h_start[:alive], c_start[:alive]
        h, c, bent = hs[:alive], cs[:alive], torch.empty_like(c_start)
        views = (gates, gates[:, : 2 * width], *gates.chunk(4, dim=1), hs[alive:], cs[alive:])
        for z, i_and_f, i, f, g, o, h_now, c_now in zip(*map(rows.steps, views), strict=True):
            n = len(z)
            z.addmm_(first_rows(h, n), matrix)
            i_and_f.sigmoid_()
            g.tanh_()
            o.sigmoid_()
            torch.mul(f, first_rows(c, n), out=c_now).addcmul_(i, g)
            torch.mul(o, torch.tanh(c_now, out=first_rows(bent, n)), out=h_now)
            h, c = h_now, c_now
        h_start[:alive], c_start[:alive] = rows.last(hs[alive:]), rows.last(cs[alive:])
        ctx.save_for_backward(weight, gates, hs, cs)
        ctx.rows = rows
        ctx.dtypes = (x.dtype, *(None if s is None else s.dtype for s in (h0, c0)))
        return rows.scatter(hs[alive:], x.dtype), rows.unrank(h_start), rows.unrank(c_start)

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor, dh: Tensor, dc: Tensor) -> tuple[Tensor | None, ...]:
        weight, gates, hs, cs = ctx.saved_tensors
        rows: Rows = ctx.rows
        alive, width = rows.alive, weight.shape[1]
        matrix = weight.to(gates.dtype)
        slopes, cell_slope = _slopes(gates, cs[alive:], rows.before(cs))
        grad = torch.empty_like(cell_slope)  # of h_t
        rows.gather(dy, grad)
        h_start, c_start = rows.rank(dh).clone(), rows.rank(dc).clone()
        rows.add_to_last(grad, h_start[:alive])
        with no_autocast(dy):
            later = slopes[:0]
            parts = slopes.view(rows.total, 4, width)  # they become the gradients of x
            views = (grad, cell_slope, slopes, parts[:, :3], parts[:, 3], gates[:, width : 2 * width])
            steps = (rows.steps(view)[::-1] for view in views)
            for through_h, cell, now, of_ifg, of_o, f in zip(*steps, strict=True):
                first_rows(through_h, len(later)).addmm_(later, matrix)
                through_c = first_rows(c_start, len(now)).addcmul_(through_h, cell)
                of_ifg.mul_(through_c[:, None])
                of_o.mul_(through_h)
                through_c.mul_(f)
                later = now
            torch.mm(later, matrix, out=h_start[:alive])
            d_weight = slopes.T @ rows.before(hs)
        x_dtype, *state_dtypes = ctx.dtypes
        d_states = (
            None if dtype is None else rows.unrank(start).to(dtype)
            for start, dtype in zip((h_start, c_start), state_dtypes, strict=True)
        )
        return rows.scatter(slopes, x_dtype), d_weight.to(weight.dtype), *d_states, None


def _slopes(gates: Tensor, c: Tensor, c_before: Tensor) -> tuple[Tensor, Tensor]:
    """All factors of the backward pass that need no cotangent.

    Returns (rows, 4D), of c_t by the inputs of gates i, f, g and of h_t by that of o; and (rows, D), of h_t
    by c_t.
    """
    i, f, g, o = gates.chunk(4, dim=1)
    bent = torch.tanh(c)
    slopes = torch.empty_like(gates)
    of_i, of_f, of_g, of_o = slopes.chunk(4, dim=1)
    for out, gate, factor in ((of_i, i, g), (of_f, f, c_before), (of_o, o, bent)):
        torch.mul(gate, factor, out=out)
        out.addcmul_(out, gate, value=-1)  # factor gate (1 - gate)
    torch.mul(i, g, out=of_g).mul_(g).neg_().add_(i)  # i (1 - g^2)
    return slopes, bent.mul_(bent).neg_().add_(1).mul_(o)
