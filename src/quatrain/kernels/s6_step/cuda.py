"""One step of the S6 recurrence in CUDA C++, compiled at run time; step.cu holds the kernel."""

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from quatrain.kernels import _nvrtc
from quatrain.kernels._autograd import recomputed
from quatrain.kernels._op import Arguments
from quatrain.kernels.s6_step.vector import step as vector_step

_POINTERS = ("u", "delta", "b", "c", "gate", "a", "h0", "skip", "bias", "y", "h")
_LONGS = ("u_row", "delta_row", "gate_row", "b_row", "c_row", "b_group", "c_group", "channels")
_INTS = ("width", "states", "each")
_THREADS, _LANES = 128, 4


class Args(ctypes.Structure):
    """The kernel's argument: the same fields in the same order as in step.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_longlong) for name in _LONGS),
        *((name, ctypes.c_int) for name in _INTS),
    )


def why_not(arguments: Arguments) -> str | None:
    """Why the kernel cannot or should not run these arguments; reads metadata only."""
    u: Tensor = arguments["u"]
    if (reason := _nvrtc.why_not_for(u)) is not None:
        return reason
    return "torch is tracing: its own can be compiled" if torch.compiler.is_compiling() else None


def step(
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor | None,
    gate: Tensor | None,
    delta_bias: Tensor | None,
    h0: Tensor,
    *,
    softplus: bool = False,
    zoh: bool = False,
) -> tuple[Tensor, Tensor]:
    """See `s6_step_reference`; gradients by running torch's again."""

    def fast(*tensors: Any) -> tuple[Tensor, Tensor]:
        return _run(*tensors, softplus=softplus, zoh=zoh)

    def slow(*tensors: Any) -> tuple[Tensor, Tensor]:
        return vector_step(*tensors, softplus=softplus, zoh=zoh)

    y, h = recomputed(fast, slow, u, delta, a, b, c, skip, gate, delta_bias, h0)
    return y, h


def _run(
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor | None,
    gate: Tensor | None,
    bias: Tensor | None,
    h0: Tensor,
    *,
    softplus: bool,
    zoh: bool,
) -> tuple[Tensor, Tensor]:
    (batch, width), states = u.shape, a.shape[1]
    wide = any(x is not None and x.dtype is torch.float32 for x in (skip, bias))
    kind = torch.float32 if wide else u.dtype
    skip, bias = (None if x is None else x.to(kind).contiguous() for x in (skip, bias))
    a, h0 = (x.to(torch.float32).contiguous() for x in (a, h0))
    u, delta, b, c = (_dense(x) for x in (u, delta, b, c))
    gate = None if gate is None else _dense(gate)
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    h = torch.empty(h0.shape, dtype=torch.float32, device=u.device)
    args = Args()
    tensors = {"u": u, "delta": delta, "b": b, "c": c, "gate": gate, "a": a, "h0": h0, "skip": skip}
    for name, x in {**tensors, "bias": bias, "y": y, "h": h}.items():
        setattr(args, name, None if x is None else x.data_ptr())
        if x is not None and name in ("u", "delta", "gate", "b", "c"):
            setattr(args, f"{name}_row", x.stride(0))
    groups = b.shape[1] if b.ndim == 3 else 1
    if groups > 1:
        args.b_group, args.c_group = b.stride(1), c.stride(1)
    args.channels, args.width, args.states, args.each = batch * width, width, states, width // groups
    even = states % 4 == 0 and not any(x.data_ptr() % 16 for x in (a, h0))
    defines = (
        ("DATA", _nvrtc.DATA[u.dtype]),
        ("WIDE", int(wide)),
        ("VEC", 4 if even else 1),
        ("GATE", int(gate is not None)),
        ("SOFTPLUS", int(softplus)),
        ("ZOH", int(zoh)),
    )
    kernels = _nvrtc.kernels(_source(), defines, u.device.index or 0)
    kernels.launch("s6_step", -(-batch * width * _LANES // _THREADS), _THREADS, 0, args)
    return y, h


@cache
def _source() -> str:
    return _nvrtc.source("quatrain.kernels:_device.cuh", "quatrain.kernels.s6_step:step.cu")


def _dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
