"""The two batch forms: padded rows with ``lengths``, or one packed row cut by ``cu_seqlens``."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from quatrain.errors import ShapeError

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)


def check_batch(
    x: Tensor, *, lengths: Tensor | None = None, cu_seqlens: Tensor | None = None, op: str = ""
) -> int:
    """Check the batch form of ``x (B, T, ...)`` and return the number of sequences: B, or S where packed.

    Args:
        lengths: (B,) integers in [0, T], rows padded on the right.
        cu_seqlens: (S + 1,) integers from 0 to T, never falling; B must be 1.
        op: name in front of a message.

    Contents are read only where they lie on the CPU: on a GPU that would stop the stream
    (`check_contents` does it on request).

    Raises:
        ShapeError: T or B is 0, or an index tensor has a wrong shape, dtype, device or content.
    """
    where = f"{op}: " if op else ""
    batch, time = x.shape[:2]
    if batch == 0 or time == 0:
        raise ShapeError(f"{where}x: shape {tuple(x.shape)}: must have at least one row and one step")
    if lengths is not None and cu_seqlens is not None:
        raise ShapeError(f"{where}cu_seqlens: given together with lengths: must be one of the two")
    if lengths is not None:
        check_lengths(lengths, x, op=op)
    if cu_seqlens is not None:
        _check_integers(where, "cu_seqlens", cu_seqlens, x)
        if batch != 1:
            raise ShapeError(f"{where}cu_seqlens: given with a batch of {batch}: packed rows have B = 1")
        if cu_seqlens.ndim != 1 or len(cu_seqlens) < 2:
            raise ShapeError(
                f"{where}cu_seqlens: shape {tuple(cu_seqlens.shape)}: must be (S + 1,) with S at least 1"
            )
        batch = len(cu_seqlens) - 1
        if x.device.type == "cpu":
            check_contents(time, cu_seqlens=cu_seqlens, op=op)
    return batch


def check_lengths(
    lengths: object, x: Tensor, *, op: str = "", name: str = "lengths", letter: str = "T"
) -> None:
    """Check ``lengths (B,)`` of ``x (B, T, ...)``; contents only on the CPU. Raises ShapeError."""
    index = check_index(lengths, x, op=op, name=name)
    if x.device.type == "cpu":
        check_contents(x.shape[1], lengths=index, op=op, name=name, letter=letter)


def check_index(index: object, x: Tensor, *, op: str = "", name: str) -> Tensor:
    """Check that ``index`` is one integer per row of x, on x's device. Raises ShapeError."""
    where = f"{op}: " if op else ""
    checked = _check_integers(where, name, index, x)
    if checked.shape != x.shape[:1]:
        raise ShapeError(f"{where}{name}: shape {tuple(checked.shape)}: must be (B,) = ({x.shape[0]},)")
    return checked


def check_contents(
    time: int,
    *,
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    op: str = "",
    name: str = "lengths",
    letter: str = "T",
) -> None:
    """Check what index tensors hold, wherever they lie; on a GPU this waits for it.

    Raises:
        ShapeError: a length outside [0, T], or ``cu_seqlens`` that does not rise from 0 to T.
    """
    where = f"{op}: " if op else ""
    if lengths is not None and bool(((lengths < 0) | (lengths > time)).any()):
        raise ShapeError(f"{where}{name} = {_show(lengths)}: must lie in [0, {letter}] = [0, {time}]")
    if cu_seqlens is not None:
        ok = (cu_seqlens[0] == 0) & (cu_seqlens[-1] == time) & (cu_seqlens.diff() >= 0).all()
        if not bool(ok):
            rule = f"must rise from 0 to the total length {time}, never falling"
            raise ShapeError(f"{where}cu_seqlens = {_show(cu_seqlens)}: {rule}")


def _check_integers(where: str, name: str, index: object, x: Tensor) -> Tensor:
    if not isinstance(index, Tensor):
        raise ShapeError(f"{where}{name}: a {type(index).__name__}: must be a tensor")
    if index.dtype not in _INTEGERS:
        raise ShapeError(f"{where}{name}: dtype {index.dtype}: must be an integer type")
    if index.device != x.device:
        raise ShapeError(f"{where}{name}: device {index.device}: must be {x.device}, as the data's")
    return index


def _show(index: Tensor) -> str:
    values = index.tolist()
    return str(values) if len(values) <= 12 else f"[{', '.join(map(str, values[:12]))}, ...]"


def mask(lengths: Tensor, time: int) -> Tensor:
    """(B, T) bool: True on the valid steps of each row."""
    return torch.arange(time, device=lengths.device) < lengths[:, None]


def unpack(x: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """Packed ``(1, total, ...)`` to padded ``(S, longest, ...)`` with zeros behind, and lengths (S,).

    Differentiable in x. Reads the longest length on the host. ``longest`` is at least 1.
    """
    starts, lengths = cu_seqlens[:-1], cu_seqlens.diff()
    longest = max(int(lengths.max()), 1)
    steps = torch.arange(longest, device=x.device)
    source = (starts[:, None] + steps).clamp(max=x.shape[1] - 1)  # (S, longest)
    past = (steps >= lengths[:, None]).reshape(*source.shape, *(1,) * (x.ndim - 2))
    return x[0][source].masked_fill(past, 0), lengths


def pack(padded: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Padded ``(S, longest, ...)`` to packed ``(1, total, ...)``: undoes `unpack`. Differentiable."""
    row, step = rows_and_steps(cu_seqlens, int(cu_seqlens[-1]))
    return padded[row, step][None]


def rows_and_steps(cu_seqlens: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """For each packed position its sequence and its step within it: two (total,) int64 tensors."""
    cu_seqlens = cu_seqlens.to(torch.int64)
    row = torch.repeat_interleave(
        torch.arange(len(cu_seqlens) - 1, device=cu_seqlens.device), cu_seqlens.diff(), output_size=total
    )
    return row, torch.arange(total, device=cu_seqlens.device) - cu_seqlens[row]


def reversal(x: Tensor, lengths: Tensor | None, cu_seqlens: Tensor | None) -> Tensor | None:
    """For `reverse`: which of the B T rows of ``x (B, T, ...)`` comes where each sequence is read backwards.

    (B T,) int64, computed on the device; padding stays where it is. None where all rows have all steps.
    """
    batch, time = x.shape[:2]
    step = torch.arange(time, device=x.device)
    if cu_seqlens is not None:
        bounds = cu_seqlens.to(torch.int64).contiguous()
        row = torch.searchsorted(bounds[1:], step, right=True).clamp(max=len(bounds) - 2)
        source = bounds[row] + bounds[row + 1] - 1 - step
    elif lengths is not None:
        size = lengths.to(torch.int64)[:, None]
        source = torch.where(step < size, size - 1 - step, step)
    else:
        return None
    source = source.clamp(0, time - 1)  # whatever a GPU's index tensors hold, which nobody has checked
    return (source + time * torch.arange(batch, device=x.device)[:, None]).flatten()


class _Reversed(torch.autograd.Function):
    """Rows in an order that undoes itself: so does the gradient, where torch's own would add row by row."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        (order,) = ctx.saved_tensors
        return cotangent.index_select(0, order), None


def reverse(x: Tensor, order: Tensor | None) -> Tensor:
    """``x (B, T, ...)`` with the valid steps of each sequence in reverse, see `reversal`; twice gives x."""
    if order is None:
        return x.flip(1)
    rows: Tensor = _Reversed.apply(x.flatten(0, 1), order)  # type: ignore[no-untyped-call]
    return rows.view(x.shape)


Run = Callable[[list[Any], list[Any]], tuple[Tensor, ...]]


def by_sequence(
    run: Run,
    data: list[Any],
    states: list[Any],
    lengths: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, ...]:
    """Run a definition on each sequence alone: what lengths and packing mean, said in the plainest way.

    Args:
        run: (data (B, T, ...) each, states (B, ...) each) -> (y (B, T, ...), *states); T may be 0.
        data: tensors (B, T, ...), or None for absent ones, but for the first.
        states: tensors (B, ...) or None.

    Returns:
        y in the form of the data, zeros past the lengths, and the states of all sequences.
    """
    if lengths is None and cu_seqlens is None:
        return run(data, states)
    if cu_seqlens is not None:
        bounds = cu_seqlens.tolist()
        spans = [(0, start, stop) for start, stop in pairwise(bounds)]
    else:
        assert lengths is not None
        spans = [(row, 0, length) for row, length in enumerate(lengths.tolist())]
    results = []
    for i, (row, start, stop) in enumerate(spans):
        cut = [None if x is None else x[row : row + 1, start:stop] for x in data]
        results.append(run(cut, [None if s is None else s[i : i + 1] for s in states]))
    ys, *after = zip(*results, strict=True)
    if cu_seqlens is not None:
        y = torch.cat(ys, dim=1)
    else:
        time = data[0].shape[1]
        y = torch.cat([F.pad(y, (*(0, 0) * (y.ndim - 2), 0, time - y.shape[1])) for y in ys])
    return y, *(torch.cat(parts) for parts in after)
