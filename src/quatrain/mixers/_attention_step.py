"""Attention's recorded step: keys and values of a state are the first columns of buffers with room behind.

A step writes into the next column of the state's buffers and the new state is a longer view of them, so that
the cache is not copied; the state before still sees its own columns alone. Whether a state may write is told
by the buffers (``_core/attention_extend.cpp``); where it may not, its columns are copied into buffers of its
own.
"""

from ctypes import c_int64
from math import inf
from struct import Struct
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quatrain.kernels import _core
from quatrain.kernels._core.tape import Tape, call
from quatrain.kernels.linear_step import cpu as linear_step
from quatrain.mixers._attention_run import project
from quatrain.mixers._recorded import put

if TYPE_CHECKING:
    from quatrain.mixers.attention import Attention, AttentionState

_ROOM = 64  # columns by which a full buffer grows at least; by half, where that is more
_END = 64  # bytes behind the columns, for the header
_FULL = 2
_pack_claim = Struct("P6q 2q5q 2q5q").pack
_pack_room = Struct("4P6q").pack
_pack_extend = Struct("7P9qd").pack
_FIELDS = {"k": 1, "v": 2, "S": 12, "k_row": 13, "v_row": 14}  # of the last, by number


class AttentionStep:
    """`_recorded.Step` of attention. It takes states whose rows are all at one position."""

    def __init__(self, mixer: "Attention", batch: int, dtype: torch.dtype) -> None:
        config = mixer.config
        self._mixer, self._kind, self._dtype, self._batch = mixer, mixer.State, dtype, batch
        self._groups, self._width = config.groups, config.head_width
        self._row = self._groups * self._width
        self._most = config.max_positions if config.positions == "learned" else inf
        self._keep = -1 if config.window == inf else int(config.window) - 1
        self._code, self._size = _core.DTYPES[dtype], dtype.itemsize
        self._before, self._after = (torch.empty(batch, dtype=torch.int64, device="cpu") for _ in range(2))

    def record(self, tape: Tape, x: Tensor, y: Tensor, add: bool) -> None:
        mixer, config, batch = self._mixer, self._mixer.config, len(x)
        qkv = project(tape, mixer, x, self._before)
        q, mixed = (
            tape.buffer(use, batch, config.heads * self._width, dtype=x.dtype)
            for use in ("query", "attention")
        )
        sizes = (self._code, batch, config.heads, self._groups, self._width)
        held = tape.add(
            "qt_attention_extend",
            _pack_extend(
                *(qkv.data_ptr(), 0, 0, q.data_ptr(), mixed.data_ptr()),
                *(self._before.data_ptr(), self._after.data_ptr(), *sizes),
                *(0, 0, 0, _core.threads(), config.rotary_base if config.positions == "rotary" else 0.0),
            ),
        )
        self._fields = {name: c_int64.from_buffer(held, 8 * at) for name, at in _FIELDS.items()}
        linear_step.record(tape, mixed, mixer.out_proj.weight, y if add else None, y)

    def open(self, tape: Tape) -> None:
        self._was, self._will = tape.places(self._before, self._after)
        del self._before, self._after, self._mixer

    def bind(self, state: "AttentionState") -> "AttentionState | None":
        if type(state) is not self._kind:
            return None
        k, v, position = state
        if not (self._takes(k) and self._takes(v) and k.shape == v.shape and self._counts(position)):
            return None
        columns, parts = k.shape[1], (_part(k), _part(v))
        code = self._claim(position, columns, parts)
        if code == _FULL:
            k, v = self._copy(k, v, columns)
            parts = (_part(k), _part(v))
        elif code:
            return None
        after = torch.empty_like(position)
        put(position, self._was)
        put(after, self._will)
        self._fields["S"].value = columns
        kept = columns + 1 if self._keep < 0 else min(columns + 1, self._keep)
        self._put("k", parts[0])
        self._put("v", parts[1])
        return self._kind(
            self._view(k, parts[0], columns, kept), self._view(v, parts[1], columns, kept), after
        )

    def _takes(self, x: object) -> bool:
        if type(x) is not Tensor or x.dtype is not self._dtype or not x.is_cpu or x.requires_grad:
            return False
        shape = x.shape
        return (
            len(shape) == 4
            and shape[0] == self._batch
            and shape[2] == self._groups
            and shape[3] == self._width
        )

    def _counts(self, position: object) -> bool:
        return (
            type(position) is Tensor
            and position.dtype is torch.int64
            and position.is_cpu
            and position.ndim == 1
            and len(position) == self._batch
            and position.is_contiguous()
            and (self._most == inf or int(position[0]) < self._most)
        )

    def _claim(self, position: Tensor, columns: int, parts: tuple["_Part", "_Part"]) -> int:
        sizes = (self._code, self._batch, columns, self._groups, self._width, self._keep)
        row = _pack_claim(position.data_ptr(), *sizes, *parts[0], *parts[1])
        code: int = _core.function("qt_attention_claim")(row)  # type: ignore[arg-type]  # the address of bytes
        return code

    def _copy(self, k: Tensor, v: Tensor, columns: int) -> tuple[Tensor, Tensor]:
        """Their columns at the front of new buffers, the next column claimed."""
        room = columns + 1 + max(_ROOM, columns // 2)
        row = self._row
        count = self._batch * room * row
        new = [k.new_empty(count + _END // self._size) for _ in range(2)]
        old = (k.contiguous(), v.contiguous())
        sizes = (self._code, self._batch, columns, row, room, new[0].numel() * self._size)
        call("qt_attention_room", _pack_room(*(x.data_ptr() for x in (*old, *new)), *sizes))
        shape, strides = (self._batch, columns, self._groups, self._width), (room * row, row, self._width, 1)
        return new[0].as_strided(shape, strides), new[1].as_strided(shape, strides)

    def _put(self, name: str, part: "_Part") -> None:
        storage, _, first, row, *_ = part
        self._fields[name].value = storage + first * self._size
        self._fields[f"{name}_row"].value = row

    def _view(self, x: Tensor, part: "_Part", columns: int, kept: int) -> Tensor:
        """The last ``kept`` of the part's columns and the one behind them."""
        row = self._row
        first = part[2] + (columns + 1 - kept) * row
        return x.as_strided(
            (self._batch, kept, self._groups, self._width), (part[3], row, self._width, 1), first
        )


_Part = tuple[
    int, ...
]  # where a tensor stands: address and bytes of its storage, its first element, its strides


def _part(x: Tensor) -> _Part:
    storage = x.untyped_storage()
    return storage.data_ptr(), storage.nbytes(), int(x.storage_offset()), *x.stride()
