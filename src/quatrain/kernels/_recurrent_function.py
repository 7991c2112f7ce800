"""The C++ recurrent scans for autograd and for torch.compile."""

from typing import Any

import torch
from torch import Tensor

from quatrain.kernels._autograd import call, first_order
from quatrain.kernels._recurrent import KINDS, Kind, Saved, backward, forward, layout


def scan(
    kind: Kind,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    variant: int,
    lengths: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, ...]:
    """y, h and, for an LSTM, c."""
    if torch.compiler.is_compiling():
        y, h, c, *_ = _forward_op(kind.key, variant, x, weight, bias, h0, c0, lengths, cu_seqlens)
        return (y, h, c) if kind.cell else (y, h)
    results: tuple[Tensor, ...] = call(_Scan, kind, variant, x, weight, bias, h0, c0, lengths, cu_seqlens)
    return results


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kind: Kind,
        variant: int,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        h0: Tensor | None,
        c0: Tensor | None,
        lengths: Tensor | None,
        cu_seqlens: Tensor | None,
    ) -> tuple[Tensor, ...]:
        keep = any(ctx.needs_input_grad)
        saved = forward(kind, x, weight, bias, h0, c0, variant, lengths, cu_seqlens, keep)
        if keep:
            kept = (saved.gates, saved.cells, saved.inner, None if saved.states is saved.y else saved.states)
            ctx.save_for_backward(saved.y, *kept, weight, bias, h0, c0, lengths, cu_seqlens)
            ctx.kind, ctx.variant = kind, variant
        if saved.c is None:
            return saved.y, saved.h
        return saved.y, saved.h, saved.c

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor, dh: Tensor, dc: Tensor | None = None) -> tuple[Any, ...]:
        y, gates, cells, inner, states, weight, bias, h0, c0, lengths, cu_seqlens = ctx.saved_tensors
        kind: Kind = ctx.kind
        states = y if kind.states and states is None else states
        saved = Saved(y, dh, dc, gates, cells, inner, states)
        grads = backward(kind, saved, weight, bias, h0, c0, ctx.variant, lengths, cu_seqlens, dy, dh, dc)
        of_h0 = None if h0 is None else grads.h0.to(h0.dtype)
        of_c0 = None if c0 is None or grads.c0 is None else grads.c0.to(c0.dtype)
        return None, None, grads.x, grads.weight, grads.bias, of_h0, of_c0, None, None


# -- the same as operators that torch.compile can trace; an absent tensor is an empty one


def _filled(x: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if x is None else x


def _present(x: Tensor) -> Tensor | None:
    return x if x.numel() else None


@torch.library.custom_op("quatrain::recurrent_scan", mutates_args=())
def _forward_op(
    kind: str,
    variant: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    lengths: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    saved = forward(KINDS[kind], x, weight, bias, h0, c0, variant, lengths, cu_seqlens, True)
    states = None if saved.states is saved.y else saved.states
    kept = (saved.c, saved.gates, saved.cells, saved.inner, states)
    c, gates, cells, inner, states = (_filled(tensor, x) for tensor in kept)
    return saved.y, saved.h, c, gates, cells, inner, states


@_forward_op.register_fake
def _(
    kind: str,
    variant: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    lengths: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    shapes = layout(KINDS[kind], x, weight.shape[1], cu_seqlens, keep=True)
    y, h, c, gates, cells, inner, states = (
        x.new_empty(0) if shape is None else x.new_empty(shape[0], dtype=shape[1]) for shape in shapes
    )
    return y, h, c, gates, cells, inner, states


@torch.library.custom_op("quatrain::recurrent_scan_backward", mutates_args=())
def _backward_op(
    kind: str,
    variant: int,
    kept: list[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    lengths: Tensor | None,
    cu_seqlens: Tensor | None,
    dy: Tensor,
    dh: Tensor,
    dc: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    y, *rest = kept
    gates, cells, inner, states = map(_present, rest)
    of = KINDS[kind]
    if of.states and states is None:
        states = y
    saved = Saved(y, dh, None, gates, cells, inner, states)
    grads = backward(
        of, saved, weight, bias, h0, c0, variant, lengths, cu_seqlens, dy, dh, dc if of.cell else None
    )
    return grads.x, grads.weight, _filled(grads.bias, y), grads.h0, _filled(grads.c0, y)


@_backward_op.register_fake
def _(
    kind: str,
    variant: int,
    kept: list[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    lengths: Tensor | None,
    cu_seqlens: Tensor | None,
    dy: Tensor,
    dh: Tensor,
    dc: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    y = kept[0]
    of = KINDS[kind]
    state = torch.empty_like(dh)
    return (
        y.new_empty(*y.shape[:2], of.gates * y.shape[2]),
        torch.empty_like(weight),
        y.new_empty(0) if bias is None else torch.empty_like(bias),
        state,
        torch.empty_like(dh) if of.cell else y.new_empty(0),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    kind, variant, _, weight, bias, h0, c0, lengths, cu_seqlens = inputs
    y, _, _, *kept = output
    ctx.save_for_backward(y, *kept, weight, bias, h0, c0, lengths, cu_seqlens)
    ctx.kind, ctx.variant = kind, variant


def _backward_of_op(ctx: Any, dy: Tensor, dh: Tensor, dc: Tensor, *_: Any) -> tuple[Any, ...]:
    *kept, weight, bias, h0, c0, lengths, cu_seqlens = ctx.saved_tensors
    dx, d_weight, d_bias, d_h0, d_c0 = _backward_op(
        ctx.kind, ctx.variant, kept, weight, bias, h0, c0, lengths, cu_seqlens, dy, dh, dc
    )
    return (
        None,
        None,
        dx,
        d_weight,
        None if bias is None else d_bias,
        None if h0 is None else d_h0.to(h0.dtype),
        None if c0 is None else d_c0.to(c0.dtype),
        None,
        None,
    )


_forward_op.register_autograd(_backward_of_op, setup_context=_setup)
