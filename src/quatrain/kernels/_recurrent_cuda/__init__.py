"""RNN, LSTM and GRU scans in CUDA C++ for Hopper, compiled at run time: one kernel runs all steps.

README.md beside this file says how; forward.cu, backward.cu and scan.cuh hold the kernel. Both passes are ops
of torch.library, so that torch.compile takes them whole. No index tensor is read on the host.
"""

from typing import Any

import torch
from torch import Tensor

from quatrain.kernels import _nvrtc
from quatrain.kernels._autograd import call, first_order, no_autocast, recorded, traced
from quatrain.kernels._core._register import register
from quatrain.kernels._op import Arguments
from quatrain.kernels._recurrent import GRU, LSTM, RNN, weight_grad
from quatrain.kernels._recurrent_cuda._launch import Inputs, Launch, results, status
from quatrain.kernels._recurrent_cuda._plan import KINDS, Problem, plan

_OLDEST = (9, 0)
_KINDS = {"rnn_tanh": RNN, "rnn_relu": RNN, "lstm": LSTM, "gru": GRU}


def why_not(kind: str, arguments: Arguments) -> str | None:
    """Why the kernel cannot run these arguments; reads metadata only."""
    x: Tensor = arguments["x"]
    if (reason := _nvrtc.why_not_for(x)) is not None:
        return reason
    device, width = x.device.index or 0, arguments["weight"].shape[1]
    width_reason: str | None = _why_not_on(device, kind, width, x.dtype.itemsize)
    return width_reason


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _why_not_on(device: int, kind: str, width: int, size: int) -> str | None:
    """Why not a layer of this width on a device; a batch can always be run row by row."""
    capability = torch.cuda.get_device_capability(device)
    if capability < _OLDEST:
        return f"compute capability {capability[0]}.{capability[1]}: must be at least 9.0, which has clusters"
    residents = _nvrtc.residents(device)
    for back in (False, True):
        found = plan(Problem(KINDS[kind], width, 1, size, back, residents))
        if isinstance(found, str):
            return found
    return None


def check(device: torch.device) -> None:
    """Raise if a kernel of the device has given up waiting for its blocks; synchronise first to be sure.

    Raises:
        RuntimeError: one has; its results are NaN.
    """
    mark = status(device)
    if mark.item():
        mark.zero_()
        raise RuntimeError(
            "a recurrent scan's blocks waited too long for each other and its results are NaN: another "
            "process may hold a part of the GPU; impl = 'torch' needs no such waits"
        )


def scan(
    kind: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    lengths: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, ...]:
    """y, h and, for an LSTM, c; see the op of each kind. Raises what `check` raises, for an earlier call."""
    args = (kind, x, weight, bias, h0, c0, lengths, cu_seqlens)
    keep = recorded(x, weight, bias, h0, c0)
    if traced(x):
        y, h, c, *_ = torch.ops.quatrain.recurrent_cuda(*args, keep)
    elif keep:
        y, h, c = call(_Scan, *args)
    else:
        y, h, c, *_ = forward(*args, False)
    return (y, h, c) if kind == "lstm" else (y, h)


def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`Results`; arguments as of `scan`, and whether to keep what a backward pass needs."""
    inputs, keep = Inputs(*args[:-1]), args[-1]
    check(inputs.x.device)
    found = results(inputs, keep)
    if inputs.lengths is not None or inputs.cu_seqlens is not None:
        for last, start in (
            (found.h, inputs.h0),
            (found.c, inputs.c0),
        ):  # an empty sequence ends where it began
            if last.numel():
                last.zero_() if start is None else last.copy_(start)
    launch = Launch(inputs, back=False)
    launch.steps("x", inputs.x)
    for name, x in (("y", found.y), ("last_h", found.h), ("last_c", found.c)):
        launch.set(name, x)
    launch.set("gates", found.gates)
    launch.set("cells", found.cells)
    launch.run(keep, flush=False)
    return found


def backward(
    dy: Tensor,
    dh: Tensor | None,
    dc: Tensor | None,
    y: Tensor,
    gates: Tensor,
    cells: Tensor,
    *args: Any,
) -> list[Tensor]:
    """Gradients of x, weight, bias, h0 and c0; an absent one's is empty."""
    inputs = Inputs(*args)
    x, kind = inputs.x, _KINDS[inputs.kind]
    check(x.device)
    launch = Launch(inputs, back=True)
    width, (batch, time) = launch.width, x.shape[:2]
    empty = x.new_empty if inputs.lengths is None else x.new_zeros
    dx = empty(batch, time, launch.gates * width)
    dinner = empty(batch, time, width) if kind is GRU else None
    launch.steps("dy", dy.to(x.dtype))
    flush = inputs.h0 is not None or inputs.c0 is not None
    starts = [
        x.new_zeros(inputs.sequences if flush and there else 0, width, dtype=torch.float32)
        if given is None
        else given.to(torch.float32, copy=True).contiguous()
        for given, there in ((dh, True), (dc, kind.cell))
    ]  # an empty sequence passes its cotangents on
    launch.wide("dh", dh)
    launch.wide("dc", dc)
    launch.set("gates", gates)
    launch.set("cells", cells)
    launch.set("dx", dx)
    launch.set("dinner", dinner)
    rows = launch.plan.slots if kind is GRU else 0
    d_bias = x.new_empty(rows, width, dtype=torch.float32)  # wide: the sum of rounded cotangents would err
    launch.set("dbias", d_bias)
    launch.set("dh0", starts[0])
    launch.set("dc0", starts[1])
    launch.run(keep=False, flush=flush)
    with no_autocast(dy):
        before = _before(y, inputs)
        d_weight = weight_grad(kind, dx, dinner, before, None, inputs.weight.dtype)
    found = (dx, d_weight, d_bias.sum(0), starts[0], starts[1])
    given = (x, inputs.weight, inputs.bias, inputs.h0, inputs.c0)
    return [
        x.new_empty(0) if a is None or grad is None else grad.to(a.dtype)
        for a, grad in zip(given, found, strict=True)
    ]


def _before(y: Tensor, inputs: Inputs) -> Tensor:
    """(B T, D): for every position the state before it, as operand of the product; nothing is read back."""
    (batch, time, width), h0, bounds = y.shape, inputs.h0, inputs.cu_seqlens
    total = batch * time
    before = y.new_empty(total + 1, width)
    before[1:] = y.view(total, width)
    before[0] = 0
    if bounds is None:
        before[:total].view(batch, time, width)[:, 0] = 0 if h0 is None else h0.to(y.dtype)
    else:  # an empty sequence's place is behind the last
        first = bounds[:-1].to(torch.int64)
        first = torch.where(bounds.diff() > 0, first, total).clamp(0, total)
        starts = y.new_zeros(len(first), width) if h0 is None else h0.to(y.dtype)
        before.index_copy_(0, first, starts)
    return before[:total]


class _Scan(torch.autograd.Function):
    """What torch.library's autograd does, in less time."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        found = forward(*args, True)
        _save(ctx, (*args, True), found)
        return found[:3]

    @staticmethod
    @first_order
    def backward(
        ctx: Any, dy: Tensor | None, dh: Tensor | None, dc: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        return _backward(ctx, dy, dh, dc, run=backward)[:-1]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    given = Inputs(*inputs[:-1])
    ctx.set_materialize_grads(False)
    ctx.kind = given.kind
    y, _, _, gates, cells = output
    ctx.save_for_backward(y, gates, cells, *given[1:])


def _backward(ctx: Any, *cotangents: Tensor | None, run: Any = None) -> tuple[Tensor | None, ...]:
    run = torch.ops.quatrain.recurrent_cuda_backward if run is None else run
    dy, dh, dc = cotangents[:3]
    y, gates, cells, *given = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(y)
    if ctx.kind != "lstm":
        dc = None
    grads = run(dy, dh, dc, y, gates, cells, ctx.kind, *given)
    tensors = given[: len(grads)]
    return (
        None,
        *(None if x is None else grad for x, grad in zip(tensors, grads, strict=True)),
        None,
        None,
        None,
    )


def _fake_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return results(Inputs(*args[:-1]), args[-1])


def _fake_backward(*args: Any) -> list[Tensor]:
    given = Inputs(*args[6:])
    tensors = (given.x, given.weight, given.bias, given.h0, given.c0)
    return [given.x.new_empty(0) if x is None else x.new_empty(x.shape) for x in tensors]


_ARGUMENTS = (
    "str kind, Tensor x, Tensor weight, Tensor? bias, Tensor? h0, Tensor? c0, "
    "Tensor? lengths, Tensor? cu_seqlens"
)
register(
    f"recurrent_cuda({_ARGUMENTS}, bool keep) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    forward,
    _fake_forward,
    _save,
    _backward,
    device="CUDA",
)
register(
    "recurrent_cuda_backward(Tensor dy, Tensor? dh, Tensor? dc, Tensor y, Tensor gates, Tensor cells, "
    f"{_ARGUMENTS}) -> Tensor[]",
    backward,
    _fake_backward,
    device="CUDA",
)
