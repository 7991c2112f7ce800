"""How the vectorised S6 scan cuts time: into segments, and each of them into chunks that run side by side."""

from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor

_CPU_NUMBERS = 1 << 19  # of one (L, B, C, E, N) buffer: four of them fit into a shared cache
_GPU_NUMBERS = 1 << 24
_CPU_WORK = 1 << 16  # numbers of one operation that hide the time of starting it
_GPU_WORK = 1 << 20
_LEAST_STEPS = 16  # of a segment, whatever its size


@dataclass(frozen=True)
class Plan:
    """Segments of ``chunks * steps`` steps; the last one may hold fewer."""

    time: int
    steps: int  # L, positions of a chunk: the length of the Python loop
    chunks: int  # C, chunks side by side

    @property
    def starts(self) -> range:
        """First step of each segment."""
        return range(0, self.time, self.steps * self.chunks)


def plan(time: int, numbers: int, device: torch.device) -> Plan:
    """Cut ``time`` steps of ``numbers`` = B E N each so that a segment's buffers stay small.

    Loops run over L positions and over C chunks, so both are near the root of the segment; fewer chunks do
    where a step has work enough, for each costs an exponential per channel and state number.
    """
    cpu = device.type == "cpu"
    budget, work = (_CPU_NUMBERS, _CPU_WORK) if cpu else (_GPU_NUMBERS, _GPU_WORK)
    longest = min(time, max(budget // numbers, _LEAST_STEPS))
    segments = -(-time // longest)
    span = -(-time // segments)
    chunks = min(isqrt(span - 1) + 1, max(2, -(-work // numbers)))
    steps = -(-span // chunks)
    return Plan(time, steps, -(-span // steps))


class Stage:
    """Copies of segments as (L, B, C, ...), so that position l of all chunks is one contiguous block.

    Buffers are made once and reused for every segment. Steps that do not exist, behind a row's length or the
    end of time, are 0: then their step size is 0 too, and the state passes through.
    """

    def __init__(self, plan: Plan, batch: int, dtype: torch.dtype, device: torch.device) -> None:
        self._plan, self._batch = plan, batch
        self._dtype, self._device = dtype, device
        self._buffers: dict[str, Tensor] = {}

    def buffer(self, name: str, *sizes: int, rows: int = 0) -> Tensor:
        """The (L + rows, B, C, *sizes) buffer of that name, holding whatever it held."""
        return self._reused(name, (self._plan.steps + rows, self._batch, self._plan.chunks, *sizes))

    def chunk_buffer(self, name: str, *sizes: int) -> Tensor:
        """The (B, C, *sizes) buffer of that name, holding whatever it held."""
        return self._reused(name, (self._batch, self._plan.chunks, *sizes))

    def _reused(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in self._buffers:
            self._buffers[name] = torch.empty(shape, dtype=self._dtype, device=self._device)
        return self._buffers[name]

    def load(self, name: str, x: Tensor, start: int, past: Tensor | None) -> Tensor:
        """Copy the segment of ``x (B, T, ...)`` that begins at ``start``; where ``past (L, B, C)``, 0."""
        buffer = self.buffer(name, *x.shape[2:])
        for inside, outside in self._pairs(buffer, x, start):
            inside.copy_(outside)
        if past is not None:
            buffer.masked_fill_(past.view(*past.shape, *(1,) * (x.ndim - 2)), 0)
        return buffer

    def store(self, buffer: Tensor, x: Tensor, start: int) -> None:
        """Copy a buffer back to its place in ``x (B, T, ...)``; steps behind the end are dropped."""
        for inside, outside in self._pairs(buffer, x, start):
            outside.copy_(inside)

    def past(self, lengths: Tensor | None, start: int) -> Tensor | None:
        """(L, B, C) bool: steps behind the length of their row or the end of time; None if there is none."""
        steps, chunks = self._plan.steps, self._plan.chunks
        if lengths is None:
            if start + steps * chunks <= self._plan.time:
                return None
            lengths = torch.full((self._batch,), self._plan.time, device=self._device)
        step = torch.arange(steps, device=self._device)[:, None, None]
        chunk = torch.arange(chunks, device=self._device)
        return start + chunk * steps + step >= lengths[:, None]

    def _pairs(self, buffer: Tensor, x: Tensor, start: int) -> list[tuple[Tensor, Tensor]]:
        """Matching views of both: the whole chunks, and the rest of the one that time's end cuts."""
        steps, chunks = self._plan.steps, self._plan.chunks
        stop = min(start + steps * chunks, self._plan.time)
        whole, rest = divmod(stop - start, steps)
        middle = start + whole * steps
        pairs = []
        if whole:
            outside = x[:, start:middle].view(len(x), whole, steps, *x.shape[2:])  # splits a stride: no copy
            pairs.append((buffer[:, :, :whole].movedim(0, 2), outside))
        if rest:
            pairs.append((buffer[:rest, :, whole].movedim(0, 1), x[:, middle:stop]))
        return pairs


@dataclass(frozen=True)
class Marks:
    """Packed sequences that begin or end in one segment: their numbers and their places (l, c)."""

    sequence: Tensor  # (k,)
    step: Tensor  # (k,)
    chunk: Tensor  # (k,)

    def at(self, buffer: Tensor) -> Tensor:
        """(k, ...) copies of the marked places of ``buffer (L, 1, C, ...)``."""
        return buffer[self.step, 0, self.chunk]

    def put(self, buffer: Tensor, values: Tensor | float) -> None:
        """Overwrite the marked places."""
        buffer[self.step, 0, self.chunk] = values

    def __len__(self) -> int:
        return len(self.sequence)


class Packing:
    """Where packed sequences begin and end. ``cu_seqlens`` is read on the host, once."""

    def __init__(self, cu_seqlens: Tensor, plan: Plan) -> None:
        bounds = cu_seqlens.to("cpu", torch.int64)
        alive = bounds.diff() > 0
        self._plan, self._device = plan, cu_seqlens.device
        self._sequence = alive.nonzero()[:, 0]
        self._first, self._last = bounds[:-1][alive], bounds[1:][alive] - 1
        self.empty = (~alive).nonzero()[:, 0].to(self._device)

    def starts(self, start: int) -> Marks:
        """Sequences whose first step lies in the segment that begins at ``start``."""
        return self._marks(self._first, start)

    def ends(self, start: int) -> Marks:
        """Sequences whose last step lies in the segment that begins at ``start``."""
        return self._marks(self._last, start)

    def _marks(self, place: Tensor, start: int) -> Marks:
        span = self._plan.steps * self._plan.chunks
        low, high = torch.searchsorted(place, torch.tensor([start, start + span])).tolist()
        offset = place[low:high] - start
        parts = (self._sequence[low:high], offset % self._plan.steps, offset // self._plan.steps)
        return Marks(*(part.to(self._device) for part in parts))
