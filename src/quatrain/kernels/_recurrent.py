"""What the C++ RNN, LSTM and GRU scans share on the side of Python: arguments, saved tensors, gradients."""

from array import array
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quatrain.kernels import _core, _pool
from quatrain.kernels._autograd import no_autocast
from quatrain.kernels._check import wide_dtype
from quatrain.kernels._op import Arguments

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


class Kind(NamedTuple):
    """How a scan is named in the core, and what it keeps for the backward pass."""

    key: str
    name: str  # of the core's functions
    gates: int  # of x and weight
    kept: int = 0  # gates that are saved
    cell: bool = False
    states: bool = True  # h_t are needed


_APART = 16  # numbers between rows: rows a power of two of bytes apart share one set of every cache

RNN = Kind("rnn", "rnn", 1)
LSTM = Kind("lstm", "lstm", 4, kept=4, cell=True, states=False)
GRU = Kind("gru", "gru", 3, kept=4)
GRU_BEFORE = Kind("gru before", "gru", 3, kept=3)
KINDS = {kind.key: kind for kind in (RNN, LSTM, GRU, GRU_BEFORE)}

# struct QtRecurrent of _core/recurrent_abi.h, in its order
_FIELDS = (
    "dtype", "threads", "variant", "batch", "time", "width", "sequences", "lengths", "first",
    "order", "x", "x_row", "x_step", "weight", "bias", "h0", "c0", "y", "h", "c", "gates", "cells",
    "inner", "gates_row", "cells_row", "states", "states_row", "dy", "dy_row", "dy_step", "dh",
    "dc", "dx", "dx_row", "dx_step", "dh0", "dc0", "dinner", "dinner_row", "dinner_step",
    "callback", "chunk", "in_weight", "in_bias", "in_width",
)  # fmt: skip


class Saved(NamedTuple):
    """Results of `forward`, and what `backward` needs of them; None where a kind has no such thing."""

    y: Tensor
    h: Tensor
    c: Tensor | None
    gates: Tensor | None
    cells: Tensor | None
    inner: Tensor | None
    states: Tensor | None


class Ranks(NamedTuple):
    """Sequences of a ragged batch, longest first: int64 tensors on the CPU."""

    lengths: Tensor
    first: Tensor  # position b T + t of the first step
    order: Tensor  # which state


def why_not(arguments: Arguments) -> str | None:
    """Why the core cannot run these arguments; reads metadata only."""
    x = arguments["x"]
    if x.device.type != "cpu":
        return f"x is on {x.device.type}, the C++ core runs on the CPU"
    if x.dtype not in DTYPES:
        return f"x is {x.dtype}, must be float32, float64 or bfloat16"
    reason: str | None = _core.missing()
    return reason


def rank(x: Tensor, lengths: Tensor | None, cu_seqlens: Tensor | None) -> Ranks | None:
    """The sequences of a batch in the core's order; None where all rows have all steps."""
    if cu_seqlens is not None:
        bounds = cu_seqlens.to(torch.int64)
        first, length = bounds[:-1], bounds.diff()
    elif lengths is not None:
        length = lengths.to(torch.int64)
        first = torch.arange(x.shape[0]) * x.shape[1]
    else:
        return None
    order = torch.argsort(length, descending=True, stable=True)
    return Ranks(length[order], first[order], order)


def _padded(dtype: torch.dtype, width: int) -> int:
    """Numbers of one gate in a saved tensor: the width in whole vectors."""
    arguments = array("q", (_core.DTYPES[dtype], width))
    return _core.function("qt_recurrent_padded")(arguments.buffer_info()[0])


_PLACE = {name: i for i, name in enumerate(_FIELDS)}
_EMPTY = array("q", [0] * len(_FIELDS))


def _row(fields: dict[str, Any]) -> "array[int]":
    row = _EMPTY[:]
    for name, value in fields.items():
        if value is not None:
            row[_PLACE[name]] = value.data_ptr() if isinstance(value, Tensor) else value
    return row


def packed(fields: dict[str, Any]) -> bytes:
    """``struct QtRecurrent`` with these fields, the others 0."""
    return _row(fields).tobytes()


def run(name: str, fields: dict[str, Any]) -> None:
    """Call the core with these fields, the others 0. Raises RuntimeError if it refuses."""
    row = _row(fields)
    code = _core.function(name)(row.buffer_info()[0])
    if code:
        raise RuntimeError(f"{name}: the core refused its arguments (code {code})")


def common(kind: Kind, x: Tensor, weight: Tensor, ranks: Ranks | None, variant: int) -> dict[str, Any]:
    """The fields that say what is scanned."""
    batch, time = x.shape[:2]
    fields: dict[str, Any] = {
        "dtype": _core.DTYPES[x.dtype],
        "threads": _core.threads(),
        "variant": variant,
        "batch": batch,
        "time": time,
        "width": weight.shape[1],
        "sequences": batch,
        "weight": weight,
    }
    if ranks is not None:
        fields |= {"sequences": len(ranks.lengths), **ranks._asdict()}
    return fields


def dense_rows(x: Tensor) -> Tensor:
    """x itself if its last dimension is dense, else a dense copy."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


Layout = tuple[tuple[int, ...], torch.dtype]


def layout(
    kind: Kind, x: Tensor, width: int, cu_seqlens: Tensor | None, keep: bool
) -> tuple[Layout | None, ...]:
    """Shape and dtype of each field of `Saved`. States are None where they are y itself."""
    batch, time = x.shape[:2]
    wide = wide_dtype(x.dtype)
    state = ((batch if cu_seqlens is None else cu_seqlens.shape[0] - 1, width), wide)
    y = ((batch, time, width), x.dtype)
    padded = _padded(x.dtype, width)
    return (
        y,
        state,
        state if kind.cell else None,
        ((batch * time, kind.kept * padded + _APART), wide) if keep and kind.kept else None,
        ((batch * time, padded + _APART), wide) if keep and kind.cell else None,
        y if keep and kind is GRU_BEFORE else None,
        ((batch, time, padded), wide) if keep and kind.states and x.dtype != wide else None,
    )


def new_saved(kind: Kind, x: Tensor, width: int, cu_seqlens: Tensor | None, keep: bool) -> Saved:
    """Memory for the results, and for what a backward pass needs if it is to be kept."""
    y, h, c, gates, cells, inner, states = (
        None if one is None else _pool.empty(*one) for one in layout(kind, x, width, cu_seqlens, keep)
    )
    assert y is not None
    assert h is not None
    return Saved(y, h, c, gates, cells, inner, y if keep and kind.states and states is None else states)


def saved_fields(saved: Saved) -> dict[str, Any]:
    """The fields of results and kept tensors."""
    rows = {
        f"{name}_row": 0 if x is None else x.shape[-1]
        for name, x in (("gates", saved.gates), ("cells", saved.cells), ("states", saved.states))
    }
    return saved._asdict() | rows


def forward(
    kind: Kind,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    variant: int,
    lengths: Tensor | None,
    cu_seqlens: Tensor | None,
    keep: bool,
) -> Saved:
    """Run a scan; ``keep`` what a backward pass needs. See the op of that name for the meaning."""
    ranks, wide, width = rank(x, lengths, cu_seqlens), wide_dtype(x.dtype), weight.shape[1]
    x, weight = dense_rows(x), weight.to(x.dtype).contiguous()
    fields = common(kind, x, weight, ranks, variant)
    saved = new_saved(kind, x, width, cu_seqlens, keep)
    if lengths is not None:
        saved.y.zero_()
        if saved.inner is not None:
            saved.inner.zero_()
    starts = [None if s is None else s.to(wide).contiguous() for s in (bias, h0, c0)]
    fields |= {
        "x": x,
        "x_row": x.stride(0),
        "x_step": x.stride(1),
        "bias": starts[0],
        "h0": starts[1],
        "c0": starts[2],
    } | saved_fields(saved)
    run(f"qt_{kind.name}_forward", fields)
    return saved


class Grads(NamedTuple):
    """Gradients of `forward`'s arguments."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    h0: Tensor
    c0: Tensor | None


def backward(
    kind: Kind,
    saved: Saved,
    weight: Tensor,
    bias: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    variant: int,
    lengths: Tensor | None,
    cu_seqlens: Tensor | None,
    dy: Tensor,
    dh: Tensor,
    dc: Tensor | None,
) -> Grads:
    """Gradients from the cotangents of y and of the last states, in the dtypes of the arguments but for the
    states', which are wide."""
    y, width, wide = saved.y, weight.shape[1], wide_dtype(saved.y.dtype)
    ranks = rank(y, lengths, cu_seqlens)
    dy, matrix = dense_rows(dy), weight.to(y.dtype).contiguous()
    fields = common(kind, y, matrix, ranks, variant) | saved_fields(saved)
    batch, time, sequences = *y.shape[:2], fields["sequences"]
    dx = _pool.empty((batch, time, kind.gates * width), y.dtype)
    dinner = _pool.empty((batch, time, width), y.dtype) if kind is GRU else None
    if lengths is not None:
        dx.zero_()
        if dinner is not None:
            dinner.zero_()
    # of their own memory each: results of an op of torch.library may not share it
    dh0, dc0 = (y.new_empty(sequences, width, dtype=wide) for _ in range(2))
    start = None if h0 is None else h0.to(wide).contiguous()
    fields |= {
        "h0": start,
        "c0": None if c0 is None else c0.to(wide).contiguous(),
        "dy": dy,
        "dy_row": dy.stride(0),
        "dy_step": dy.stride(1),
        "dh": dh.contiguous(),
        "dc": None if dc is None else dc.contiguous(),
        "dx": dx,
        "dx_row": dx.stride(0),
        "dx_step": dx.stride(1),
        "dh0": dh0,
        "dc0": dc0,
        "dinner": dinner,
        "dinner_row": time * width,
        "dinner_step": width,
    }
    run(f"qt_{kind.name}_backward", fields)
    with no_autocast(dy):
        d_weight = weight_grad(kind, dx, dinner, _h_before(y, start, ranks), saved.inner, weight.dtype)
    d_bias = None
    if bias is not None and dinner is not None:
        d_bias = dinner.sum((0, 1), dtype=wide).to(bias.dtype)
    return Grads(dx, d_weight, d_bias, dh0, dc0 if kind.cell else None)


def _h_before(y: Tensor, h0: Tensor | None, ranks: Ranks | None) -> Tensor:
    """(B T, D): for every position the state before it, as operand of the product."""
    before = _pool.empty(tuple(y.shape), y.dtype)
    flat = before.view(-1, y.shape[2])
    flat[1:] = y.view_as(flat)[:-1]
    flat[0] = 0  # stays where the first row has no step: 0 times what memory held may be NaN
    if ranks is None:
        before[:, 0] = 0 if h0 is None else h0
    else:
        there = ranks.lengths > 0
        flat[ranks.first[there]] = 0 if h0 is None else h0[ranks.order[there]].to(y.dtype)
    return flat


def weight_grad(
    kind: Kind, dx: Tensor, dinner: Tensor | None, h: Tensor, inner: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The gradient of the recurrent matrix: one product over all steps, two for a GRU.

    Args:
        dx: cotangents of x; dinner: of the product inside a GRU's reset gate.
        h: (rows, D), the state before each row.
        inner: r h of a GRU with ``reset="before"``.
        dtype: of the result; float32 from bfloat16 operands is summed and kept in float32.
    """
    rows, width = dx.reshape(-1, dx.shape[-1]), h.shape[1]
    if kind.gates != 3:
        pairs = [(rows, h)]
    elif dinner is not None:
        pairs = [(rows[:, : 2 * width], h), (dinner.view(-1, width), h)]
    else:
        assert inner is not None
        pairs = [(rows[:, : 2 * width], h), (rows[:, 2 * width :], inner.reshape(-1, width))]
    if dtype != rows.dtype:
        pairs = [(left.to(dtype), right.to(dtype)) for left, right in pairs]
    parts = [left.T @ right for left, right in pairs]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
