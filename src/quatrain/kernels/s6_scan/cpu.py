"""S6 scan in the C++ core, derived in README.md; forward keeps the states before each tile of steps."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from quatrain.kernels import _core, _pool
from quatrain.kernels._autograd import call, first_order, recorded
from quatrain.kernels._check import wide_dtype
from quatrain.kernels._core._register import register
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
    reason: str | None = _core.missing()
    return reason


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
    @first_order
    def backward(ctx: Any, dy: Tensor, dh: Tensor) -> tuple[Optional, ...]:
        *tensors, lengths, cu_seqlens, bounds = ctx.saved_tensors
        return *backward(dy, dh, *tensors, *ctx.flags, lengths, cu_seqlens, bounds), None, None, None, None


class _Call:
    """The argument structure of one call (``S6Args``) and the tensors that its pointers need alive."""

    def __init__(
        self,
        tensors: _Tensors,
        softplus: bool,
        zoh: bool,
        lengths: Optional,
        cu_seqlens: Optional,
        fake: bool = False,  # sizes only: the tensors have no memory
    ) -> None:
        u, delta, a, b, c, skip, gate, bias, h0 = tensors
        self.wide = wide_dtype(u.dtype)
        batch, time, width = u.shape
        self.b, self.c = (x if x.ndim == 4 else x.unsqueeze(2) for x in (b, c))  # (B, T, G, N)
        self.places = (None, None) if fake else _core.places(lengths, cu_seqlens)
        self.sequences = batch if cu_seqlens is None else len(cu_seqlens) - 1
        self.state = a.shape[1]
        self.sizes = [
            *(_core.threads(), int(softplus), int(zoh), _core.DTYPES[self.wide]),
            *(batch, time, width, self.state, self.b.shape[2], self.sequences, int(cu_seqlens is not None)),
            *(0 if place is None else place.data_ptr() for place in self.places),
        ]
        given = () if fake else (u, delta, a, self.b, self.c, skip, gate, bias, h0)
        self.inputs = [part for x in given for part in _core.tensor(x)]

    def plan(self, name: str) -> tuple[int, int]:
        """Numbers of the wide type in the kept states and in the work space."""
        at = len(self.sizes) + 2
        bounds, work = _core.sizes(name, [*self.sizes, 0, 0, 0, 0], (at, at + 1))
        return bounds, work

    def run(self, name: str, bounds: Optional, work: Optional, *more: Optional) -> None:
        pointers = [0 if x is None else x.data_ptr() for x in (bounds, work)]
        rest = [part for x in more for part in _core.tensor(x)]
        _core.run(name, [*self.sizes, *pointers, 0, 0, *self.inputs, *rest])


def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """y, h and the kept states (empty unless the last argument asks for them)."""
    *tensors, softplus, zoh, lengths, cu_seqlens, keep = args
    u = tensors[0]
    this = _Call(tensors, softplus, zoh, lengths, cu_seqlens)
    bounds_size, work_size = this.plan("qt_s6_plan_forward")
    y = _pool.empty(u.shape, u.dtype)
    h = _pool.empty((this.sequences, u.shape[2], this.state), this.wide)
    bounds = _pool.empty((bounds_size if keep else 0,), this.wide)
    work = _pool.empty((work_size,), this.wide) if work_size else None
    this.run("qt_s6_forward", bounds if keep else None, work, y, h, *(None,) * 11)
    return y, h, bounds


def backward(dy: Tensor, dh: Tensor, *args: Any) -> list[Optional]:
    """Gradients of the nine tensors, None for absent ones."""
    *tensors, softplus, zoh, lengths, cu_seqlens, bounds = args
    this = _Call(tensors, softplus, zoh, lengths, cu_seqlens)
    _, work_size = this.plan("qt_s6_plan_backward")
    work = _pool.empty((work_size,), this.wide)
    grads = [None if x is None else _pool.empty(x.shape, x.dtype) for x in tensors]
    d_u, d_delta, d_a, d_b, d_c, d_skip, d_gate, d_bias, d_h0 = grads
    maps = [x.view_as(like) for x, like in ((d_b, this.b), (d_c, this.c)) if x is not None]
    more = (d_u, d_delta, d_a, *maps, d_skip, d_gate, d_bias, d_h0)
    this.run("qt_s6_backward", bounds, work, None, None, dy, dh, *more)
    return grads


# -- for torch.compile: the two passes as ops of their own


def _fake_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    u, a, cu_seqlens, keep = args[0], args[2], args[-2], args[-1]
    sequences = u.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    wide = wide_dtype(u.dtype)
    size = (
        _Call(args[:9], args[9], args[10], None, cu_seqlens, fake=True).plan("qt_s6_plan_forward")[0]
        if keep
        else 0
    )
    y = u.new_empty(u.shape)
    return y, u.new_empty(sequences, u.shape[2], a.shape[1], dtype=wide), u.new_empty(size, dtype=wide)


def _backward_list(*args: Any) -> list[Tensor]:
    empty = args[0].new_empty(0)  # stands for an absent one: a list of a schema holds tensors only
    return [empty if grad is None else grad for grad in backward(*args)]


def _fake_backward(dy: Tensor, dh: Tensor, *args: Any) -> list[Tensor]:
    return [dy.new_empty(0) if x is None else x.new_empty(x.shape) for x in args[:9]]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, softplus, zoh, lengths, cu_seqlens, _ = inputs
    ctx.save_for_backward(*tensors, lengths, cu_seqlens, output[2])
    ctx.flags = (softplus, zoh)


def _traced_backward(ctx: Any, dy: Tensor, dh: Tensor, _: Tensor) -> tuple[Optional, ...]:
    *tensors, lengths, cu_seqlens, bounds = ctx.saved_tensors
    grads = torch.ops.quatrain.s6_scan_backward(dy, dh, *tensors, *ctx.flags, lengths, cu_seqlens, bounds)
    given = [None if x is None else grad for x, grad in zip(tensors, grads, strict=True)]
    return *given, None, None, None, None, None


_ARGUMENTS = (
    "Tensor u, Tensor delta, Tensor a, Tensor b, Tensor c, Tensor? skip, Tensor? gate, Tensor? delta_bias, "
    "Tensor? h0, bool softplus, bool zoh, Tensor? lengths, Tensor? cu_seqlens"
)
register(
    f"s6_scan({_ARGUMENTS}, bool keep) -> (Tensor, Tensor, Tensor)",
    forward,
    _fake_forward,
    _setup,
    _traced_backward,
)
register(
    f"s6_scan_backward(Tensor dy, Tensor dh, {_ARGUMENTS}, Tensor bounds) -> Tensor[]",
    _backward_list,
    _fake_backward,
)
