"""The causal convolution's Triton kernels; see triton.py beside this file. A tile is steps by channels."""

import triton
import triton.language as tl

from quatrain.kernels._triton_math import sigmoid


@triton.jit
def _place(index, lengths, bounds, row, t, time):
    """Sequence, first step and step behind the last of the sequence that each step lies in."""
    if bounds is not None:
        sequence = tl.load(index + t, mask=t < time, other=0)
        start = tl.minimum(tl.maximum(tl.load(bounds + sequence), 0), time)
        return sequence, start, tl.minimum(tl.maximum(tl.load(bounds + sequence + 1), start), time)
    end = t * 0 + time
    if lengths is not None:
        end = t * 0 + tl.minimum(tl.maximum(tl.load(lengths + row), 0), time)
    return t * 0 + row, t * 0, end


@triton.jit
def _seen(x, h0, sequence, start, row, at, time, e, channels, inside, TAPS: tl.constexpr):
    """Inputs at the steps ``at``, of which those before the sequence's start are in h0."""
    fresh = inside & (at >= start)
    value = tl.load(x + (row * time + at) * channels + e, mask=fresh, other=0.0).to(tl.float32)
    if h0 is not None:
        place = h0 + (sequence * (TAPS - 1) + at - start + TAPS - 1) * channels + e
        old = inside & (at < start) & (at >= start - (TAPS - 1))
        value += tl.load(place, mask=old, other=0.0).to(tl.float32)
    return value


@triton.jit
def _sum(x, weight, bias, h0, sequence, start, row, t, time, e, channels, inside, TAPS: tl.constexpr):
    """What silu is taken of."""
    z = tl.zeros_like(inside.to(tl.float32))
    if bias is not None:
        z += tl.load(bias + e, mask=e < channels, other=0.0).to(tl.float32)
    for tap in tl.static_range(TAPS):
        w = tl.load(weight + e * TAPS + tap, mask=e < channels, other=0.0).to(tl.float32)
        at = t - (TAPS - 1) + tap
        z += w * _seen(x, h0, sequence, start, row, at, time, e, channels, inside, TAPS)
    return z


@triton.jit
def _tile(channels, T: tl.constexpr, E: tl.constexpr):
    """Row, steps and channels of a program."""
    t = (tl.program_id(1) * T + tl.arange(0, T)).to(tl.int64)[:, None]
    return tl.program_id(0).to(tl.int64), t, (tl.program_id(2) * E + tl.arange(0, E))[None, :]


@triton.jit
def forward_kernel(
    x, weight, bias, h0, index, lengths, bounds, y, time, channels,
    SILU: tl.constexpr, TAPS: tl.constexpr, T: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    row, t, e = _tile(channels, T, E)
    sequence, start, end = _place(index, lengths, bounds, row, t, time)
    inside = (t >= start) & (t < end) & (e < channels)
    z = _sum(x, weight, bias, h0, sequence, start, row, t, time, e, channels, inside, TAPS)
    z = z * sigmoid(z) if SILU else z
    out = tl.where(inside, z, 0.0).to(y.dtype.element_ty)
    tl.store(y + (row * time + t) * channels + e, out, mask=(t < time) & (e < channels))


@triton.jit
def _borders(lengths, bounds, sequence, time, k, TAPS: tl.constexpr):
    """Row, first step and step behind the last of one sequence; which rows of the tile are a state's."""
    start, end, row = sequence * 0, sequence * 0 + time, sequence
    if lengths is not None:
        end = tl.minimum(tl.maximum(tl.load(lengths + sequence), 0), time)
    if bounds is not None:
        start = tl.minimum(tl.maximum(tl.load(bounds + sequence), 0), time)
        end, row = tl.minimum(tl.maximum(tl.load(bounds + sequence + 1), start), time), sequence * 0
    return row, start, end, k < TAPS - 1


@triton.jit
def last_kernel(
    x, h0, lengths, bounds, last, time, channels, TAPS: tl.constexpr, E: tl.constexpr
):  # fmt: skip
    sequence, k = tl.program_id(0).to(tl.int64), tl.arange(0, 8)[:, None]
    e = (tl.program_id(1) * E + tl.arange(0, E))[None, :]
    row, start, end, real = _borders(lengths, bounds, sequence, time, k, TAPS)
    inside = real & (e < channels)
    value = _seen(x, h0, sequence, start, row, end - (TAPS - 1) + k, time, e, channels, inside, TAPS)
    place = last + (sequence * (TAPS - 1) + k) * channels + e
    tl.store(place, value.to(last.dtype.element_ty), mask=inside)


@triton.jit
def sums_kernel(
    x, weight, bias, h0, index, lengths, bounds, dy, dz, parts, time, channels,
    SILU: tl.constexpr, TAPS: tl.constexpr, T: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """The cotangent of what silu is taken of, and a tile's parts of the gradients of weight and bias."""
    row, t, e = _tile(channels, T, E)
    sequence, start, end = _place(index, lengths, bounds, row, t, time)
    inside = (t >= start) & (t < end) & (e < channels)
    at = (row * time + t) * channels + e
    d = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
    if SILU:
        z = _sum(x, weight, bias, h0, sequence, start, row, t, time, e, channels, inside, TAPS)
        s = sigmoid(z)
        d = d * s * (1.0 + z * (1.0 - s))
    tl.store(dz + at, d, mask=(t < time) & (e < channels))
    place = parts + (row * tl.num_programs(1) + tl.program_id(1)) * (TAPS + 1) * channels
    lane = tl.program_id(2) * E + tl.arange(0, E)
    for tap in tl.static_range(TAPS):
        seen = _seen(x, h0, sequence, start, row, t - (TAPS - 1) + tap, time, e, channels, inside, TAPS)
        tl.store(place + tap * channels + lane, tl.sum(d * seen, axis=0), mask=lane < channels)
    tl.store(place + TAPS * channels + lane, tl.sum(d, axis=0), mask=lane < channels)


@triton.jit
def _pulled(dz, weight, dlast, sequence, start, end, row, at, time, e, channels, inside, TAPS: tl.constexpr):
    """The gradient of the inputs at the steps ``at``."""
    d = tl.zeros_like(inside.to(tl.float32))
    for tap in tl.static_range(TAPS):
        t = at + TAPS - 1 - tap
        w = tl.load(weight + e * TAPS + tap, mask=e < channels, other=0.0).to(tl.float32)
        mask = inside & (t >= start) & (t < end)
        d += w * tl.load(dz + (row * time + t) * channels + e, mask=mask, other=0.0)
    if dlast is not None:
        k = at - end + TAPS - 1
        mask = inside & (k >= 0) & (k < TAPS - 1)
        place = dlast + (sequence * (TAPS - 1) + k) * channels + e
        d += tl.load(place, mask=mask, other=0.0).to(tl.float32)
    return d


@triton.jit
def inputs_kernel(
    dz, weight, dlast, index, lengths, bounds, dx, time, channels,
    TAPS: tl.constexpr, T: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    row, t, e = _tile(channels, T, E)
    sequence, start, end = _place(index, lengths, bounds, row, t, time)
    inside = (t >= start) & (t < end) & (e < channels)
    d = _pulled(dz, weight, dlast, sequence, start, end, row, t, time, e, channels, inside, TAPS)
    out = tl.where(inside, d, 0.0).to(dx.dtype.element_ty)
    tl.store(dx + (row * time + t) * channels + e, out, mask=(t < time) & (e < channels))


@triton.jit
def first_kernel(
    dz, weight, dlast, lengths, bounds, dh0, time, channels, TAPS: tl.constexpr, E: tl.constexpr
):  # fmt: skip
    """The gradient of the inputs before a sequence."""
    sequence, k = tl.program_id(0).to(tl.int64), tl.arange(0, 8)[:, None]
    e = (tl.program_id(1) * E + tl.arange(0, E))[None, :]
    row, start, end, real = _borders(lengths, bounds, sequence, time, k, TAPS)
    inside, at = real & (e < channels), start - (TAPS - 1) + k
    d = _pulled(dz, weight, dlast, sequence, start, end, row, at, time, e, channels, inside, TAPS)
    place = dh0 + (sequence * (TAPS - 1) + k) * channels + e
    tl.store(place, d.to(dh0.dtype.element_ty), mask=inside)
