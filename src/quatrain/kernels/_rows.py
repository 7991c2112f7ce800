"""Sequences of unequal lengths as rows in the order of time, so that a step works on no padding.

Sequences are ranked by length, longest first. The rows of step t are its living sequences in that order, so
the ones that go on are always the first rows of a step; steps lie one after the other in one matrix.
"""

import torch
from torch import Tensor


class Rows:
    """The rows of one batch. ``lengths`` and ``cu_seqlens`` are read on the host, once.

    Attributes:
        sequences: number of states.
        total: number of rows, over all steps.
        alive: sequences of at least one step, the rows of the first step.
        counts: rows of each step, never rising.
    """

    def __init__(self, x: Tensor, lengths: Tensor | None, cu_seqlens: Tensor | None) -> None:
        self._batch, self._time = x.shape[:2]
        self._rank: Tensor | None = None
        if lengths is None and cu_seqlens is None:
            self.sequences = self.alive = self._batch
            self.counts = [self._batch] * self._time
        else:
            self.counts = self._order(lengths, cu_seqlens, x.device)
        self.total = sum(self.counts)

    def _order(self, lengths: Tensor | None, cu_seqlens: Tensor | None, device: torch.device) -> list[int]:
        if cu_seqlens is not None:
            bounds = cu_seqlens.to("cpu", torch.int64)
            first, length = bounds[:-1], bounds.diff()
        else:
            assert lengths is not None
            length = lengths.to("cpu", torch.int64)
            first = torch.arange(self._batch) * self._time
        self.sequences = len(length)
        rank = torch.argsort(length, descending=True, stable=True)
        length = length[rank]
        self.alive = int((length > 0).sum())
        of = torch.repeat_interleave(torch.arange(self.sequences), length)  # rank of each step, by sequence
        step = torch.arange(len(of)) - (length.cumsum(0) - length)[of]
        by_time = torch.argsort(step, stable=True)
        of, step = of[by_time], step[by_time]
        count = torch.bincount(step, minlength=1) if len(step) else torch.zeros(0, dtype=torch.int64)
        start = count.cumsum(0) - count
        last = start[length[: self.alive] - 1] + torch.arange(self.alive)
        before = torch.where(step > 0, start[(step - 1).clamp(min=0)] + self.alive, 0) + of
        self._rank = rank.to(device)
        self._place = (first[rank][of] + step).to(device)  # in the data, rows and steps flattened
        self._last, self._before = last.to(device), before.to(device)
        counts: list[int] = count.tolist()
        return counts

    def gather(self, x: Tensor, out: Tensor) -> None:
        """Copy the valid steps of ``x (B, T, F)`` into ``out (total, F)``."""
        if self._rank is None:
            out.view(self._time, self._batch, -1).copy_(x.transpose(0, 1))
        else:
            out.copy_(x.reshape(-1, x.shape[2])[self._place])

    def scatter(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """``rows (total, F)`` back as (B, T, F), zeros in the padding."""
        if self._rank is None:
            source = rows.view(self._time, self._batch, -1).transpose(0, 1)
            return torch.empty(source.shape, dtype=dtype, device=rows.device).copy_(source)
        out = rows.new_zeros(self._batch * self._time, rows.shape[1], dtype=dtype)
        out[self._place] = rows.to(dtype)
        return out.view(self._batch, self._time, -1)

    def steps(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Views of the rows of each step; one call makes them all, cheaper than slicing in the loop."""
        return tuple(rows.split_with_sizes(self.counts))

    def start(self, state: Tensor | None, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A copy of the first state (S, F) in ranked order, zeros where there is none."""
        if state is None:
            return torch.zeros(self.sequences, width, dtype=dtype, device=device)
        return self.rank(state).to(dtype, copy=True)

    def rank(self, state: Tensor) -> Tensor:
        """``state (S, F)`` of the sequences in their ranked order."""
        return state if self._rank is None else state[self._rank]

    def unrank(self, state: Tensor) -> Tensor:
        """Undo `rank`."""
        return state if self._rank is None else torch.empty_like(state).index_copy_(0, self._rank, state)

    def last(self, rows: Tensor) -> Tensor:
        """(alive, F): the rows of each living sequence's last step, in ranked order."""
        return rows[self.total - self.alive :] if self._rank is None else rows[self._last]

    def add_to_last(self, rows: Tensor, values: Tensor) -> None:
        """Add ``values (alive, F)`` to the rows that `last` takes."""
        if self._rank is None:
            rows[self.total - self.alive :] += values
        else:
            rows[self._last] += values

    def before(self, rows: Tensor) -> Tensor:
        """For each row the one of the step before; ``rows (alive + total, F)`` have the start in front."""
        return rows[: self.total] if self._rank is None else rows[self._before]


def first_rows(x: Tensor, count: int) -> Tensor:
    """``x[:count]``, without the time of a view where that is all of x."""
    return x if len(x) == count else x[:count]
