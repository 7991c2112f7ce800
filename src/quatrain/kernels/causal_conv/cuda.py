"""Causal depthwise convolution in CUDA C++, compiled at run time; conv.cu holds the kernels.

Both passes are ops of torch.library, so that torch.compile takes them whole. No index tensor is read on the
host.
"""

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from quatrain.kernels import _nvrtc
from quatrain.kernels._autograd import call, first_order, recorded, traced
from quatrain.kernels._core._register import register
from quatrain.kernels._op import Arguments

Optional = Tensor | None

_POINTERS = (
    *("x", "h0", "dy", "dh", "weight", "bias", "lengths", "bounds"),
    *("y", "last", "dx", "dh0", "part", "dweight", "dbias"),
)
_LONGS = ("x_row", "dy_row", "dx_row", "batch", "time", "chunk", "chunks", "columns", "walks")
_INTS = ("x_step", "dy_step", "dx_step", "width", "sequences")
_THREADS = 128
_RESIDENT = {"conv_forward": 2048, "conv_backward": 1024}  # threads of a multiprocessor
_VECTOR = 2  # channels of a thread, where they lie so that they can be read at once
_LEAST_CHUNK, _UNIT = 16, 8  # steps
_MOST_STEP = 1 << 31


class Args(ctypes.Structure):
    """The kernels' argument: the same fields in the same order as in conv.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_longlong) for name in _LONGS),
        *((name, ctypes.c_int) for name in _INTS),
    )


def why_not(arguments: Arguments) -> str | None:
    """Why the kernels cannot run these arguments; reads metadata only."""
    x: Tensor = arguments["x"]
    return _nvrtc.why_not_for(x)


class Launch:
    """One call's arguments, ready for the kernels."""

    def __init__(self, *given: Any) -> None:
        x, weight, bias, h0, silu, lengths, cu_seqlens = given
        self.x, self.weight, self.bias = x, weight, bias
        self.batch, self.time, self.width = x.shape
        self.taps = weight.shape[1]
        self.sequences = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
        self.args, self._held = Args(), list[Tensor]()
        self._vector = _VECTOR
        if self.width % self._vector:
            self._vector = 1
        wide = any(p is not None and p.dtype is torch.float32 for p in (weight, bias))
        self.dtype = torch.float32 if wide else x.dtype
        self._data("x", x)
        for name, parameter in (("weight", weight), ("bias", bias)):
            self._set(name, None if parameter is None else parameter.to(self.dtype).contiguous())
        self._set("h0", None if h0 is None else h0.contiguous())
        for name, index in (("lengths", lengths), ("bounds", cu_seqlens)):
            self._set(name, None if index is None else index.to(torch.int64).contiguous())
        args = self.args
        args.batch, args.time, args.width = self.batch, self.time, self.width
        args.sequences = self.sequences
        self._flags = (("SILU", int(silu)), ("PACKED", int(cu_seqlens is not None)))

    def _set(self, name: str, x: Optional) -> None:
        if x is not None:
            self._held.append(x)
            setattr(self.args, name, x.data_ptr())
            if name not in ("weight", "bias", "lengths", "bounds", "part", "dweight", "dbias"):
                self._align(x)

    def _align(self, x: Tensor) -> None:
        if x.data_ptr() % (self._vector * x.element_size()):
            self._vector = 1

    def _data(self, name: str, x: Tensor) -> None:
        """A (B, T, E) tensor, whatever its strides; steps that are not dense are copied."""
        if (x.stride(2) != 1 and self.width > 1) or x.stride(1) >= _MOST_STEP:
            x = x.contiguous()
        row, step = x.stride(0) if self.batch > 1 else 0, x.stride(1) if self.time > 1 else 0
        if row % self._vector or step % self._vector:
            self._vector = 1
        self._set(name, x)
        setattr(self.args, f"{name}_row", row)
        setattr(self.args, f"{name}_step", step)

    def run(self, name: str, states: bool) -> "_nvrtc.Kernels":
        """Queue a kernel over all walks, and with ``states`` over the entries of a state."""
        args, device = self.args, self.x.device
        args.columns = self.width // self._vector
        room = _nvrtc.processors(device) * _RESIDENT[name]
        args.chunks, args.chunk = _plan(self.time, self.batch * args.columns, room)
        args.walks = self.batch * args.chunks * args.columns
        if name == "conv_backward":
            rows = self.batch * args.chunks
            self._set("part", self.x.new_empty(rows, self.taps + 1, self.width, dtype=torch.float32))
        defines = (
            ("DATA", _nvrtc.DATA[self.x.dtype]),
            ("WIDE", int(self.dtype is torch.float32)),
            ("TAPS", self.taps),
            ("VEC", self._vector),
            *self._flags,
        )
        kernels = _nvrtc.kernels(_source(), defines, device.index or 0)
        blocks = -(-args.walks // _THREADS)
        if states:
            blocks += -(-self.sequences * (self.taps - 1) * self.width // _THREADS)
        kernels.launch(name, blocks, _THREADS, 0, args)
        return kernels

    def forward(self) -> tuple[Tensor, Tensor]:
        y, last = _outputs(self.x, self.weight, self.sequences)
        self._set("y", y)
        self._set("last", last)
        self.run("conv_forward", states=True)
        return y, last

    def backward(self, dy: Tensor, dh: Optional, wants_h0: bool, dx: Optional = None) -> list[Optional]:
        """Gradients of x (into ``dx``, of any strides but the last, if given), weight, bias and h0."""
        x = self.x
        self._data("dy", dy.to(x.dtype))
        self._set("dh", None if dh is None else dh.to(x.dtype).contiguous())
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device) if dx is None else dx
        self._data("dx", dx)
        dweight = torch.empty(self.weight.shape, dtype=self.dtype, device=x.device)
        dbias = None if self.bias is None else dweight.new_empty(self.width)
        dh0 = _outputs(x, self.weight, self.sequences)[1] if wants_h0 else None
        for name, grad in (("dweight", dweight), ("dbias", dbias), ("dh0", dh0)):
            self._set(name, grad)
        kernels = self.run("conv_backward", states=wants_h0)
        blocks = -(-(self.taps + 1) * self.width // 32)
        kernels.launch("conv_sum", blocks, _THREADS, 4 * _THREADS, self.args)
        dbias = None if dbias is None or self.bias is None else dbias.to(self.bias.dtype)
        return [dx, dweight.to(self.weight.dtype), dbias, dh0]


@cache
def _plan(time: int, walks: int, room: int) -> tuple[int, int]:
    """Number of chunks and their steps: as many as fill the chip, none shorter than pays."""
    chunks = max(1, min(room // walks, time // _LEAST_CHUNK))
    steps = -(-time // chunks)
    steps = -(-steps // _UNIT) * _UNIT
    return -(-time // steps), steps


@cache
def _source() -> str:
    return _nvrtc.source("quatrain.kernels:_device.cuh", "quatrain.kernels.causal_conv:conv.cu")


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
    args = (x, weight, bias, h0, silu, lengths, cu_seqlens)
    if traced(x):
        y, h = torch.ops.quatrain.causal_conv_cuda(*args)
    elif recorded(x, weight, bias, h0):
        y, h = call(_Convolve, *args)
    else:
        y, h = forward(*args)
    return y, h


class _Convolve(torch.autograd.Function):
    """What torch.library's autograd does, in less time."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        _setup(ctx, args, ())
        return forward(*args)

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Optional, dh: Optional) -> tuple[Optional, ...]:
        x, weight, bias, h0, lengths, cu_seqlens = ctx.saved_tensors
        dy = torch.zeros_like(x) if dy is None else dy
        launch = Launch(x, weight, bias, h0, ctx.silu, lengths, cu_seqlens)
        return *launch.backward(dy, dh, h0 is not None), None, None, None


def forward(*args: Any) -> tuple[Tensor, Tensor]:
    """y and the last inputs; arguments as of `convolve`, by position."""
    return Launch(*args).forward()


def backward(dy: Tensor, dh: Optional, *args: Any) -> list[Tensor]:
    """Gradients of x, weight, bias and h0; an absent one's is empty."""
    grads = Launch(*args).backward(dy, dh, args[3] is not None)
    return [dy.new_empty(0) if grad is None else grad for grad in grads]


def _outputs(x: Tensor, weight: Tensor, sequences: int) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(sequences, weight.shape[1] - 1, x.shape[2])


def _fake_forward(*args: Any) -> tuple[Tensor, Tensor]:
    x, weight, cu_seqlens = args[0], args[1], args[-1]
    return _outputs(x, weight, x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1)


def _fake_backward(dy: Tensor, dh: Optional, *args: Any) -> list[Tensor]:
    return [dy.new_empty(0) if x is None else x.new_empty(x.shape) for x in args[:4]]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, h0, silu, lengths, cu_seqlens = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, bias, h0, lengths, cu_seqlens)
    ctx.silu = silu


def _traced_backward(ctx: Any, dy: Optional, dh: Optional) -> tuple[Optional, ...]:
    *tensors, lengths, cu_seqlens = ctx.saved_tensors
    dy = torch.zeros_like(tensors[0]) if dy is None else dy
    grads = torch.ops.quatrain.causal_conv_cuda_backward(dy, dh, *tensors, ctx.silu, lengths, cu_seqlens)
    given = [None if x is None else grad for x, grad in zip(tensors, grads, strict=True)]
    return *given, None, None, None


_ARGUMENTS = (
    "Tensor x, Tensor weight, Tensor? bias, Tensor? h0, bool silu, Tensor? lengths, Tensor? cu_seqlens"
)
register(
    f"causal_conv_cuda({_ARGUMENTS}) -> (Tensor, Tensor)",
    forward,
    _fake_forward,
    _setup,
    _traced_backward,
    device="CUDA",
)
register(
    f"causal_conv_cuda_backward(Tensor dy, Tensor? dh, {_ARGUMENTS}) -> Tensor[]",
    backward,
    _fake_backward,
    device="CUDA",
)
