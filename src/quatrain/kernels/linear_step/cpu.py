"""The linear map of one token by the C++ core: rows of the matrix split over threads, read once."""

from collections.abc import Callable
from functools import cache
from struct import Struct

import torch
from torch import Tensor

from quatrain.kernels import _core
from quatrain.kernels._autograd import recomputed, recorded
from quatrain.kernels._op import Arguments
from quatrain.kernels.linear_step.product import multiply

MOST_ROWS = 8  # of x: beyond it torch's matrix product reads the matrix as few times, and multiplies faster
_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
_pack = Struct("4P9q").pack


@cache
def _entry() -> Callable[[bytes], None] | None:
    return _core.entry("qt_linear_step")


def quick(x: Tensor, weight: Tensor, add: Tensor | None) -> Tensor | None:
    """The result, or None where torch has to do it; looks at metadata only, as little as is safe."""
    entry = _entry()
    dtype = x.dtype
    code = _DTYPES.get(dtype)
    if (
        entry is None
        or code is None
        or weight.dtype is not dtype
        or not (x.is_cpu and weight.is_cpu)
        or torch.compiler.is_compiling()
        or torch.is_autocast_enabled("cpu")
        or recorded(x, weight, add)
    ):
        return None
    shape, (rows, width) = x.shape, weight.shape
    if len(shape) != 2 or shape[1] != width or not 1 <= shape[0] <= MOST_ROWS or rows == 0 or width == 0:
        return None
    x_row, x_unit = x.stride()
    w_row, w_unit = weight.stride()
    if (x_unit != 1 and width > 1) or (w_unit != 1 and width > 1):
        return None
    add_pointer = add_row = 0
    if add is not None:
        if add.dtype is not dtype or not add.is_cpu or add.shape[-1] != rows or add.stride(-1) != 1:
            return None
        if add.ndim == 2 and add.shape[0] == shape[0]:
            add_row = add.stride(0)
        elif add.ndim != 1:
            return None
        add_pointer = add.data_ptr()
    y = torch.empty(shape[0], rows, dtype=dtype)
    entry(
        _pack(
            x.data_ptr(),
            weight.data_ptr(),
            add_pointer,
            y.data_ptr(),
            code,
            shape[0],
            rows,
            width,
            x_row,
            w_row,
            add_row,
            rows,
            torch.get_num_threads(),
        )
    )
    return y


def why_not(arguments: Arguments) -> str | None:
    """Why the core cannot or should not do it."""
    x, weight = arguments["x"], arguments["weight"]
    if _entry() is None:
        return _core.missing()
    if x.device.type != "cpu":
        return f"device {x.device.type}: runs on the CPU"
    if x.dtype not in _DTYPES:
        return f"dtype {x.dtype}: takes float32 and bfloat16"
    if len(x) > MOST_ROWS:
        return f"B = {len(x)}: torch's product is faster above {MOST_ROWS}"
    if recorded(*(t for t in arguments.values() if isinstance(t, Tensor))):
        return "gradients are recorded: torch's product has both directions"
    return None


def run(x: Tensor, weight: Tensor, add: Tensor | None = None) -> tuple[Tensor]:
    """See `linear_step_reference`; gradients by torch's product."""
    return recomputed(_forward, multiply, x, weight, add)


def _forward(x: Tensor, weight: Tensor, add: Tensor | None) -> tuple[Tensor]:
    """With rows of any strides: what does not lie side by side is copied."""
    lined = [t if t is None or t.stride(-1) == 1 else t.contiguous() for t in (x, weight, add)]
    y = quick(*lined)
    assert y is not None
    return (y,)
