"""S6 scan in vectorised PyTorch: chunks side by side, states kept at segment boundaries only.

See README.md beside this file for the derivation. Buffers are (L, B, C, E, N): position in the chunk, row,
chunk, channel, state number.
"""

from math import factorial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from quatrain.kernels._autograd import call, first_order, no_autocast, recorded
from quatrain.kernels._check import wide_dtype
from quatrain.kernels.s6_scan._segments import Marks, Packing, Stage, plan

_SERIES = 0.3  # below it (x e^x - e^x + 1) / x^2 cancels and is summed as a series instead
_TERMS = 14  # enough for float64


def scan(
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor | None = None,
    gate: Tensor | None = None,
    delta_bias: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    softplus: bool = False,
    zoh: bool = False,
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `s6_scan_reference`. Packed: ``cu_seqlens`` is read on the host once."""
    tensors = (u, delta, a, b, c, skip, gate, delta_bias, h0)
    y, h = call(_Scan, *tensors, softplus, zoh, lengths, cu_seqlens, recorded(*tensors))
    return y, h


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        *tensors, softplus, zoh, lengths, cu_seqlens, keep = args
        ctx.flags = (softplus, zoh)
        y, h, bounds = _Run(tensors, ctx.flags, lengths, cu_seqlens).forward(keep)
        ctx.save_for_backward(*tensors, lengths, cu_seqlens, bounds)
        return y, h

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor, dh: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, lengths, cu_seqlens, bounds = ctx.saved_tensors
        with no_autocast(dy):
            grads = _Run(tensors, ctx.flags, lengths, cu_seqlens).backward(dy, dh, bounds)
        return *grads, None, None, None, None, None


class _Run:
    """One call's arguments and work space; a segment is loaded, then used."""

    def __init__(
        self,
        tensors: list[Any],
        flags: tuple[bool, bool],
        lengths: Tensor | None,
        cu_seqlens: Tensor | None,
    ) -> None:
        u, delta, a, b, c, skip, gate, delta_bias, h0 = self.inputs = tensors
        self.wide = wide_dtype(u.dtype)
        self.softplus, self.zoh = flags
        self.lengths = lengths
        self.u: Tensor = u
        self.delta: Tensor = delta
        self.gate: Tensor | None = gate
        self.batch, self.time, self.width = u.shape
        self.state = a.shape[1]
        self.groups = b.shape[2] if b.ndim == 4 else 1
        self.a = a.to(self.wide).contiguous()
        self.b, self.c = (x if x.ndim == 4 else x[:, :, None] for x in (b, c))  # (B, T, G, N)
        self.skip = None if skip is None else skip.to(self.wide)
        self.bias = None if delta_bias is None else delta_bias.to(self.wide)
        self.h0 = None if h0 is None else h0.to(self.wide)
        self.plan = plan(self.time, self.batch * self.width * self.state, u.device)
        self.stage = Stage(self.plan, self.batch, self.wide, u.device)
        self.packing = None if cu_seqlens is None else Packing(cu_seqlens, self.plan)
        self.sequences = self.batch if cu_seqlens is None else len(cu_seqlens) - 1
        self.ones = torch.ones(self.state, dtype=self.wide, device=u.device)

    # -- one segment

    def load(self, start: int) -> None:
        """Stage the segment at ``start`` and compute its step sizes, decays and totals of decay per chunk."""
        stage, width, state = self.stage, self.width, self.state
        self.past = stage.past(self.lengths, start)
        self.us = stage.load("u", self.u, start, self.past)
        self.bs = stage.load("b", self.b, start, self.past)  # (L, B, C, G, N)
        self.cs = stage.load("c", self.c, start, self.past)
        self.raw = stage.load("raw", self.delta, start, self.past)
        self.dt = stage.buffer("dt", width)
        if self.bias is not None:
            self.raw.add_(self.bias)
        if self.softplus:  # max(x, 0) + log(1 + exp(-|x|))
            torch.abs(self.raw, out=self.dt).neg_().exp_().log1p_().add_(self.raw.clamp(min=0))
        else:
            self.dt.copy_(self.raw)
        if self.past is not None:  # bias and softplus made step sizes of zeros
            self.dt.masked_fill_(self.past[..., None], 0)
        self.decay = stage.buffer("decay", width, state)
        torch.mul(self.dt[..., None], self.a, out=self.decay)
        self.states = stage.buffer("states", width, state, rows=1)
        self._drive(self.states[1:])
        self.decay.exp_()
        self.total = stage.chunk_buffer("total", width, state)
        torch.mul(self.dt.sum(0)[..., None], self.a, out=self.total).exp_()

    def _drive(self, out: Tensor) -> None:
        """What each step adds to the state; ``decay`` still holds dt a."""
        if self.zoh:
            self.hold = torch.expm1(self.decay).div_(self.a)
            torch.mul(self.hold, self.us[..., None], out=out)
            self._grouped(out).mul_(self.bs[..., None, :])
        else:
            self.dtu = torch.mul(self.dt, self.us, out=self.stage.buffer("dtu", self.width))
            torch.mul(self._grouped(self.dtu[..., None]), self.bs[..., None, :], out=self._grouped(out))

    def _grouped(self, x: Tensor) -> Tensor:
        """(..., E, N) viewed as (..., G, E / G, N)."""
        return x.view(*x.shape[:-2], self.groups, -1, x.shape[-1])

    def _sum_states(self, x: Tensor, out: str) -> Tensor:
        """Sum over n as a matrix-vector product, which is faster than a reduction over few numbers."""
        result = self.stage.buffer(out, self.width)
        torch.mv(x.view(-1, self.state), self.ones, out=result.view(-1))
        return result

    def scan(self, start: int, carry: Tensor) -> Tensor:
        """Fill ``states`` from the state before the segment; return the one after it.

        Row l + 1 of ``states`` is the state after position l; row 0 is the one before each chunk.
        """
        self.begun = None if self.packing is None else self.packing.starts(start)
        if self.begun is not None:
            self._reset(self.begun)
        states, decays = self.states.unbind(0), self.decay.unbind(0)
        before = states[0]  # (B, C, E, N)
        before[:, 0] = carry
        if self.plan.chunks > 1:
            after = self.stage.chunk_buffer("end", *before.shape[2:])
            after.copy_(states[1])  # the chunk's state after each position, as if begun with 0
            for fresh, decay in zip(states[2:], decays[1:], strict=True):
                torch.addcmul(fresh, decay, after, out=after)
            for i in range(1, self.plan.chunks):
                torch.addcmul(after[:, i - 1], self.total[:, i - 1], before[:, i - 1], out=before[:, i])
        for previous, state, decay in zip(states, states[1:], decays, strict=False):
            state.addcmul_(decay, previous)
        return states[-1][:, -1].clone()

    def _reset(self, begun: Marks) -> None:
        """Cut the recurrence at the first steps of packed sequences and put their own states before them."""
        self.first_decay = begun.at(self.decay)  # (k, E, N)
        if self.h0 is not None:
            drive = self.states[1:]
            begun.put(drive, torch.addcmul(begun.at(drive), self.first_decay, self.h0[begun.sequence]))
        begun.put(self.decay, 0.0)
        self.total[0, begun.chunk] = 0.0

    def read(self, work: Tensor) -> Tensor:
        """y before the gate, (L, B, C, E); ``work`` is overwritten and may be the states themselves."""
        torch.mul(self._grouped(self.states[1:]), self.cs[..., None, :], out=self._grouped(work))
        y = self._sum_states(work, "y")
        return y if self.skip is None else y.addcmul_(self.us, self.skip)

    # -- all segments

    def forward(self, keep: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """y, the last state of each sequence, and with ``keep`` the states before each segment."""
        shape = (self.width, self.state)
        y = torch.empty_like(self.u, memory_format=torch.contiguous_format)
        carry = self.a.new_zeros(self.batch, *shape)
        last = self.a.new_zeros(self.sequences, *shape)
        if self.h0 is not None:
            if self.packing is None:
                carry = self.h0
            else:
                last[self.packing.empty] = self.h0[self.packing.empty]
        bounds = self.a.new_empty(len(self.plan.starts), self.batch, *shape) if keep else None
        for i, start in enumerate(self.plan.starts):
            if bounds is not None:
                bounds[i] = carry
            self.load(start)
            carry = self.scan(start, carry)
            if self.packing is not None:
                ended = self.packing.ends(start)
                last[ended.sequence] = ended.at(self.states[1:])
            out = self.read(self.states[1:])
            if self.gate is not None:
                out.mul_(F.silu(self.stage.load("gate", self.gate, start, self.past)))
            if self.past is not None:
                out.masked_fill_(self.past[..., None], 0)
            self.stage.store(out, y, start)
        h = last if self.packing is not None else carry.clone()
        return y, h, bounds

    def backward(self, dy: Tensor, dh: Tensor, bounds: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of all tensor arguments, each in its own dtype."""
        sums, grads = self._accumulators()
        first = torch.zeros_like(dh)  # the gradient of h0
        if self.packing is None:
            carry = dh.contiguous()
        else:
            carry = dh.new_zeros(self.batch, self.width, self.state)
            first[self.packing.empty] = dh[self.packing.empty]
        for i in reversed(range(len(bounds))):
            start = self.plan.starts[i]
            self.load(start)
            self.scan(start, bounds[i])
            dys, du = self._output_grads(start, dy, sums, grads)
            carry = self._scan_back(start, dys, dh, carry)
            self._input_grads(start, du, first, sums, grads)
        if self.packing is None:
            first = carry
        data = (grads["u"], grads["delta"], sums["a"], grads["b"], grads["c"])
        found = (*data, sums["skip"], grads.get("gate"), sums["delta_bias"], first)
        return tuple(
            None if x is None or g is None else g.to(x.dtype).view(x.shape)
            for x, g in zip(self.inputs, found, strict=True)
        )

    def _accumulators(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Wide sums over time and rows, and whole tensors in the data's dtype that segments fill."""
        width = self.a.new_zeros(self.width)
        sums = {"a": torch.zeros_like(self.a), "skip": width, "delta_bias": width.clone()}
        like = {"u": self.u, "delta": self.delta, "b": self.b, "c": self.c, "gate": self.gate}
        return sums, {
            name: torch.empty_like(x, memory_format=torch.contiguous_format)
            for name, x in like.items()
            if x is not None
        }

    def _output_grads(
        self, start: int, dy: Tensor, sums: dict[str, Tensor], grads: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Through gate, skip and c: the cotangent of the ungated output, and u's gradient so far."""
        stage = self.stage
        dys = stage.load("dy", dy, start, self.past)
        if self.gate is not None:
            gate = stage.load("gate", self.gate, start, self.past)
            y = self.read(stage.buffer("work", self.width, self.state))
            s = torch.sigmoid(gate)
            y.mul_(dys).mul_(s)  # then times 1 + gate (1 - s)
            stage.store(y.addcmul_(y * gate, 1 - s), grads["gate"], start)
            dys.mul_(gate).mul_(s)
        if self.skip is None:
            du = torch.zeros_like(dys)
        else:
            sums["skip"] += (dys * self.us).sum((0, 1, 2))
            du = dys * self.skip
        stage.store(self._over_channels(dys, self.states[1:]), grads["c"], start)
        return dys, du

    def _over_channels(self, x: Tensor, y: Tensor) -> Tensor:
        """sum_e x_e y_en within each group: (L, B, C, E) and (L, B, C, E, N) to (L, B, C, G, N)."""
        rows = x.view(*x.shape[:-1], self.groups, 1, -1)  # (L, B, C, G, 1, E / G)
        return torch.matmul(rows, self._grouped(y))[..., 0, :]

    def _scan_back(self, start: int, dys: Tensor, dh: Tensor, carry: Tensor) -> Tensor:
        """Fill ``grad`` with the cotangent of every state; return the one of the state before the segment."""
        self.grad = self.stage.buffer("grad", self.width, self.state)
        torch.mul(
            self._grouped(dys[..., None]), self.cs[..., None, :], out=self._grouped(self.grad)
        )  # (L, B, C, G, E / G, N)
        if self.packing is not None:
            ended = self.packing.ends(start)
            ended.put(self.grad, ended.at(self.grad) + dh[ended.sequence])
        grads, decays = self.grad.unbind(0), self.decay.unbind(0)
        behind = self.stage.chunk_buffer("behind", self.width, self.state)
        behind[:, -1] = carry  # cotangent that each chunk's last state gets from later ones
        if self.plan.chunks > 1:
            before = self.stage.chunk_buffer("end", self.width, self.state).copy_(grads[-1])
            for fresh, decay in zip(grads[-2::-1], decays[:0:-1], strict=True):
                torch.addcmul(fresh, decay, before, out=before)
            before.mul_(decays[0])
            for i in range(self.plan.chunks - 1, 0, -1):
                torch.addcmul(before[:, i], self.total[:, i], behind[:, i], out=behind[:, i - 1])
        grads[-1].add_(behind)
        for later, grad, decay in zip(grads[::-1], grads[-2::-1], decays[:0:-1], strict=False):
            grad.addcmul_(decay, later)
        return decays[0][:, 0] * grads[0][:, 0]

    def _input_grads(
        self, start: int, du: Tensor, first: Tensor, sums: dict[str, Tensor], grads: dict[str, Tensor]
    ) -> None:
        """From the cotangents of the states to those of u, delta, a, b and h0. ``decay`` is used up."""
        work = self.stage.buffer("work", self.width, self.state)
        ddt, db = (self._hold_grads if self.zoh else self._euler_grads)(work, du, sums)
        inner = self.decay.mul_(self.states[:-1]).mul_(self.grad)  # cotangent of dt a, through the decay
        if self.begun is not None:
            back = self.first_decay * self.begun.at(self.grad)
            first[self.begun.sequence] = back
            if self.h0 is not None:
                self.begun.put(inner, back * self.h0[self.begun.sequence])
        ddt.add_(self._sum_states(torch.mul(inner, self.a, out=work), "y"))
        sums["a"] += inner.mul_(self.dt[..., None]).sum((0, 1, 2))
        if self.softplus:
            ddt.mul_(torch.sigmoid(self.raw))
        if self.past is not None:
            ddt.masked_fill_(self.past[..., None], 0)
        if self.bias is not None:
            sums["delta_bias"] += ddt.sum((0, 1, 2))
        self.stage.store(du, grads["u"], start)
        self.stage.store(ddt, grads["delta"], start)
        self.stage.store(db, grads["b"], start)

    def _euler_grads(self, work: Tensor, du: Tensor, sums: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Through the drive dt u b: gradients of dt and b; u's is added to ``du``."""
        torch.mul(self._grouped(self.grad), self.bs[..., None, :], out=self._grouped(work))
        along_b = self._sum_states(work, "y")
        du.addcmul_(along_b, self.dt)
        return along_b * self.us, self._over_channels(self.dtu, self.grad)

    def _hold_grads(self, work: Tensor, du: Tensor, sums: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Through the drive hold u b, hold = (exp(dt a) - 1) / a: as `_euler_grads`, and a's to ``sums``."""
        torch.mul(self.grad, self.hold, out=work)
        db = self._over_channels(self.us, work)
        self._grouped(work).mul_(self.bs[..., None, :])
        du.add_(self._sum_states(work, "y"))
        torch.mul(self._grouped(self.grad), self.bs[..., None, :], out=self._grouped(work))
        work.mul_(self.us[..., None])  # cotangent of hold
        x = self.dt[..., None] * self.a
        sums["a"] += (self.dt[..., None].square() * _hold_slope(x)).mul_(work).sum((0, 1, 2))
        return self._sum_states(work.mul_(x.exp_()), "y").clone(), db


def _hold_slope(x: Tensor) -> Tensor:
    """(x e^x - e^x + 1) / x^2, the derivative of (e^{dt a} - 1) / a by a over dt^2; 1/2 at 0."""
    series = torch.full_like(x, 1 / (_TERMS * factorial(_TERMS - 2)))
    for k in range(_TERMS - 1, 1, -1):  # sum of x^(k-2) / (k (k-2)!), k from 2
        series = series.mul_(x).add_(1 / (k * factorial(k - 2)))
    near = x.abs() < _SERIES
    far = x.masked_fill(near, 1)
    return torch.where(near, series, (far * far.exp() - far.expm1()) / far.square())
