"""One step of a recurrent layer in CUDA C++ for Hopper, compiled at run time; step.cu holds the kernel."""

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from quatrain.kernels import _nvrtc
from quatrain.kernels._autograd import recomputed, recorded, traced
from quatrain.kernels._core._register import register
from quatrain.kernels._op import Arguments
from quatrain.kernels.recurrent_step._plan import SHARED_BYTES, WARPS, plan
from quatrain.kernels.recurrent_step.product import step as torch_step

NUMBERS = {"rnn_tanh": 0, "rnn_relu": 1, "lstm": 2, "gru": 3}
_OLDEST = (9, 0)
_POINTERS = ("x", "in_weight", "in_bias", "weight", "bias", "h0", "c0", "y", "h", "c")
_INTS = ("batch", "in_width", "width", "clusters", "pitch")


class Args(ctypes.Structure):
    """The kernel's argument: the same fields in the same order as in step.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        ("x_row", ctypes.c_longlong),
        *((name, ctypes.c_int) for name in _INTS),
    )


def why_not(arguments: Arguments) -> str | None:
    """Why the kernel cannot run these arguments; reads metadata only."""
    x: Tensor = arguments["x"]
    if (reason := _nvrtc.why_not_for(x)) is not None:
        return reason
    widths = x.shape[1], arguments["weight"].shape[1]
    reason_here: str | None = _why_not_on(x.device.index or 0, arguments["kind"], *widths, x.dtype.itemsize)
    return reason_here


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _why_not_on(device: int, kind: str, in_width: int, width: int, size: int) -> str | None:
    """Why not a layer of these widths on a device; a batch can always be cut into parts."""
    if kind not in NUMBERS:
        return (
            "reset = 'before': the product of the candidate waits for the reset gate of all units, "
            "a second pass over the chip"
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < _OLDEST:
        return f"compute capability {capability[0]}.{capability[1]}: must be at least 9.0, which has clusters"
    if plan(NUMBERS[kind], 1, in_width, width, size, _nvrtc.residents(device)) is None:
        return f"I = {in_width}, D = {width}: 8 rows of x and h must fit into 8 times {SHARED_BYTES} bytes"
    return None


def step(
    x: Tensor,
    in_weight: Tensor,
    weight: Tensor,
    h0: Tensor,
    c0: Tensor | None = None,
    in_bias: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    kind: str,
) -> tuple[Tensor, ...]:
    """See `recurrent_step_reference`; operands of 16 bits are rounded in the products, sums and the states
    are float32. Gradients by running torch's again.
    """
    tensors = (x, in_weight, weight, h0, c0, in_bias, bias)

    def fast(*given: Any) -> tuple[Tensor, ...]:
        found = torch.ops.quatrain.recurrent_step_cuda(kind, *given) if traced(x) else _run(kind, *given)
        return tuple(found) if kind == "lstm" else tuple(found[:2])

    if torch.compiler.is_compiling():
        return torch_step(*tensors, kind=kind) if recorded(*tensors) else fast(*tensors)
    results: tuple[Tensor, ...] = recomputed(fast, lambda *given: torch_step(*given, kind=kind), *tensors)
    return results


def _run(
    kind: str,
    x: Tensor,
    in_weight: Tensor,
    weight: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    in_bias: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, h and c, which is empty but for an LSTM."""
    number, (batch, in_width), width = NUMBERS[kind], x.shape, weight.shape[1]
    residents = _nvrtc.residents(x.device.index or 0)
    made = plan(number, batch, in_width, width, x.dtype.itemsize, residents)
    if made is None:
        raise RuntimeError(f"recurrent_step: I = {in_width}, D = {width}: too wide for shared memory")
    x = x if x.stride(1) == 1 or in_width == 1 else x.contiguous()
    in_weight, weight = in_weight.contiguous(), weight.contiguous()
    in_bias, bias = (None if b is None else b.contiguous() for b in (in_bias, bias))
    h0 = h0.to(torch.float32).contiguous()
    c0 = None if c0 is None else c0.to(torch.float32).contiguous()
    y, h, c = _results(kind, x, width)
    args = Args()
    tensors = {"x": x, "in_weight": in_weight, "in_bias": in_bias, "weight": weight, "bias": bias}
    for name, tensor in {**tensors, "h0": h0, "c0": c0, "y": y, "h": h, "c": c}.items():
        setattr(args, name, None if tensor is None or not tensor.numel() else tensor.data_ptr())
    args.x_row, args.batch, args.in_width, args.width = x.stride(0), batch, in_width, width
    args.clusters, args.pitch = made.clusters, made.pitch
    dense = width % 8 == in_width % 8 == x.stride(0) % 8 == 0
    even = dense and not any(tensor.data_ptr() % 16 for tensor in (x, in_weight, weight, h0))
    defines = (("DATA", _nvrtc.DATA[x.dtype]), ("KIND", number), ("VEC", int(even)), *made.defines())
    kernels = _nvrtc.kernels(_source(), defines, x.device.index or 0)
    kernels.launch(
        "recurrent_step",
        made.blocks,
        32 * WARPS,
        made.shared_bytes,
        args,
        cluster=made.cluster,
        cooperative=False,
    )
    return y, h, c


def _results(kind: str, x: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    h, c = (
        torch.empty((len(x) if there else 0, width), dtype=torch.float32, device=x.device)
        for there in (True, kind == "lstm")
    )
    return torch.empty((len(x), width), dtype=x.dtype, device=x.device), h, c


@cache
def _source() -> str:
    shared = (f"quatrain.kernels._recurrent_cuda:{name}.cuh" for name in ("cluster", "cells"))
    eights = "quatrain.kernels:_eights.cuh"
    own = "quatrain.kernels.recurrent_step:step.cu"
    return _nvrtc.source("quatrain.kernels:_device.cuh", *shared, eights, own)


register(
    "recurrent_step_cuda(str kind, Tensor x, Tensor in_weight, Tensor weight, Tensor h0, Tensor? c0, "
    "Tensor? in_bias, Tensor? bias) -> (Tensor, Tensor, Tensor)",
    _run,
    lambda kind, x, in_weight, weight, *rest: _results(kind, x, weight.shape[1]),
    device="CUDA",
)
