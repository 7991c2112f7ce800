"""A whole recurrent layer on the CPU: input projection and scan together, a few hundred rows at a time.

The projection of all steps at once is the right product but the wrong memory: touching fresh pages costs more
than the scan's elementwise work. Here one small buffer is filled and read again and again, both ways.
"""

from collections.abc import Callable
from ctypes import CFUNCTYPE, c_int, c_int64, c_void_p
from typing import Any, Protocol

import torch
from torch import Tensor

from quatrain.kernels import _core, _pool
from quatrain.kernels._autograd import call, first_order, no_autocast, recorded
from quatrain.kernels._check import wide_dtype
from quatrain.kernels._recurrent import (
    DTYPES,
    GRU,
    Kind,
    Saved,
    common,
    dense_rows,
    new_saved,
    run,
    saved_fields,
)

_ROWS = 1024  # of the buffer, about: enough for a fast product, few enough to stay in the cache
_CALLBACK = CFUNCTYPE(c_int, c_int64, c_int64)


STEP_ROWS = 8  # of a batch, up to which `step` is faster than a packed scan of one step


class Run(Protocol):
    """`layer` or `step`."""

    def __call__(
        self,
        kind: Kind,
        x: Tensor,
        in_weight: Tensor,
        in_bias: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        h0: Tensor | None,
        c0: Tensor | None,
        *,
        variant: int = 0,
        impl: str = "auto",
    ) -> tuple[Tensor, ...] | None: ...


def layer(
    kind: Kind,
    x: Tensor,
    in_weight: Tensor,
    in_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    *,
    variant: int = 0,
    impl: str = "auto",
) -> tuple[Tensor, ...] | None:
    """The scan of ``x in_weight^T + in_bias`` for x (B, T, I): y, h and, for an LSTM, c.

    Arguments are taken as checked; all have one dtype but for the states, which may be wide. Under autocast
    they get its dtype. None where the core does not do it: then the projection and the op are to be called.
    """
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, in_weight, weight = (v.to(dtype) for v in (x, in_weight, weight))
        in_bias, bias = (None if v is None else v.to(dtype) for v in (in_bias, bias))
    if not (_can_run(x, impl) and fit(kind, x, in_weight, in_bias, weight, bias)):
        return None
    results: tuple[Tensor, ...] = call(_Layer, kind, variant, x, in_weight, in_bias, weight, bias, h0, c0)
    return results


def step(
    kind: Kind,
    x: Tensor,
    in_weight: Tensor,
    in_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    *,
    variant: int = 0,
    impl: str = "auto",
) -> tuple[Tensor, ...] | None:
    """`layer` for one step, x (B, I), without a gradient: every weight is read once, nothing is packed.

    y (B, D), h and, for an LSTM, c. None where the core does not do it, or a gradient is wanted.
    """
    if h0 is None or len(x) > STEP_ROWS or not _can_run(x, impl) or torch.is_autocast_enabled("cpu"):
        return None
    width, wide = weight.shape[1], wide_dtype(x.dtype)
    if recorded(x, in_weight, weight, h0) or in_weight.dtype != x.dtype:
        return None
    if not fit(kind, x, in_weight, in_bias, weight, bias):
        return None
    h0, c0 = h0.to(wide), None if c0 is None else c0.to(wide)
    y, h = x.new_empty(len(x), width), h0.new_empty(h0.shape)
    c = None if c0 is None else torch.empty_like(h)
    if bias is not None and bias.dtype != wide:
        bias = bias.to(wide)
    fields = {
        "dtype": _core.DTYPES[x.dtype],
        "threads": _core.threads(),
        "variant": variant,
        "batch": len(x),
        "time": 1,
        "width": width,
        "sequences": len(x),
        "x": x.contiguous(),
        "in_weight": in_weight.contiguous(),
        "in_bias": in_bias,
        "in_width": in_weight.shape[1],
        "weight": weight.contiguous(),
        "bias": bias,
        "h0": h0.contiguous(),
        "c0": None if c0 is None else c0.contiguous(),
        "y": y,
        "h": h,
        "c": c,
    }
    run(f"qt_{kind.name}_step", fields)
    return (y, h) if c is None else (y, h, c)


def _can_run(x: Tensor, impl: str) -> bool:
    return (
        impl in ("auto", "cpp")
        and x.device.type == "cpu"
        and x.dtype in DTYPES
        and not torch.compiler.is_compiling()
        and _core.missing() is None
    )


def fit(
    kind: Kind, x: Tensor, in_weight: Tensor, in_bias: Tensor | None, weight: Tensor, bias: Tensor | None
) -> bool:
    """Whether the shapes of weights fit each other: whoever exchanged one gets the op's error instead."""
    rows, width = weight.shape
    return (
        rows == kind.gates * width
        and in_weight.shape == (rows, x.shape[-1])
        and (in_bias is None or in_bias.shape == (rows,))
        and (bias is None or bias.shape == (width,))
    )


def _in_chunks(
    name: str, fields: dict[str, Any], batch: int, time: int, work: Callable[[int, int], None]
) -> None:
    """Run a scan that calls ``work(first, steps)`` for every chunk; an exception in it is raised here."""
    failed: list[BaseException] = []

    def guarded(first: int, steps: int) -> int:
        try:
            work(first, steps)
        except BaseException as error:
            failed.append(error)
            return 1
        return 0

    # No attribute and no ctypes.cast: either makes a cycle, which keeps every tensor of ``work`` alive until
    # Python looks for cycles, and a training loop makes it do that too rarely.
    function = _CALLBACK(guarded)
    fields |= {"callback": c_void_p.from_buffer(function).value, "chunk": min(time, max(1, _ROWS // batch))}
    try:
        run(name, fields)
    except RuntimeError:
        if not failed:
            raise
    if failed:
        raise failed[0]


def _buffer(x: Tensor, columns: int) -> Tensor:
    """(rows, columns) for the steps of one chunk, row t B + b, a little apart for the cache's sake."""
    rows = min(_ROWS, x.shape[0] * x.shape[1]) + x.shape[0]
    apart = 64 // x.element_size()
    return _pool.empty((rows, columns + apart), x.dtype)[:, :columns]


class _Part:
    """The rows t B + b of some steps of ``x (B, T, F)``: in one buffer, or x itself where B is 1."""

    def __init__(self, x: Tensor) -> None:
        self._x = x
        self._buffer = None if len(x) == 1 else _buffer(x, x.shape[2])

    def rows(self, first: int, steps: int) -> Tensor:
        """(steps B, F); overwritten by the next call."""
        part = self._x[:, first : first + steps]
        if self._buffer is None:
            return part[0]
        rows = self._buffer[: steps * len(part)]
        rows.view(steps, len(part), -1).copy_(part.transpose(0, 1))
        return rows


def _strides(name: str, buffer: Tensor, batch: int) -> dict[str, Any]:
    row = buffer.stride(0)
    return {name: buffer, f"{name}_row": row, f"{name}_step": batch * row}


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kind: Kind,
        variant: int,
        x: Tensor,
        in_weight: Tensor,
        in_bias: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        h0: Tensor | None,
        c0: Tensor | None,
    ) -> tuple[Tensor, ...]:
        keep = any(ctx.needs_input_grad)
        x, weight, wide = dense_rows(x), weight.contiguous(), wide_dtype(x.dtype)
        (batch, time), columns = x.shape[:2], in_weight.shape[0]
        saved = new_saved(kind, x, weight.shape[1], None, keep)
        matrix, drive, part = in_weight.T, _buffer(x, columns), _Part(x)

        def project(first: int, steps: int) -> None:
            rows = part.rows(first, steps)
            out = drive[: batch * steps]
            if in_bias is None:
                torch.mm(rows, matrix, out=out)
            else:
                torch.addmm(in_bias, rows, matrix, out=out)

        starts = [None if s is None else s.to(wide).contiguous() for s in (bias, h0, c0)]
        fields = common(kind, x, weight, None, variant) | saved_fields(saved)
        fields |= dict(zip(("bias", "h0", "c0"), starts, strict=True)) | _strides("x", drive, batch)
        with no_autocast(x):
            _in_chunks(f"qt_{kind.name}_forward", fields, batch, time, project)
        if keep:
            kept = (saved.gates, saved.cells, saved.inner, None if saved.states is saved.y else saved.states)
            ctx.save_for_backward(saved.y, *kept, x, in_weight, in_bias, weight, bias, h0, c0)
            ctx.kind, ctx.variant = kind, variant
        return (saved.y, saved.h) if saved.c is None else (saved.y, saved.h, saved.c)

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor, dh: Tensor, dc: Tensor | None = None) -> tuple[Any, ...]:
        y, gates, cells, inner, states, x, in_weight, in_bias, weight, bias, h0, c0 = ctx.saved_tensors
        kind: Kind = ctx.kind
        saved = Saved(y, dh, dc, gates, cells, inner, y if kind.states and states is None else states)
        sums = _Sums(kind, saved, x, in_weight, weight, h0, ctx.needs_input_grad)
        fields = common(kind, y, weight, None, ctx.variant) | saved_fields(saved)
        wide, dy = wide_dtype(y.dtype), dense_rows(dy)
        dh0, dc0 = y.new_empty(2, len(y), weight.shape[1], dtype=wide).unbind(0)
        fields |= {
            "y": None,
            "h": None,
            "c": None,
            "h0": None if h0 is None else h0.to(wide).contiguous(),
            "c0": None if c0 is None else c0.to(wide).contiguous(),
            "dy": dy,
            "dy_row": dy.stride(0),
            "dy_step": dy.stride(1),
            "dh": dh.contiguous(),
            "dc": None if dc is None else dc.contiguous(),
            "dh0": dh0,
            "dc0": dc0,
        } | _strides("dx", sums.dx, len(y))
        if sums.dinner is not None:
            fields |= _strides("dinner", sums.dinner, len(y))
        with no_autocast(y):
            _in_chunks(f"qt_{kind.name}_backward", fields, len(y), y.shape[1], sums.add)
        return (
            None,
            None,
            sums.of_x,
            sums.of_in_weight.to(in_weight.dtype),
            None if in_bias is None else sums.of_in_bias.to(in_bias.dtype),
            sums.of_weight.to(weight.dtype),
            None if bias is None else sums.of_bias.to(bias.dtype),
            None if h0 is None else dh0.to(h0.dtype),
            None if c0 is None else dc0.to(c0.dtype),
        )


class _Sums:
    """Gradients of everything before the scan, summed up in float32 or wider while the scan runs backwards.

    Attributes:
        dx: buffer that the scan fills with the cotangents of some steps' drive.
        dinner: the same for the product inside a GRU's reset gate.
    """

    def __init__(
        self,
        kind: Kind,
        saved: Saved,
        x: Tensor,
        in_weight: Tensor,
        weight: Tensor,
        h0: Tensor | None,
        needed: tuple[bool, ...],
    ) -> None:
        self._kind, self._saved, self._x, self._in_weight, self._h0 = kind, saved, _Part(x), in_weight, h0
        self._batch, _, width = saved.y.shape
        wide = wide_dtype(x.dtype)
        self.dx = _buffer(x, kind.gates * width)
        self.dinner = _buffer(x, width) if kind is GRU else None
        self._h = _buffer(x, width)
        self.of_x = _pool.empty(tuple(x.shape), x.dtype) if needed[2] else None
        self.of_in_weight, self.of_weight = (
            _pool.empty(tuple(w.shape), wide).zero_() for w in (in_weight, weight)
        )
        self.of_in_bias = x.new_zeros(kind.gates * width, dtype=wide)
        self.of_bias = x.new_zeros(width, dtype=wide)

    def add(self, first: int, steps: int) -> None:
        """Take in the cotangents of steps [first, first + steps)."""
        count, batch = self._batch * steps, self._batch
        dx = self.dx[:count]
        if self.of_x is not None:
            out = self.of_x[:, first : first + steps].transpose(0, 1)
            if batch == 1:
                torch.mm(dx, self._in_weight, out=out[:, 0])
            else:
                out.copy_((dx @ self._in_weight).view(steps, batch, -1))
        rows = self._x.rows(first, steps)
        _add_product(self.of_in_weight, dx, rows)
        self.of_in_bias += dx.sum(0, dtype=self.of_in_bias.dtype)
        h, width = self._h[:count], self._h.shape[1]
        self._put_h_before(h.view(steps, batch, -1), first)
        if self._kind.gates != 3:
            _add_product(self.of_weight, dx, h)
            return
        _add_product(self.of_weight[: 2 * width], dx[:, : 2 * width], h)
        if self.dinner is not None:
            dinner = self.dinner[:count]
            _add_product(self.of_weight[2 * width :], dinner, h)
            self.of_bias += dinner.sum(0, dtype=self.of_bias.dtype)
        else:
            assert self._saved.inner is not None
            inner = _Part(self._saved.inner).rows(first, steps)
            _add_product(self.of_weight[2 * width :], dx[:, 2 * width :], inner)

    def _put_h_before(self, h: Tensor, first: int) -> None:
        """The states before steps [first, first + steps), as operands of the product."""
        y = self._saved.y.transpose(0, 1)
        if first > 0:
            h.copy_(y[first - 1 : first - 1 + len(h)])
            return
        h[1:] = y[: len(h) - 1]
        h[0] = 0 if self._h0 is None else self._h0


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left^T right; products of bfloat16 are rounded to it once."""
    if left.dtype == total.dtype:
        total.addmm_(left.T, right)
    else:
        total += left.T @ right
