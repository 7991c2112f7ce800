"""S6 scan in the C++ core; README.md derives it. The forward pass keeps the states before each tile of steps."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from quatrain.kernels import _core
from quatrain.kernels._autograd import call, recorded
from quatrain.kernels._check import wide_dtype
from quatrain.kernels._op import Arguments

LARGEST_STATE = 256

Optional = Tensor | None
_Tensors = Sequence[Any]  # u, delta, a, b, c, skip, gate, delta_bias, h0


def why_not(arguments: Arguments) -> str | None:
    """Why the core cannot run these arguments; reads metadata only."""
    u, a = arguments["u"], arguments["a"]
    if u.device.type != "cpu":
        return f"runs on a CPU, not on {u.device.type}"
    if a.shape[1] > LARGEST_STATE:
        return f"N = {a.shape[1]} is above {LARGEST_STATE}"
    return _core.missing()


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
    keep = recorded(*tensors)
    if torch.compiler.is_compiling():
        y, h, _ = torch.ops.quatrain.s6_scan(*tensors, softplus, zoh, lengths, cu_seqlens, keep)
    elif keep:
        y, h = call(_Scan, *tensors, softplus, zoh, lengths, cu_seqlens)
    else:
        y, h, _ = forward(*tensors, softplus, zoh, lengths, cu_seqlens, False)
    return y, h


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        y, h, bounds = forward(*args, True)
        *tensors, softplus, zoh, lengths, cu_seqlens = args
        ctx.save_for_backward(*tensors, lengths, cu_seqlens, bounds)
        ctx.flags = (softplus, zoh)
        return y, h

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor, dh: Tensor) -> tuple[Optional, ...]:
        *tensors, lengths, cu_seqlens, bounds = ctx.saved_tensors
        return *backward(dy, dh, *tensors, *ctx.flags, lengths, cu_seqlens, bounds), None, None, None, None


class _Call:
    """The argument structure of one call (``S6Args``) and the tensors that its pointers need alive."""

    def __init__(
        self, tensors: _Tensors, softplus: bool, zoh: bool, lengths: Optional, cu_seqlens: Optional
    ) -> None:
        u, delta, a, b, c, skip, gate, bias, h0 = tensors
        self.wide = wide_dtype(u.dtype)
        batch, time, width = u.shape
        self.b, self.c = (x if x.ndim == 4 else x.unsqueeze(2) for x in (b, c))  # (B, T, G, N)
        self.first, self.length = _places(lengths, cu_seqlens)
        self.sequences = batch if cu_seqlens is None else len(cu_seqlens) - 1
        self.state = a.shape[1]
        self.sizes = [
            *(_core.threads(), int(softplus), int(zoh), _core.DTYPES[self.wide]),
            *(batch, time, width, self.state, self.b.shape[2], self.sequences, int(cu_seqlens is not None)),
            0 if self.first is None else self.first.data_ptr(),
            0 if self.length is None else self.length.data_ptr(),
        ]
        self.inputs = [
            part for x in (u, delta, a, self.b, self.c, skip, gate, bias, h0) for part in _core.tensor(x)
        ]

    def plan(self, name: str) -> tuple[int, int]:
        """Numbers of the wide type in the kept states and in the work space."""
        return _core.sizes(name, [*self.sizes, 0, 0, 0, 0], (len(self.sizes) + 2, len(self.sizes) + 3))

    def run(self, name: str, bounds: Optional, work: Optional, *more: Optional) -> None:
        pointers = [0 if x is None else x.data_ptr() for x in (bounds, work)]
        rest = [part for x in more for part in _core.tensor(x)]
        _core.run(name, [*self.sizes, *pointers, 0, 0, *self.inputs, *rest])


def _places(lengths: Optional, cu_seqlens: Optional) -> tuple[Optional, Optional]:
    """First step and length of each sequence as dense int64 tensors."""
    if cu_seqlens is not None:
        bounds = cu_seqlens.to(torch.int64)
        return bounds[:-1].contiguous(), bounds.diff()
    return None, None if lengths is None else lengths.to(torch.int64).contiguous()


def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """y, h and the kept states (empty unless the last argument asks for them)."""
    *tensors, softplus, zoh, lengths, cu_seqlens, keep = args
    u = tensors[0]
    this = _Call(tensors, softplus, zoh, lengths, cu_seqlens)
    bounds_size, work_size = this.plan("qt_s6_plan_forward")
    y = torch.empty(u.shape, dtype=u.dtype)
    h = torch.empty(this.sequences, u.shape[2], this.state, dtype=this.wide)
    bounds = torch.empty(bounds_size if keep else 0, dtype=this.wide)
    work = torch.empty(work_size, dtype=this.wide) if work_size else None
    this.run("qt_s6_forward", bounds if keep else None, work, y, h, *(None,) * 11)
    return y, h, bounds


def backward(dy: Tensor, dh: Tensor, *args: Any) -> list[Optional]:
    """Gradients of the nine tensors, None for absent ones."""
    *tensors, softplus, zoh, lengths, cu_seqlens, bounds = args
    this = _Call(tensors, softplus, zoh, lengths, cu_seqlens)
    _, work_size = this.plan("qt_s6_plan_backward")
    work = torch.empty(work_size, dtype=this.wide)
    grads = [None if x is None else torch.empty(x.shape, dtype=x.dtype) for x in tensors]
    d_u, d_delta, d_a, d_b, d_c, d_skip, d_gate, d_bias, d_h0 = grads
    maps = [x.view_as(like) for x, like in ((d_b, this.b), (d_c, this.c)) if x is not None]
    more = (d_u, d_delta, d_a, *maps, d_skip, d_gate, d_bias, d_h0)
    this.run("qt_s6_backward", bounds, work, None, None, dy, dh, *more)
    return grads
