"""Calls of the core recorded once and run again and again, without Python between them."""

import ctypes
from array import array
from collections.abc import Hashable
from ctypes import c_int64
from typing import Any

import torch
from torch import Tensor

from quatrain.kernels import _core


class Tape:
    """A row of calls ``int name(const int64_t* arguments)`` whose arguments stay where they are.

    What a call reads and writes are tensors at fixed addresses: the tape keeps them alive, and the number of
    threads is that of the time of recording. After streaming a layer's weights through the cache each line of
    Python costs several times what it costs in a loop of its own; one call per token costs it once.
    """

    def __init__(self) -> None:
        self._calls: list[int] = []
        self._kept: list[Any] = []
        self._buffers: dict[Hashable, Tensor] = {}
        self._row = array("q")

    def add(self, name: str, arguments: bytes, *tensors: Tensor | None) -> Any:
        """Record ``name(arguments)``; ``tensors`` are those whose addresses are among the arguments.

        Returns the recorded arguments, a ctypes array.
        """
        held = ctypes.create_string_buffer(arguments, len(arguments))
        self._kept.append((held, tensors))
        function = ctypes.c_void_p.from_buffer(_core.function(name)).value  # type: ignore[arg-type]
        assert function is not None
        self._calls += (function, ctypes.addressof(held))
        self._row = array("q", (len(self._calls) // 2, *self._calls))
        return held

    def places(self, *tensors: Tensor) -> list[list[c_int64]]:
        """For each tensor the places in the arguments where its address stands, to put others there.

        From now on the tape keeps none of the recorded tensors alive but its own buffers.
        """
        addresses = {x.data_ptr(): i for i, x in enumerate(tensors)}
        found: list[list[c_int64]] = [[] for _ in tensors]
        for held, _ in self._kept:
            for at, value in enumerate(array("q", held.raw)):  # a double is no address
                if value in addresses:
                    found[addresses[value]].append(c_int64.from_buffer(held, 8 * at))
        self._kept = [(held, ()) for held, _ in self._kept]
        return found

    def buffer(self, use: str, *shape: int, dtype: torch.dtype) -> Tensor:
        """Memory for a result that is read before the next call with the same ``use``: layers share it."""
        key = (use, shape, dtype)
        if key not in self._buffers:
            self._buffers[key] = torch.empty(shape, dtype=dtype, device="cpu")
        return self._buffers[key]

    def embed(self, token: Tensor, table: Tensor, y: Tensor) -> Tensor:
        """Record ``y (B, D) = table[token]``, token (B,) int64; rows are dense. Returns y."""
        size = y.element_size()
        strides = (table.stride(0) * size, y.stride(0) * size, y.shape[1] * size)
        row = (token.data_ptr(), table.data_ptr(), y.data_ptr(), len(token), *strides)
        self.add("qt_embed", array("q", row).tobytes(), token, table, y)
        return y

    def add_position(self, x: Tensor, table: Tensor, position: Tensor, y: Tensor) -> Tensor:
        """Record ``y (B, D) = x + table[position]``, position (B,) int64; all dense. Returns y."""
        pointers = (x.data_ptr(), table.data_ptr(), y.data_ptr(), position.data_ptr())
        row = (*pointers, _core.DTYPES[x.dtype], *x.shape, len(table))
        self.add("qt_add_position", array("q", row).tobytes(), x, table, position, y)
        return y

    def silu_gate(self, gate: Tensor, up: Tensor, y: Tensor) -> Tensor:
        """Record ``y = silu(gate) * up``, all dense and of one shape. Returns y."""
        row = (gate.data_ptr(), up.data_ptr(), y.data_ptr(), _core.DTYPES[y.dtype], y.numel())
        self.add("qt_silu_gate", array("q", row).tobytes(), gate, up, y)
        return y

    def copy(self, source: Tensor, target: Tensor) -> Tensor:
        """Record ``target = source``, both dense and alike. Returns target."""
        row = (source.data_ptr(), target.data_ptr(), source.numel() * source.element_size())
        self.add("qt_copy", array("q", row).tobytes(), source, target)
        return target

    def widened(self, x: Tensor, use: str) -> Tensor:
        """x in float32: itself, or a buffer into which a recorded call writes it each time."""
        if x.dtype == torch.float32:
            return x
        wide = self.buffer(use, *x.shape, dtype=torch.float32)
        row = (x.data_ptr(), wide.data_ptr(), x.numel())
        self.add("qt_widen", array("q", row).tobytes(), x, wide)
        return wide

    def sum(self, x: Tensor, into: Tensor) -> Tensor:
        """Record ``into += x``, both dense and of one shape. Returns into."""
        row = (x.data_ptr(), into.data_ptr(), _core.DTYPES[x.dtype], x.numel())
        self.add("qt_sum", array("q", row).tobytes(), x, into)
        return into

    def run(self) -> None:
        """Make the calls in their order."""
        code = _core.function("qt_tape")(self._row.buffer_info()[0])
        if code:
            raise RuntimeError(f"the core refused the arguments of a recorded call (code {code})")


def call(name: str, arguments: bytes) -> None:
    """One call that is not recorded."""
    code = _core.function(name)(arguments)  # type: ignore[arg-type]  # ctypes takes the address of bytes
    if code:
        raise RuntimeError(f"{name}: the core refused its arguments (code {code})")


def lined(x: Tensor) -> Tensor:
    """x, or a copy of it, whose last dimension has stride 1 (also where torch calls size 1 contiguous)."""
    return x if x.stride(-1) == 1 else x.clone(memory_format=torch.contiguous_format)
