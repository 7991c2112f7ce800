"""S6 scan in CUDA C++, compiled at run time.

See README.md beside this file for the derivation; forward.cu and backward.cu hold the kernels. Both passes
are ops of torch.library, so that torch.compile takes them whole. No index tensor is read on the host.
"""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from quatrain.kernels import _nvrtc
from quatrain.kernels._autograd import call, first_order, no_autocast, recorded, traced
from quatrain.kernels._op import Arguments
from quatrain.kernels.s6_scan._launch import Launch

_MOST_STATES = 256


class Inputs(NamedTuple):
    """Arguments of both ops, in the order of `s6_scan`."""

    u: Tensor
    delta: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    skip: Tensor | None
    gate: Tensor | None
    delta_bias: Tensor | None
    h0: Tensor | None
    softplus: bool
    zoh: bool
    lengths: Tensor | None
    cu_seqlens: Tensor | None


def why_not(arguments: Arguments) -> str | None:
    """Why the kernels cannot run these arguments; reads metadata only."""
    if (reason := _nvrtc.why_not_for(arguments["u"])) is not None:
        return reason
    states = arguments["a"].shape[1]
    return f"N = {states}: must be at most {_MOST_STATES}" if states > _MOST_STATES else None


def scan(
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor | None = None,
    gate: Tensor | None = None,
    delta_bias: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    softplus: bool = False,
    zoh: bool = False,
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `s6_scan_reference`."""
    tensors = (u, delta, a, b, c, skip, gate, delta_bias, h0)
    flags = (softplus, zoh, lengths, cu_seqlens)
    keep = recorded(*tensors)
    if traced(u):
        y, h, _ = torch.ops.quatrain.s6_scan_cuda(*tensors, *flags, keep)
    elif keep:
        y, h = call(_Scan, *tensors, *flags)
    else:  # straight to the kernels: the dispatcher takes longer than a short scan
        y, h, _ = forward(*tensors, *flags, False)
    return y, h


class _Scan(torch.autograd.Function):
    """What torch.library's autograd does, in a third of its time."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        y, h, marks = forward(*args, True)
        _save(ctx, (*args, True), (y, h, marks))
        return y, h

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor | None, dh: Tensor | None) -> tuple[Tensor | None, ...]:
        given = dy if dy is not None else dh
        if given is None:
            return (None,) * 13
        with no_autocast(given):
            return _backward(ctx, dy, dh, None, run=backward)[:-1]


def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last states, and with the last argument true the states before every few steps."""
    inputs, keep = Inputs(*args[:-1]), args[-1]
    run = Launch(inputs)
    y, last, marks = _forward_outputs(inputs, keep, run.padded_states)
    if inputs.cu_seqlens is not None:  # an empty sequence ends where it began
        last.zero_() if inputs.h0 is None else last.copy_(inputs.h0)
    run.forward(y, last, marks if keep else None)
    return y, last, marks


def backward(dy: Tensor, dh: Tensor | None, marks: Tensor, *args: Any) -> list[Tensor]:
    """Gradients of the nine tensors; an absent one's is empty."""
    inputs = Inputs(*args)
    return Launch(inputs).backward(dy, dh, marks)


def _forward_outputs(inputs: Inputs, keep: bool, padded: int) -> tuple[Tensor, Tensor, Tensor]:
    u, (batch, time, width) = inputs.u, inputs.u.shape
    sequences = batch if inputs.cu_seqlens is None else inputs.cu_seqlens.shape[0] - 1
    y = u.new_empty(batch, time, width)
    last = u.new_empty(sequences, width, inputs.a.shape[1], dtype=torch.float32)
    count = -(-time // Launch.mark_steps(int(inputs.a.shape[1]))) if keep else 0
    marks = u.new_empty(count, batch, width, padded, dtype=torch.float32)
    return y, last, marks


def _fake_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    inputs, keep = Inputs(*args[:-1]), args[-1]
    return _forward_outputs(inputs, keep, Launch.padding(int(inputs.a.shape[1])))


def _fake_backward(dy: Tensor, dh: Tensor | None, marks: Tensor, *args: Any) -> list[Tensor]:
    return [dy.new_empty(0) if x is None else x.new_empty(x.shape) for x in Inputs(*args)[:9]]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *args, _ = inputs
    given = Inputs(*args)
    ctx.set_materialize_grads(False)
    ctx.flags = (given.softplus, given.zoh)
    ctx.save_for_backward(*given[:9], given.lengths, given.cu_seqlens, output[2])


def _backward(
    ctx: Any, dy: Tensor | None, dh: Tensor | None, _: Tensor | None, run: Any = None
) -> tuple[Tensor | None, ...]:
    run = torch.ops.quatrain.s6_scan_cuda_backward if run is None else run
    *tensors, lengths, cu_seqlens, marks = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(tensors[0])
    grads = run(dy, dh, marks, *tensors, *ctx.flags, lengths, cu_seqlens)
    found = (None if x is None else g for x, g in zip(tensors, grads, strict=True))
    return *found, None, None, None, None, None


_ARGUMENTS = (
    "Tensor u, Tensor delta, Tensor a, Tensor b, Tensor c, Tensor? skip, Tensor? gate, Tensor? delta_bias, "
    "Tensor? h0, bool softplus, bool zoh, Tensor? lengths, Tensor? cu_seqlens"
)
LIBRARY: Any = cast("Any", torch.library).Library("quatrain", "FRAGMENT")
LIBRARY.define(f"s6_scan_cuda({_ARGUMENTS}, bool keep) -> (Tensor, Tensor, Tensor)")
LIBRARY.define(f"s6_scan_cuda_backward(Tensor dy, Tensor? dh, Tensor marks, {_ARGUMENTS}) -> Tensor[]")
LIBRARY.impl("s6_scan_cuda", forward, "CUDA")
LIBRARY.impl("s6_scan_cuda_backward", backward, "CUDA")
torch.library.register_fake("quatrain::s6_scan_cuda", _fake_forward, lib=LIBRARY)
torch.library.register_fake("quatrain::s6_scan_cuda_backward", _fake_backward, lib=LIBRARY)
torch.library.register_autograd("quatrain::s6_scan_cuda", _backward, setup_context=_save, lib=LIBRARY)
