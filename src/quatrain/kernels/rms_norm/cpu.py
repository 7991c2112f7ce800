"""RMS normalisation by the C++ core: each row is read once more from the cache and written once."""

from collections.abc import Callable
from functools import cache
from struct import Struct

import torch
from torch import Tensor

from quatrain.kernels import _core
from quatrain.kernels._autograd import recomputed, recorded
from quatrain.kernels._op import Arguments
from quatrain.kernels.rms_norm.torch_norm import normalise

_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
_pack = Struct("3P6qd").pack


@cache
def _entry() -> Callable[[bytes], None] | None:
    return _core.entry("qt_rms_norm")


def quick(x: Tensor, weight: Tensor, eps: float) -> Tensor | None:
    """The result, or None where torch has to do it; looks at metadata only, as little as is safe."""
    entry = _entry()
    dtype = x.dtype
    code, weight_code = _DTYPES.get(dtype), _DTYPES.get(weight.dtype)
    if (
        entry is None
        or code is None
        or weight_code is None
        or weight_code > code
        or not (x.is_cpu and weight.is_cpu)
        or torch.compiler.is_compiling()
        or recorded(x, weight)
        or weight.shape != x.shape[-1:]
        or not (x.is_contiguous() and weight.is_contiguous())
        or x.numel() == 0
    ):
        return None
    width = x.shape[-1]
    y = torch.empty_like(x)
    entry(
        _pack(
            x.data_ptr(),
            weight.data_ptr(),
            y.data_ptr(),
            code,
            weight_code,
            x.numel() // width,
            width,
            torch.get_num_threads(),
            0,
            eps,
        )
    )
    return y


def why_not(arguments: Arguments) -> str | None:
    """Why the core cannot or should not do it."""
    x = arguments["x"]
    if _entry() is None:
        return _core.missing()
    if x.device.type != "cpu":
        return f"device {x.device.type}: runs on the CPU"
    if x.dtype not in _DTYPES:
        return f"dtype {x.dtype}: takes float32 and bfloat16"
    if recorded(x, arguments["weight"]):
        return "gradients are recorded: torch's has both directions"
    return None


def run(x: Tensor, weight: Tensor, *, eps: float = 1e-5) -> tuple[Tensor]:
    """See `rms_norm_reference`; gradients by torch's."""

    def fast(x: Tensor, weight: Tensor) -> tuple[Tensor]:
        y = quick(x.contiguous(), weight.contiguous(), eps)
        assert y is not None
        return (y,)

    return recomputed(fast, lambda x, weight: normalise(x, weight, eps=eps), x, weight)
