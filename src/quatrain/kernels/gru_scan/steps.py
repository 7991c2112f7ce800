"""GRU scan in PyTorch, a few operations in place per step; README.md derives the backward pass."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from quatrain.kernels._autograd import call, first_order, no_autocast
from quatrain.kernels._check import wide_dtype
from quatrain.kernels._rows import Rows, first_rows


def scan(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    reset: str = "after",
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `gru_scan_reference`; sums and operands are float32 or wider.

    ``lengths`` and ``cu_seqlens`` are read on the host once.
    """
    y, h = call(_Scan, x, weight, bias, h0, reset == "after", Rows(x, lengths, cu_seqlens))
    return y, h


class _Factors(NamedTuple):
    """What the backward pass multiplies h's cotangent by; (rows, D) each unless said."""

    products: Tensor  # (rows, 3D): gives the cotangents of the products, or of r's part what is to come
    candidate: Tensor  # gives the cotangent of what tanh is applied to
    keep: Tensor  # z
    reset: Tensor  # r


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, h0: Tensor | None, after: bool, rows: Rows
    ) -> tuple[Tensor, Tensor]:
        wide, alive, width = wide_dtype(x.dtype), rows.alive, weight.shape[1]
        start = rows.start(h0, width, wide, x.device)
        gates = torch.empty(rows.total, 3 * width, dtype=wide, device=x.device)
        rows.gather(x, gates)
        inner = gates.new_empty(rows.total, width)  # U_n h + bias, or r h
        hs = gates.new_empty(alive + rows.total, width)
        hs[:alive] = start[:alive]
        of_gates, of_candidate = weight.to(wide).T.split_with_sizes((2 * width, width), dim=1)
        offset = gates.new_zeros(width) if bias is None else bias.to(wide)
        h = hs[:alive]
        views = (gates[:, : 2 * width], *gates.chunk(3, dim=1), inner, hs[alive:])
        for r_and_z, r, z, n, p, h_now in zip(*map(rows.steps, views), strict=True):
            before = first_rows(h, len(n))
            r_and_z.addmm_(before, of_gates).sigmoid_()
            if after:
                torch.addmm(offset, before, of_candidate, out=p)
                n.addcmul_(r, p)
            else:
                torch.mul(r, before, out=p)
                n.addmm_(p, of_candidate)
            h = torch.lerp(n.tanh_(), before, z, out=h_now)
        start[:alive] = rows.last(hs[alive:])
        ctx.save_for_backward(weight, gates, inner, hs)
        ctx.rows, ctx.after = rows, after
        ctx.dtypes = (x.dtype, *(None if s is None else s.dtype for s in (bias, h0)))
        return rows.scatter(hs[alive:], x.dtype), rows.unrank(start)

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor, dh: Tensor) -> tuple[Tensor | None, ...]:
        weight, gates, inner, hs = ctx.saved_tensors
        rows: Rows = ctx.rows
        after, width = ctx.after, weight.shape[1]
        matrix = weight.to(gates.dtype)
        h_before = rows.before(hs)
        factors = _factors(gates, inner, h_before, after)
        grad = torch.empty_like(inner)  # of h_t
        rows.gather(dy, grad)
        start = rows.rank(dh).clone()
        rows.add_to_last(grad, start[: rows.alive])
        with no_autocast(dy):
            (_back_after if after else _back_before)(rows, grad, factors, matrix, start[: rows.alive])
            d_products = factors.products
            if after:
                d_weight = d_products.T @ h_before
            else:
                d_gates, d_candidate = d_products.split_with_sizes((2 * width, width), dim=1)
                d_weight = torch.cat((d_gates.T @ h_before, d_candidate.T @ inner))
        x_dtype, bias_dtype, h0_dtype = ctx.dtypes
        d_bias = None if bias_dtype is None else d_products[:, 2 * width :].sum(0).to(bias_dtype)
        if after:  # the bias and the product stand inside the reset gate, x does not
            torch.mul(factors.candidate, grad, out=d_products[:, 2 * width :])
        d_h0 = None if h0_dtype is None else rows.unrank(start).to(h0_dtype)
        return rows.scatter(d_products, x_dtype), d_weight.to(weight.dtype), d_bias, d_h0, None, None


def _factors(gates: Tensor, inner: Tensor, h_before: Tensor, after: bool) -> _Factors:
    """All factors of the backward pass that need no cotangent."""
    r, z, n = gates.chunk(3, dim=1)
    products = torch.empty_like(gates)
    of_r, of_z, of_n = products.chunk(3, dim=1)
    candidate = (1 - z).mul_(1 - n * n)
    torch.mul(h_before - n, z, out=of_z).mul_(1 - z)
    torch.mul(r, 1 - r, out=of_r)
    if after:
        of_r.mul_(candidate).mul_(inner)
        torch.mul(candidate, r, out=of_n)
    else:
        of_r.mul_(h_before)
        of_n.copy_(candidate)
    return _Factors(products, candidate, z, r)


def _back_after(rows: Rows, grad: Tensor, factors: _Factors, matrix: Tensor, start: Tensor) -> None:
    """Turn ``grad``, the cotangents of y, into those of h, and ``factors.products`` into cotangents.

    ``start`` becomes the cotangent of the states before the first step.
    """
    parts = factors.products.view(len(grad), 3, -1)
    later, h_later, z_later = factors.products[:0], grad[:0], factors.keep[:0]
    views = (grad, factors.products, parts, factors.keep)
    steps = (rows.steps(view)[::-1] for view in views)
    for now, products, part, z in zip(*steps, strict=True):
        first_rows(now, len(later)).addmm_(later, matrix).addcmul_(h_later, z_later)
        part.mul_(now[:, None])
        later, h_later, z_later = products, now, z
    torch.mm(later, matrix, out=start).addcmul_(h_later, z_later)


def _back_before(rows: Rows, grad: Tensor, factors: _Factors, matrix: Tensor, start: Tensor) -> None:
    """As `_back_after`; the cotangent of r h needs a product of its own, and that of r waits for it."""
    width = matrix.shape[1]
    of_gates, of_candidate = matrix.split_with_sizes((2 * width, width))
    products = factors.products
    of_r, of_z, of_n = products.chunk(3, dim=1)
    empty = grad[:0]
    later, h_later, z_later, inner_later, r_later = products[:0, : 2 * width], empty, empty, empty, empty
    views = (grad, products[:, : 2 * width], of_r, of_z, of_n, factors.keep, factors.reset)
    steps = (rows.steps(view)[::-1] for view in views)
    for now, r_and_z, d_r, d_z, d_n, z, r in zip(*steps, strict=True):
        through = first_rows(now, len(later))
        through.addmm_(later, of_gates).addcmul_(h_later, z_later).addcmul_(inner_later, r_later)
        d_z.mul_(now)
        d_n.mul_(now)
        inner_later = d_n @ of_candidate
        d_r.mul_(inner_later)
        later, h_later, z_later, r_later = r_and_z, now, z, r
    torch.mm(later, of_gates, out=start).addcmul_(h_later, z_later).addcmul_(inner_later, r_later)
