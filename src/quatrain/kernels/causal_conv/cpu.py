"""Causal depthwise convolution in the C++ core; README.md derives the backward pass."""

from typing import Any

import torch
from torch import Tensor

from quatrain.kernels import _core, _pool
from quatrain.kernels._autograd import call, first_order, recorded
from quatrain.kernels._check import wide_dtype
from quatrain.kernels._core._register import register
from quatrain.kernels._op import Arguments

Optional = Tensor | None


def why_not(arguments: Arguments) -> str | None:
    """Why the core cannot run these arguments; reads metadata only."""
    device = arguments["x"].device.type
    return _core.missing() if device == "cpu" else f"runs on a CPU, not on {device}"


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Optional = None,
    h0: Optional = None,
    *,
    silu: bool = False,
    lengths: Optional = None,
    cu_seqlens: Optional = None,
) -> tuple[Tensor, Tensor]:
    """See `causal_conv_reference`."""
    if torch.compiler.is_compiling():
        y, h = torch.ops.quatrain.causal_conv(x, weight, bias, h0, silu, lengths, cu_seqlens)
    elif recorded(x, weight, bias, h0):
        y, h = call(_Convolve, x, weight, bias, h0, silu, lengths, cu_seqlens)
    else:
        y, h = forward(x, weight, bias, h0, silu, lengths, cu_seqlens)
    return y, h


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        x, weight, bias, h0, silu, lengths, cu_seqlens = args
        ctx.save_for_backward(x, weight, bias, h0, lengths, cu_seqlens)
        ctx.silu = silu
        return forward(*args)

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor, dh: Tensor) -> tuple[Optional, ...]:
        x, weight, bias, h0, lengths, cu_seqlens = ctx.saved_tensors
        grads = backward(dy, dh, x, weight, bias, h0, ctx.silu, lengths, cu_seqlens)
        return *grads, None, None, None


class _Call:
    """The argument structure of one call (``ConvArgs``) and the tensors that its pointers need alive."""

    def __init__(self, *args: Any) -> None:
        x, weight, bias, h0, silu, lengths, cu_seqlens = args
        self.wide = wide_dtype(x.dtype)
        self.places = _core.places(lengths, cu_seqlens)
        packed = cu_seqlens is not None
        self.sequences = len(cu_seqlens) - 1 if packed else x.shape[0]
        self.sizes = [
            *(_core.threads(), int(silu), _core.DTYPES[self.wide]),
            *(*x.shape, weight.shape[1], self.sequences, int(packed)),
            *(0 if place is None else place.data_ptr() for place in self.places),
        ]
        self.inputs = [part for tensor in (x, weight, bias, h0) for part in _core.tensor(tensor)]

    def run(self, name: str, work: Optional, *more: Optional) -> None:
        rest = [part for tensor in more for part in _core.tensor(tensor)]
        _core.run(name, [*self.sizes, 0 if work is None else work.data_ptr(), 0, *self.inputs, *rest])


def forward(*args: Any) -> tuple[Tensor, Tensor]:
    """y and the last inputs; arguments as of `convolve`, by position."""
    x, weight = args[:2]
    this = _Call(*args)
    y = _pool.empty(x.shape, x.dtype)
    h = _pool.empty((this.sequences, weight.shape[1] - 1, x.shape[2]), x.dtype)
    this.run("qt_conv_forward", None, y, h, *(None,) * 6)
    return y, h


def backward(dy: Tensor, dh: Tensor, *args: Any) -> list[Optional]:
    """Gradients of x, weight, bias and h0, None for absent ones."""
    this = _Call(*args)
    (size,) = _core.sizes("qt_conv_plan", [*this.sizes, 0, 0], (len(this.sizes) + 1,))
    work = _pool.empty((size,), this.wide)
    grads = [None if x is None else _pool.empty(x.shape, x.dtype) for x in args[:4]]
    this.run("qt_conv_backward", work, None, None, dy, dh, *grads)
    return grads


# -- for torch.compile: the two passes as ops of their own


def _fake_forward(*args: Any) -> tuple[Tensor, Tensor]:
    x, weight, cu_seqlens = args[0], args[1], args[-1]
    sequences = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return x.new_empty(x.shape), x.new_empty(sequences, weight.shape[1] - 1, x.shape[2])


def _backward_list(*args: Any) -> list[Tensor]:
    empty = args[0].new_empty(0)  # stands for an absent one: a list of a schema holds tensors only
    return [empty if grad is None else grad for grad in backward(*args)]


def _fake_backward(dy: Tensor, dh: Tensor, *args: Any) -> list[Tensor]:
    return [dy.new_empty(0) if x is None else x.new_empty(x.shape) for x in args[:4]]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, h0, silu, lengths, cu_seqlens = inputs
    ctx.save_for_backward(x, weight, bias, h0, lengths, cu_seqlens)
    ctx.silu = silu


def _traced_backward(ctx: Any, dy: Tensor, dh: Tensor) -> tuple[Optional, ...]:
    *tensors, lengths, cu_seqlens = ctx.saved_tensors
    grads = torch.ops.quatrain.causal_conv_backward(dy, dh, *tensors, ctx.silu, lengths, cu_seqlens)
    given = [None if x is None else grad for x, grad in zip(tensors, grads, strict=True)]
    return *given, None, None, None


_ARGUMENTS = (
    "Tensor x, Tensor weight, Tensor? bias, Tensor? h0, bool silu, Tensor? lengths, Tensor? cu_seqlens"
)
register(f"causal_conv({_ARGUMENTS}) -> (Tensor, Tensor)", forward, _fake_forward, _setup, _traced_backward)
register(
    f"causal_conv_backward(Tensor dy, Tensor dh, {_ARGUMENTS}) -> Tensor[]", _backward_list, _fake_backward
)
