"""Tensors on memory that the C++ core keeps: first touching fresh memory costs more than the work on it."""

import weakref
from array import array
from collections.abc import Callable
from ctypes import c_char
from math import prod

import torch
from torch import Tensor

from quatrain.kernels import _core

_SMALL = 1 << 20  # bytes, below which torch's own allocator is as good


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """``torch.empty`` on the CPU whose memory goes back to the core's pool when the last view is gone."""
    count = prod(shape)
    size = count * dtype.itemsize
    if size < _SMALL:
        return torch.empty(shape, dtype=dtype)
    request = array("q", (size, 0))
    if _core.function("qt_pool_take")(request.buffer_info()[0]):
        raise MemoryError(f"{size} bytes for the result of a scan")
    memory = (c_char * size).from_address(request[1])
    weakref.finalize(memory, _give, _core.function("qt_pool_give"), request[1])
    return torch.frombuffer(memory, dtype=dtype, count=count).view(shape)


def _give(give: Callable[[int], int], address: int) -> None:
    request = array("q", (address,))  # must live until the core has read it
    give(request.buffer_info()[0])
