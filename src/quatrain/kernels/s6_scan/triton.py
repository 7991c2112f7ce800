"""S6 scan in Triton, for GPUs that NVRTC does not reach.

A program walks one sequence with a block of channels, all their states in registers. It keeps the states
before every `_MARK` steps; the backward pass makes those between again, into a scratch of its own. All sums
have a fixed order: runs are equal bit for bit. No index tensor is read on the host.
"""

from typing import Any

import torch
from torch import Tensor

from quatrain.kernels._autograd import call, first_order, no_autocast, recorded, traced
from quatrain.kernels._core._register import register
from quatrain.kernels._op import Arguments
from quatrain.kernels._triton import device_of, power_of_2, why_not_for

Optional = Tensor | None
_MARK = 32  # steps between two states that are kept
_BLOCK = 1024  # numbers of a program's states
_WIDEST = 64  # channels of a program


def _dense(x: Optional) -> Optional:
    return None if x is None else x.contiguous()


def _index(x: Optional) -> Optional:
    return None if x is None else x.to(torch.int64).contiguous()


def why_not(arguments: Arguments) -> str | None:
    """Why the kernels cannot run these arguments; reads metadata only."""
    return why_not_for(arguments["u"])


class _Launch:
    """One call's arguments, dense, and the grid of its programs."""

    def __init__(self, *given: Any) -> None:
        *tensors, self.softplus, self.zoh, lengths, bounds = given
        self.tensors = [_dense(x) for x in tensors]
        self.lengths, self.bounds = _index(lengths), _index(bounds)
        u, b = given[0], given[3]
        self.u: Tensor = u
        self.batch, self.time, self.channels = u.shape
        self.states = given[2].shape[1]
        self.groups = b.shape[2] if b.ndim == 4 else 1
        self.sequences = self.batch if bounds is None else bounds.shape[0] - 1
        self.N = power_of_2(self.states)
        width = self.channels // self.groups
        self.E = max(1, min(_WIDEST, _BLOCK // self.N, power_of_2(width)))
        self.grid = (self.sequences, self.groups, -(-width // self.E))
        self.sizes = {"time": self.time, "states": self.states, "groups": self.groups, "width": width}
        self.flags = {"SOFTPLUS": self.softplus, "ZOH": self.zoh, "MARK": _MARK, "E": self.E, "N": self.N}

    def empty(self, x: Tensor) -> Tensor:
        """Room for what is written once for every valid step; 0 at the others."""
        whole = self.lengths is None and self.bounds is None
        return x.new_empty(x.shape) if whole else x.new_zeros(x.shape)

    def run(self, kernel: Any, *args: Optional, **sizes: int) -> None:
        if self.sequences:
            with device_of(self.u):
                kernel[self.grid](*args, **self.sizes, **sizes, **self.flags)


def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last states, and with the last argument true the states before every few steps."""
    from quatrain.kernels.s6_scan import _triton_kernels as kernels

    run = _Launch(*args[:-1])
    u = args[0]
    y, (last, marks) = run.empty(u), _states(u, args[2], run.bounds, args[-1])
    made = (y, last, marks if args[-1] else None)
    run.run(kernels.forward_kernel, *run.tensors, run.lengths, run.bounds, *made)
    return y, last, marks


def _states(u: Tensor, a: Tensor, bounds: Optional, keep: bool) -> tuple[Tensor, Tensor]:
    """Room for the last states and for the marks, of which a sequence has one in `_MARK` steps."""
    batch, time, _ = u.shape
    sequences = batch if bounds is None else bounds.shape[0] - 1
    count = batch * -(-time // _MARK) if bounds is None else time // _MARK + sequences
    last = u.new_empty(sequences, *a.shape, dtype=torch.float32)
    return last, last.new_empty(count if keep else 0, *a.shape)


def backward(dy: Tensor, dh: Optional, marks: Tensor, *args: Any) -> list[Tensor]:
    """Gradients of the nine tensors; an absent one's is empty."""
    from quatrain.kernels.s6_scan import _triton_kernels as kernels

    run = _Launch(*args)
    u, _, a, b, c, skip, gate, bias, h0 = args[:9]

    def sums(x: Tensor, parts: int) -> Tensor:
        """Room for what programs leave of a gradient that is their sum."""
        return x.new_zeros(parts, *x.shape, dtype=torch.float32)

    du, ddelta = run.empty(u), run.empty(u)
    dgate = None if gate is None else run.empty(gate)
    da, db, dc = sums(a, run.sequences), sums(b, run.grid[2]), sums(c, run.grid[2])
    dskip, dbias = (None if x is None else sums(x, run.sequences) for x in (skip, bias))
    dh0 = None if h0 is None else h0.new_empty(h0.shape)
    programs = run.grid[0] * run.grid[1] * run.grid[2]
    scratch = u.new_empty(programs * _MARK * run.E * run.N, dtype=torch.float32)
    given = (*run.tensors[:8], run.lengths, run.bounds, marks)
    made = (du, ddelta, da, db, dc, dskip, dgate, dbias, dh0)
    run.run(kernels.backward_kernel, *given, _dense(dy), _dense(dh), *made, scratch, rows=run.batch)
    whole = [None if x is None else x.sum(0) for x in (da, db, dc, dskip, dbias)]
    pairs = zip((du, ddelta, *whole[:4], dgate, whole[4], dh0), args[:9], strict=True)
    return [dy.new_empty(0) if x is None or grad is None else grad.to(x.dtype) for grad, x in pairs]


def scan(
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Optional = None,
    gate: Optional = None,
    delta_bias: Optional = None,
    h0: Optional = None,
    *,
    softplus: bool = False,
    zoh: bool = False,
    lengths: Optional = None,
    cu_seqlens: Optional = None,
) -> tuple[Tensor, Tensor]:
    """See `s6_scan_reference`."""
    tensors = (u, delta, a, b, c, skip, gate, delta_bias, h0)
    flags, keep = (softplus, zoh, lengths, cu_seqlens), recorded(*tensors)
    if traced(u):
        y, h, _ = torch.ops.quatrain.s6_scan_triton(*tensors, *flags, keep)
    elif keep:
        y, h = call(_Scan, *tensors, *flags)
    else:
        y, h, _ = forward(*tensors, *flags, False)
    return y, h


class _Scan(torch.autograd.Function):
    """The op of torch.library without its dispatcher, for eager mode."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        y, h, marks = forward(*args, True)
        _save(ctx, (*args, True), (y, h, marks))
        return y, h

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Optional, dh: Optional) -> tuple[Optional, ...]:
        with no_autocast(ctx.saved_tensors[0]):
            return _backward(ctx, dy, dh, None, run=backward)[:-1]


def _fake_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    u, a, bounds, keep = args[0], args[2], args[-2], args[-1]
    return u.new_empty(u.shape), *_states(u, a, bounds, keep)


def _fake_backward(dy: Tensor, dh: Optional, marks: Tensor, *args: Any) -> list[Tensor]:
    return [dy.new_empty(0) if x is None else x.new_empty(x.shape) for x in args[:9]]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, softplus, zoh, lengths, bounds, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.flags = (softplus, zoh)
    ctx.save_for_backward(*tensors, lengths, bounds, output[2])


def _backward(ctx: Any, dy: Optional, dh: Optional, _: Optional, run: Any = None) -> tuple[Optional, ...]:
    run = torch.ops.quatrain.s6_scan_triton_backward if run is None else run
    *tensors, lengths, bounds, marks = ctx.saved_tensors
    dy = torch.zeros_like(tensors[0]) if dy is None else dy
    grads = run(dy, dh, marks, *tensors, *ctx.flags, lengths, bounds)
    given = (None if x is None else grad for x, grad in zip(tensors, grads, strict=True))
    return *given, None, None, None, None, None


_ARGUMENTS = (
    "Tensor u, Tensor delta, Tensor a, Tensor b, Tensor c, Tensor? skip, Tensor? gate, Tensor? delta_bias, "
    "Tensor? h0, bool softplus, bool zoh, Tensor? lengths, Tensor? cu_seqlens"
)
register(
    f"s6_scan_triton({_ARGUMENTS}, bool keep) -> (Tensor, Tensor, Tensor)",
    forward,
    _fake_forward,
    _save,
    _backward,
    "CUDA",
)
register(
    f"s6_scan_triton_backward(Tensor dy, Tensor? dh, Tensor marks, {_ARGUMENTS}) -> Tensor[]",
    backward,
    _fake_backward,
    device="CUDA",
)
