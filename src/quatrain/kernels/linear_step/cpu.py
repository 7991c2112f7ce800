"""The linear map of one token by the C++ core: rows of the matrix split over threads, read once."""

from struct import Struct

import torch
from torch import Tensor

from quatrain.kernels import _core
from quatrain.kernels._autograd import recorded
from quatrain.kernels._core.tape import Tape, call, lined
from quatrain.kernels._op import Arguments
from quatrain.kernels.linear_step.product import differentiable

MOST_ROWS = 8  # of x: beyond it torch's matrix product reads the matrix as few times, and multiplies faster
_CODES = {torch.float32: 1, torch.bfloat16: 3}
_pack = Struct("4P9q").pack


def _arguments(x: Tensor, weight: Tensor, add: Tensor | None, y: Tensor) -> bytes:
    rows, width = weight.shape
    return _pack(
        x.data_ptr(),
        weight.data_ptr(),
        0 if add is None else add.data_ptr(),
        y.data_ptr(),
        _CODES[x.dtype],
        x.shape[0],
        rows,
        width,
        x.stride(0),
        weight.stride(0),
        0 if add is None or add.ndim == 1 else add.stride(0),
        y.stride(0),
        torch.get_num_threads(),
    )


def quick(x: Tensor, weight: Tensor, add: Tensor | None) -> Tensor | None:
    """The result, or None where torch has to do it; looks at metadata only, as little as is safe."""
    dtype = x.dtype
    if (
        dtype not in _CODES
        or weight.dtype is not dtype
        or not (x.is_cpu and weight.is_cpu)
        or torch.compiler.is_compiling()
        or torch.is_autocast_enabled("cpu")
        or recorded(x, weight, add)
        or _core.missing() is not None
    ):
        return None
    shape, (rows, width) = x.shape, weight.shape
    if len(shape) != 2 or shape[1] != width or not 1 <= shape[0] <= MOST_ROWS or width == 0:
        return None
    if x.stride(1) != 1 or weight.stride(1) != 1:
        return None
    if add is not None and (
        add.dtype is not dtype
        or not add.is_cpu
        or add.shape not in ((rows,), (shape[0], rows))
        or add.stride(-1) != 1
    ):
        return None
    y = torch.empty(shape[0], rows, dtype=dtype)
    call("qt_linear_step", _arguments(x, weight, add, y))
    return y


def recordable(batch: int, *tensors: Tensor) -> bool:
    """Whether `record` takes these weights, and what else meets them, at this batch size."""
    dtype = tensors[0].dtype
    return (
        _core.missing() is None
        and batch <= MOST_ROWS
        and dtype in _CODES
        and all(t.is_cpu and t.dtype is dtype and t.stride(-1) == 1 for t in tensors)
    )


def record(tape: Tape, x: Tensor, weight: Tensor, add: Tensor | None, y: Tensor) -> Tensor:
    """Record ``y = weight x + add`` with `recordable` tensors; y may be add. Returns y."""
    tape.add("qt_linear_step", _arguments(x, weight, add, y), x, weight, add, y)
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
    if len(x) > MOST_ROWS:
        return f"B = {len(x)}: torch's product is faster above {MOST_ROWS}"
    if recorded(x, arguments["weight"], arguments["add"]):
        return "gradients are recorded: torch's product has both directions"
    if torch.compiler.is_compiling():
        return "torch is tracing: its own product can be compiled"
    return None


def run(x: Tensor, weight: Tensor, add: Tensor | None = None) -> tuple[Tensor]:
    """See `linear_step_reference`; gradients by torch's product."""
    return (differentiable(_forward, x, weight, add),)


def _forward(x: Tensor, weight: Tensor, add: Tensor | None) -> Tensor:
    y = quick(lined(x), lined(weight), None if add is None else lined(add))
    assert y is not None
    return y
