"""The S6 scan's Triton kernels; see triton.py beside this file."""

import triton
import triton.language as tl

from quatrain.kernels._triton_math import exp_both, ramp, sigmoid, softplus


@triton.jit
def _place(lengths, bounds, sequence, time, MARK: tl.constexpr):
    """Where a sequence lies: row, first step, step behind its last, and its first mark."""
    if bounds is not None:
        start = tl.minimum(tl.maximum(tl.load(bounds + sequence), 0), time)
        end = tl.minimum(tl.maximum(tl.load(bounds + sequence + 1), start), time)
        return sequence * 0, start, end, start // MARK + sequence
    end = sequence * 0 + time
    if lengths is not None:
        end = tl.minimum(tl.maximum(tl.load(lengths + sequence), 0), time)
    return sequence, sequence * 0, end, sequence * ((time + MARK - 1) // MARK)


@triton.jit
def _step_size(delta, bias, at, inside, SOFTPLUS: tl.constexpr):
    """The step size, and what softplus is taken of."""
    raw = tl.load(delta + at, mask=inside, other=0.0).to(tl.float32) + bias
    return softplus(raw) if SOFTPLUS else raw, raw


@triton.jit
def _transition(dt, rate, ZOH: tl.constexpr):
    """exp(dt a), that minus 1, and what the drive u b is multiplied by."""
    decay, less = exp_both(dt[:, None] * rate)
    hold = less / rate if ZOH else dt[:, None] + tl.zeros_like(rate)
    return decay, less, hold


@triton.jit
def forward_kernel(
    u, delta, a, b, c, skip, gate, bias, h0, lengths, bounds, y, last, marks, time, states, groups, width,
    SOFTPLUS: tl.constexpr, ZOH: tl.constexpr, MARK: tl.constexpr, E: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    sequence, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, start, end, mark = _place(lengths, bounds, sequence, time, MARK)
    lane, n = tl.program_id(2) * E + tl.arange(0, E), tl.arange(0, N)
    channels = width * groups
    e, inside, valid = group * width + lane, lane < width, n < states
    own, both = e[:, None] * states + n[None, :], inside[:, None] & valid[None, :]
    rate = tl.load(a + own, mask=both, other=-1.0).to(tl.float32)
    direct, shift = tl.zeros([E], tl.float32), tl.zeros([E], tl.float32)
    if skip is not None:
        direct = tl.load(skip + e, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        shift = tl.load(bias + e, mask=inside, other=0.0).to(tl.float32)
    h = tl.zeros([E, N], tl.float32)
    if h0 is not None:
        h = tl.load(h0 + sequence * channels * states + own, mask=both, other=0.0).to(tl.float32)
    for t in range(start, end):
        at = (row * time + t) * channels + e
        maps = ((row * time + t) * groups + group) * states + n
        if marks is not None:
            place = marks + (mark + (t - start) // MARK) * channels * states
            tl.store(place + own, h, mask=both & ((t - start) % MARK == 0))
        x = tl.load(u + at, mask=inside, other=0.0).to(tl.float32)
        dt, _ = _step_size(delta, shift, at, inside, SOFTPLUS)
        decay, _, hold = _transition(dt, rate, ZOH)
        drive = tl.load(b + maps, mask=valid, other=0.0).to(tl.float32)
        read = tl.load(c + maps, mask=valid, other=0.0).to(tl.float32)
        h = decay * h + hold * x[:, None] * drive[None, :]
        out = tl.sum(h * read[None, :], axis=1) + direct * x
        if gate is not None:
            z = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
            out = out * z * sigmoid(z)
        tl.store(y + at, out.to(y.dtype.element_ty), mask=inside)
    tl.store(last + sequence * channels * states + own, h, mask=both)


@triton.jit
def backward_kernel(
    u, delta, a, b, c, skip, gate, bias, lengths, bounds, marks, dy, dh,
    du, ddelta, da, db, dc, dskip, dgate, dbias, dh0, scratch, time, rows, states, groups, width,
    SOFTPLUS: tl.constexpr, ZOH: tl.constexpr, MARK: tl.constexpr, E: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    sequence, group, block = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    row, start, end, mark = _place(lengths, bounds, sequence, time, MARK)
    lane, n = block * E + tl.arange(0, E), tl.arange(0, N)
    channels = width * groups
    e, inside, valid = group * width + lane, lane < width, n < states
    own, both = e[:, None] * states + n[None, :], inside[:, None] & valid[None, :]
    rate = tl.load(a + own, mask=both, other=-1.0).to(tl.float32)
    direct, shift = tl.zeros([E], tl.float32), tl.zeros([E], tl.float32)
    if skip is not None:
        direct = tl.load(skip + e, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        shift = tl.load(bias + e, mask=inside, other=0.0).to(tl.float32)
    g = tl.zeros([E, N], tl.float32)
    if dh is not None:
        g = tl.load(dh + sequence * channels * states + own, mask=both, other=0.0).to(tl.float32)
    program = (sequence * groups + group) * tl.num_programs(2) + block
    kept = scratch + program * MARK * E * N + tl.arange(0, E)[:, None] * N + n[None, :]
    rates, skips, shifts = tl.zeros([E, N], tl.float32), tl.zeros([E], tl.float32), tl.zeros([E], tl.float32)
    count = (end - start + MARK - 1) // MARK
    for turn in range(0, count):
        chunk = count - 1 - turn
        first = start + chunk * MARK
        stop = tl.minimum(first + MARK, end)
        h = tl.load(marks + (mark + chunk) * channels * states + own, mask=both, other=0.0)
        for t in range(first, stop):
            at = (row * time + t) * channels + e
            maps = ((row * time + t) * groups + group) * states + n
            tl.store(kept + (t - first) * E * N, h)
            x = tl.load(u + at, mask=inside, other=0.0).to(tl.float32)
            dt, _ = _step_size(delta, shift, at, inside, SOFTPLUS)
            decay, _, hold = _transition(dt, rate, ZOH)
            drive = tl.load(b + maps, mask=valid, other=0.0).to(tl.float32)
            h = decay * h + hold * x[:, None] * drive[None, :]
        tl.debug_barrier()  # what a thread reads below another may have written
        part = tl.zeros([E, N], tl.float32)  # of the rates, by chunk: long sums in two levels
        for back in range(0, stop - first):
            t = stop - 1 - back
            at = (row * time + t) * channels + e
            maps = ((row * time + t) * groups + group) * states + n
            x = tl.load(u + at, mask=inside, other=0.0).to(tl.float32)
            dt, raw = _step_size(delta, shift, at, inside, SOFTPLUS)
            decay, less, hold = _transition(dt, rate, ZOH)
            drive = tl.load(b + maps, mask=valid, other=0.0).to(tl.float32)
            read = tl.load(c + maps, mask=valid, other=0.0).to(tl.float32)
            carried = decay * tl.load(kept + (t - first) * E * N)
            h = carried + hold * x[:, None] * drive[None, :]
            dout = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
            if gate is not None:
                z = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
                s = sigmoid(z)
                ungated = tl.sum(h * read[None, :], axis=1) + direct * x
                dz = dout * ungated * s * (1.0 + z * (1.0 - s))
                tl.store(dgate + at, dz.to(dgate.dtype.element_ty), mask=inside)
                dout = dout * z * s
            g += read[None, :] * dout[:, None]
            sums = ((block.to(tl.int64) * rows + row) * time + t) * groups * states + group * states + n
            tl.store(dc + sums, tl.sum(h * dout[:, None], axis=0), mask=valid)
            tl.store(db + sums, tl.sum(g * hold * x[:, None], axis=0), mask=valid)
            pull = g * carried  # the cotangent of dt a through the decay
            push = g * x[:, None] * drive[None, :]  # of what the drive is multiplied by
            ddt = pull * rate + push
            part += pull * dt[:, None]
            if ZOH:
                ddt = pull * rate + push * decay
                part += push * dt[:, None] * dt[:, None] * ramp(dt[:, None] * rate, decay, less)
            dx = tl.sum(g * hold * drive[None, :], axis=1) + direct * dout
            tl.store(du + at, dx.to(du.dtype.element_ty), mask=inside)
            draw = tl.sum(ddt, axis=1)
            if SOFTPLUS:
                draw = draw * sigmoid(raw)
            tl.store(ddelta + at, draw.to(ddelta.dtype.element_ty), mask=inside)
            skips += dout * x
            shifts += draw
            g = decay * g
        rates += part
        tl.debug_barrier()  # the next chunk writes where this one read
    tl.store(da + sequence * channels * states + own, rates, mask=both)
    if skip is not None:
        tl.store(dskip + sequence * channels + e, skips, mask=inside)
    if bias is not None:
        tl.store(dbias + sequence * channels + e, shifts, mask=inside)
    if dh0 is not None:
        tl.store(dh0 + sequence * channels * states + own, g.to(dh0.dtype.element_ty), mask=both)
