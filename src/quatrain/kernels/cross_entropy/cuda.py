"""Cross-entropy of rows of logits in CUDA C++, compiled at run time; rows.cu holds the kernel."""

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from quatrain.kernels import _nvrtc
from quatrain.kernels._autograd import call, first_order, recorded, traced
from quatrain.kernels._core._register import register
from quatrain.kernels._op import Arguments

_THREADS = 512


class Args(ctypes.Structure):
    """The kernel's argument: the same fields in the same order as in rows.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("logits", "targets", "slopes", "scales", "losses")),
        ("vocab", ctypes.c_longlong),
    )


def why_not(arguments: Arguments) -> str | None:
    """Why the kernel cannot run these arguments; reads metadata only."""
    logits: Tensor = arguments["logits"]
    return _nvrtc.why_not_for(logits)


def losses(logits: Tensor, targets: Tensor, slopes: Tensor | None = None) -> Tensor:
    """Losses (R,) of dense logits (R, V) in float32; ``slopes``, maybe the logits, gets their derivative."""
    out = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    _launch(logits, targets, slopes, None, out)
    return out


def _launch(
    logits: Tensor, targets: Tensor, slopes: Tensor | None, scales: Tensor | None, out: Tensor | None
) -> None:
    rows, vocab = logits.shape
    if rows == 0:
        return
    targets = targets.contiguous()
    vector = next(v for v in (16 // logits.element_size(), 4, 2, 1) if vocab % v == 0)
    tensors = (logits, targets, slopes, scales, out)
    pointers = [0 if x is None else x.data_ptr() for x in tensors]
    while any(pointers[i] % (vector * logits.element_size()) for i in (0, 2)):
        vector //= 2
    defines = (
        ("DATA", _nvrtc.DATA[logits.dtype]),
        ("VEC", vector),
        ("SLOPES", int(slopes is not None)),
        ("THREADS", _THREADS),
    )
    kernels = _nvrtc.kernels(_source(), defines, logits.device.index or 0)
    kernels.launch("cross_entropy", rows, _THREADS, 8 * _THREADS // 32, Args(*pointers, vocab))


@cache
def _source() -> str:
    return _nvrtc.source("quatrain.kernels:_device.cuh", "quatrain.kernels.cross_entropy:rows.cu")


def run(logits: Tensor, targets: Tensor) -> tuple[Tensor]:
    """See `cross_entropy_reference`."""
    if traced(logits):
        loss = torch.ops.quatrain.cross_entropy_cuda(logits, targets)
    elif recorded(logits):
        loss = call(_CrossEntropy, logits, targets)
    else:
        loss = _forward(logits, targets)
    return (loss,)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(logits, targets)
        return _forward(logits, targets)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _backward(grad, *ctx.saved_tensors), None


def _forward(logits: Tensor, targets: Tensor) -> Tensor:
    return losses(logits.contiguous(), targets)


def _backward(grad: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    slopes = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    _launch(logits.contiguous(), targets, slopes, grad.to(torch.float32).contiguous(), None)
    return slopes


def _fake_forward(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.float32)


def _fake_backward(grad: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    return logits.new_empty(logits.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _traced_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return torch.ops.quatrain.cross_entropy_cuda_backward(grad, *ctx.saved_tensors), None


register(
    "cross_entropy_cuda(Tensor logits, Tensor targets) -> Tensor",
    _forward,
    _fake_forward,
    _setup,
    _traced_backward,
    device="CUDA",
)
register(
    "cross_entropy_cuda_backward(Tensor grad, Tensor logits, Tensor targets) -> Tensor",
    _backward,
    _fake_backward,
    device="CUDA",
)
