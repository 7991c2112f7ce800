"""RMS normalisation by the C++ core: each row is read once more from the cache and written once."""

from struct import Struct

import torch
from torch import Tensor

from quatrain.kernels import _core
from quatrain.kernels._autograd import recomputed, recorded
from quatrain.kernels._core.tape import Tape, call
from quatrain.kernels._op import Arguments
from quatrain.kernels.rms_norm.torch_norm import normalise

_CODES = {torch.float32: 1, torch.bfloat16: 3}
_pack = Struct("3P5qd").pack


def _arguments(x: Tensor, weight: Tensor, y: Tensor, eps: float) -> bytes:
    width = x.shape[-1]
    return _pack(
        x.data_ptr(),
        weight.data_ptr(),
        y.data_ptr(),
        _CODES[x.dtype],
        _CODES[weight.dtype],
        x.numel() // width,
        width,
        torch.get_num_threads(),
        eps,
    )


def quick(x: Tensor, weight: Tensor, eps: float) -> Tensor | None:
    """The result, or None where torch has to do it; looks at metadata only, as little as is safe."""
    dtype = x.dtype
    if (
        dtype not in _CODES
        or weight.dtype not in (dtype, torch.float32)
        or not (x.is_cpu and weight.is_cpu)
        or torch.compiler.is_compiling()
        or recorded(x, weight)
        or weight.shape != x.shape[-1:]
        or not (x.is_contiguous() and weight.is_contiguous())
        or x.numel() == 0
        or _core.missing() is not None
    ):
        return None
    y = torch.empty_like(x)
    call("qt_rms_norm", _arguments(x, weight, y, eps))
    return y


def record(tape: Tape, x: Tensor, weight: Tensor, eps: float, y: Tensor) -> Tensor:
    """Record ``y = rms_norm(x, weight)`` with dense tensors of the dtypes that `quick` takes. Returns y."""
    tape.add("qt_rms_norm", _arguments(x, weight, y, eps), x, weight, y)
    return y


def why_not(arguments: Arguments) -> str | None:
    """Why the core cannot or should not do it."""
    x = arguments["x"]
    missing: str | None = _core.missing()
    if missing is not None:
        return missing
    if x.device.type != "cpu":
        return f"device {x.device.type}: runs on the CPU"
    if x.dtype not in _CODES:
        return f"dtype {x.dtype}: takes float32 and bfloat16"
    if recorded(x, arguments["weight"]):
        return "gradients are recorded: torch's has both directions"
    if torch.compiler.is_compiling():
        return "torch is tracing: its own can be compiled"
    return None


def run(x: Tensor, weight: Tensor, *, eps: float = 1e-5) -> tuple[Tensor]:
    """See `rms_norm_reference`; gradients by torch's."""

    def fast(x: Tensor, weight: Tensor) -> tuple[Tensor]:
        y = quick(x.contiguous(), weight.contiguous(), eps)
        assert y is not None
        return (y,)

    y: tuple[Tensor] = recomputed(fast, lambda x, weight: normalise(x, weight, eps=eps), x, weight)
    return y
