"""Causal depthwise convolution in Triton, for GPUs that NVRTC does not reach.

A program makes a tile of steps and channels; states and their gradients have kernels of their own. The
gradients of weight and bias are summed over tiles in a fixed order: runs are equal bit for bit. No index
tensor is read on the host.
"""

from typing import Any

import torch
from torch import Tensor

from quatrain.kernels._autograd import call, first_order, recorded, traced
from quatrain.kernels._core._register import register
from quatrain.kernels._op import Arguments
from quatrain.kernels._triton import device_of, power_of_2, why_not_for

Optional = Tensor | None
_STEPS, _WIDEST = 32, 64  # of a tile


def why_not(arguments: Arguments) -> str | None:
    """Why the kernels cannot run these arguments; reads metadata only."""
    return why_not_for(arguments["x"])


class _Launch:
    """One call's arguments, dense, and the grids of its programs."""

    def __init__(self, *given: Any) -> None:
        x, weight, bias, h0, self.silu, lengths, bounds = given
        self.x, self.weight = x.contiguous(), weight.contiguous()
        self.bias, self.h0 = (None if one is None else one.contiguous() for one in (bias, h0))
        self.batch, self.time, self.channels = x.shape
        self.lengths, self.bounds = (
            None if one is None else one.to(torch.int64).contiguous() for one in (lengths, bounds)
        )
        self.index: Optional = None
        if self.bounds is not None:
            steps = torch.arange(self.time, device=x.device)
            ends = self.bounds[1:].contiguous()
            self.index = torch.searchsorted(ends, steps, right=True).clamp_(max=max(0, len(ends) - 1))
        self.sequences = self.batch if bounds is None else bounds.shape[0] - 1
        self.taps = weight.shape[1]
        self.E = min(_WIDEST, power_of_2(self.channels))
        blocks = -(-self.channels // self.E)
        self.tiles = (self.batch, -(-self.time // _STEPS), blocks)
        self.states = (self.sequences, blocks)

    def over_tiles(self, kernel: Any, *args: Any, **flags: Any) -> None:
        sizes = {"time": self.time, "channels": self.channels, "TAPS": self.taps, "T": _STEPS, "E": self.E}
        with device_of(self.x):
            if self.sequences:
                kernel[self.tiles](*args, **sizes, **flags)

    def over_states(self, kernel: Any, *args: Any) -> None:
        sizes = {"time": self.time, "channels": self.channels, "TAPS": self.taps, "E": self.E}
        with device_of(self.x):
            if self.sequences:
                kernel[self.states](*args, **sizes)

    def forward(self) -> tuple[Tensor, Tensor]:
        from quatrain.kernels.causal_conv import _triton_kernels as kernels

        y, last = _outputs(self.x, self.weight, self.sequences)
        where = (self.index, self.lengths, self.bounds)
        given = (self.x, self.weight, self.bias, self.h0)
        self.over_tiles(kernels.forward_kernel, *given, *where, y, SILU=self.silu)
        self.over_states(kernels.last_kernel, self.x, self.h0, self.lengths, self.bounds, last)
        return y, last

    def backward(self, dy: Tensor, dh: Optional) -> list[Optional]:
        """Gradients of x, weight, bias and h0."""
        from quatrain.kernels.causal_conv import _triton_kernels as kernels

        x, weight, where = self.x, self.weight, (self.index, self.lengths, self.bounds)
        dh = None if dh is None else dh.contiguous()
        dz = torch.empty(x.shape, dtype=torch.float32, device=x.device)
        parts = dz.new_empty(self.batch * self.tiles[1], self.taps + 1, self.channels)
        given = (x, weight, self.bias, self.h0)
        self.over_tiles(kernels.sums_kernel, *given, *where, dy.contiguous(), dz, parts, SILU=self.silu)
        dx = torch.empty_like(x)
        self.over_tiles(kernels.inputs_kernel, dz, weight, dh, *where, dx)
        dh0 = None if self.h0 is None else torch.empty_like(self.h0)
        if dh0 is not None:
            self.over_states(kernels.first_kernel, dz, weight, dh, self.lengths, self.bounds, dh0)
        sums = parts.sum(0)
        dweight = sums[:-1].T.to(weight.dtype).contiguous()
        return [dx, dweight, None if self.bias is None else sums[-1].to(self.bias.dtype), dh0]


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
        y, h = torch.ops.quatrain.causal_conv_triton(*args)
    elif recorded(x, weight, bias, h0):
        y, h = call(_Convolve, *args)
    else:
        y, h = forward(*args)
    return y, h


class _Convolve(torch.autograd.Function):
    """The op of torch.library without its dispatcher, for eager mode."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        _save(ctx, args, ())
        return forward(*args)

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Optional, dh: Optional) -> tuple[Optional, ...]:
        return _backward(ctx, dy, dh, run=backward)


def forward(*args: Any) -> tuple[Tensor, Tensor]:
    """y and the last inputs; arguments as of `convolve`, by position."""
    return _Launch(*args).forward()


def backward(dy: Tensor, dh: Optional, *args: Any) -> list[Tensor]:
    """Gradients of x, weight, bias and h0; an absent one's is empty."""
    return [dy.new_empty(0) if grad is None else grad for grad in _Launch(*args).backward(dy, dh)]


def _outputs(x: Tensor, weight: Tensor, sequences: int) -> tuple[Tensor, Tensor]:
    """Room for y, zeros where no program comes, and for the states."""
    y = x.new_empty(x.shape) if sequences else x.new_zeros(x.shape)
    return y, x.new_empty(sequences, weight.shape[1] - 1, x.shape[2])


def _fake_forward(*args: Any) -> tuple[Tensor, Tensor]:
    x, weight, bounds = args[0], args[1], args[-1]
    return _outputs(x, weight, x.shape[0] if bounds is None else bounds.shape[0] - 1)


def _fake_backward(dy: Tensor, dh: Optional, *args: Any) -> list[Tensor]:
    return [dy.new_empty(0) if x is None else x.new_empty(x.shape) for x in args[:4]]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, silu, lengths, bounds = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, lengths, bounds)
    ctx.silu = silu


def _backward(ctx: Any, dy: Optional, dh: Optional, run: Any = None) -> tuple[Optional, ...]:
    run = torch.ops.quatrain.causal_conv_triton_backward if run is None else run
    *tensors, lengths, bounds = ctx.saved_tensors
    dy = torch.zeros_like(tensors[0]) if dy is None else dy
    grads = run(dy, dh, *tensors, ctx.silu, lengths, bounds)
    given = (None if x is None else grad for x, grad in zip(tensors, grads, strict=True))
    return *given, None, None, None


_ARGUMENTS = (
    "Tensor x, Tensor weight, Tensor? bias, Tensor? h0, bool silu, Tensor? lengths, Tensor? cu_seqlens"
)
register(
    f"causal_conv_triton({_ARGUMENTS}) -> (Tensor, Tensor)",
    forward,
    _fake_forward,
    _save,
    _backward,
    "CUDA",
)
register(
    f"causal_conv_triton_backward(Tensor dy, Tensor? dh, {_ARGUMENTS}) -> Tensor[]",
    backward,
    _fake_backward,
    device="CUDA",
)
