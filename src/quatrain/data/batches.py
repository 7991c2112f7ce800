"""Batches of sequences and of series as pure functions of (seed, step), like `quatrain.data.sampler`."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quatrain.config.check import check
from quatrain.data.sampler import _key, permute
from quatrain.data.sequences import Part, SequenceFile
from quatrain.errors import DataError

POOL = 16  # batches that are sorted by length together, so that little is padding


class Batch(NamedTuple):
    """What `quatrain.model.objective.objective` takes, on the CPU; see there for the shapes by task."""

    inputs: Tensor
    targets: Tensor
    lengths: Tensor | None
    target_lengths: Tensor | None

    @property
    def steps(self) -> int:
        """Steps without padding."""
        inputs = self.inputs
        return int(self.lengths.sum()) if self.lengths is not None else inputs.shape[0] * inputs.shape[1]

    def to(self, device: torch.device) -> "Batch":
        """The same on a device; to a GPU through pinned memory, without waiting. Lengths go along."""
        gpu = device.type == "cuda"
        moved = (
            None if each is None else (each.pin_memory() if gpu else each).to(device, non_blocking=gpu)
            for each in self
        )
        return Batch(*moved)  # type: ignore[arg-type]  # the first two are never None

    def rows(self, low: int, high: int) -> "Batch":
        """Some of its rows, padded no longer than they need."""
        lengths = None if self.lengths is None else self.lengths[low:high]
        sizes = None if self.target_lengths is None else self.target_lengths[low:high]
        inputs, targets = self.inputs[low:high], self.targets[low:high]
        if lengths is not None:
            longest = int(lengths.max())
            inputs = inputs[:, :longest]
            if targets.ndim == 2 and sizes is None:
                targets = targets[:, :longest]
        if sizes is not None:
            targets = targets[:, : max(1, int(sizes.max()))]
        return Batch(inputs, targets, lengths, sizes)


class Sequences:
    """Batches of labelled sequences: all of a part once an epoch, in random order, of like length.

    Sample i of epoch e is sequence ``permute(i)`` of the part, under a key of (seed, e). `POOL` batches of
    samples are sorted by length and cut into batches, which come in random order. A batch is a pure function
    of (seed, step). Raises DataError for an empty part, ConfigError for numbers out of range.
    """

    def __init__(self, file: SequenceFile, part: Part, batch: int, seed: int) -> None:
        check(batch >= 1, "batch", batch, "must be at least 1")
        check(0 <= seed < 2**63, "seed", seed, "must lie in [0, 2**63)")
        self.file, self.seed = file, seed
        self.indices = file.indices(part)
        if not len(self.indices):
            raise DataError(f"{file.name}: the {part} part is empty")
        self.batch_size = min(batch, len(self.indices))
        self.per_epoch = len(self.indices) // self.batch_size  # the few that are left over change every epoch

    def batch(self, step: int) -> Batch:
        """The batch of a step, from 0."""
        check(step >= 0, "step", step, "must be at least 0")
        epoch, at = divmod(step, self.per_epoch)
        pool, place = divmod(at, POOL)
        batches = min(POOL, self.per_epoch - pool * POOL)
        first = pool * POOL * self.batch_size
        positions = np.arange(first, first + batches * self.batch_size, dtype=np.uint64)
        drawn = permute(positions, len(self.indices), _key(self.seed, epoch, 0)).astype(np.int64)
        chosen = self.indices[drawn]
        chosen = chosen[np.argsort(self.file.lengths(chosen), kind="stable")]
        order = permute(np.arange(batches, dtype=np.uint64), batches, _key(self.seed, epoch, 3 + pool))
        low = int(order[place]) * self.batch_size
        return collate(self.file, chosen[low : low + self.batch_size])


class SeriesWindows:
    """Windows of ``sequence`` steps and ``horizon`` more at random places of the training part.

    Sample i of epoch e begins at start ``permute(i)`` among all places where a window fits. Raises DataError
    where none does.
    """

    def __init__(self, file: SequenceFile, sequence: int, batch: int, seed: int) -> None:
        check(sequence >= 1, "sequence", sequence, "must be at least 1")
        self.file, self.sequence, self.batch_size, self.seed = file, sequence, batch, seed
        self.size = sequence + file.meaning.horizon
        spans = file.spans("train")
        self._slots = _Slots([(i, start, stop - self.size + 1) for i, start, stop in spans])
        self.count = self._slots.count
        if self.count < 1:
            longest = max(stop - start for _, start, stop in spans)
            raise DataError(
                f"sequence = {sequence}: needs {self.size} steps in a row with the horizon of "
                f"{file.meaning.horizon}, the training part has {longest}"
            )

    def batch(self, step: int) -> Batch:
        """The batch of a step, from 0."""
        check(step >= 0, "step", step, "must be at least 0")
        starts: list[int] = []
        while len(starts) < self.batch_size:
            epoch, position = divmod(step * self.batch_size + len(starts), self.count)
            rows = min(self.batch_size - len(starts), self.count - position)
            positions = np.arange(position, position + rows, dtype=np.uint64)
            starts += permute(positions, self.count, _key(self.seed, epoch, 0)).astype(np.int64).tolist()
        return windows(self.file, [self._slots.place(start) for start in starts], self.sequence)


class _Slots:
    """Numbers for all the places ``(series, first .. end - 1)``, without a list of them."""

    def __init__(self, spans: list[tuple[int, int, int]]) -> None:
        self._spans = spans
        self._ends = np.cumsum([max(0, end - first) for _, first, end in spans])
        self.count = int(self._ends[-1])

    def place(self, number: int) -> tuple[int, int]:
        """Series and step of a place."""
        which = int(np.searchsorted(self._ends, number, side="right"))
        inside = number - (int(self._ends[which - 1]) if which else 0)
        return self._spans[which][0], self._spans[which][1] + inside


def windows(file: SequenceFile, places: list[tuple[int, int]], sequence: int) -> Batch:
    """Windows that begin at these (series, step): inputs ``(B, T, C)``, targets ``(B, T + H, M)``."""
    size, meaning = sequence + file.meaning.horizon, file.meaning
    block = torch.from_numpy(np.stack([file.sequence(i, at, at + size) for i, at in places]))
    return Batch(block[:, :sequence].contiguous(), block[..., : meaning.targets].contiguous(), None, None)


def places(file: SequenceFile, part: Part, sequence: int, limit: float) -> tuple[list[tuple[int, int]], int]:
    """Where windows begin whose forecasts lie in a part, each whole, and how many there are in all.

    As many, at even distances, as read about ``limit`` steps, at least one. Their context may reach back into
    the part before, as in the published tables. Raises DataError where no window fits.
    """
    horizon = file.meaning.horizon
    spans = file.spans(part)
    slots = _Slots([(i, max(0, start - sequence), stop - horizon - sequence + 1) for i, start, stop in spans])
    if not slots.count:
        raise DataError(
            f"{file.name}: the {part} part has no {horizon} steps in a row with {sequence} before them"
        )
    total = slots.count
    count = total if total * sequence <= limit else max(1, int(limit // sequence))
    return [slots.place(index * total // count) for index in range(count)], total


def collate(file: SequenceFile, indices: NDArray[np.int64]) -> Batch:
    """These sequences side by side, padded on the right with zeros."""
    sequences = [file.sequence(int(index)) for index in indices]
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    task = file.task
    targets: Tensor
    sizes: Tensor | None = None
    if task == "classify":
        targets = torch.from_numpy(file.classes(indices))
    else:
        found = [torch.from_numpy(file.target(int(index)).astype(np.int64)) for index in indices]
        targets = torch.nn.utils.rnn.pad_sequence(found, batch_first=True)
        sizes = torch.tensor([len(each) for each in found]) if task == "transcribe" else None
    return Batch(padded(sequences, file.meaning.channels), targets, lengths, sizes)


def padded(sequences: list[NDArray[np.generic]], channels: int) -> Tensor:
    """Sequences side by side: ``(B, T, C)`` float32, or ``(B, T)`` int64 where a step is a token."""
    kind = np.float32 if channels else np.int64
    tensors = [torch.from_numpy(sequence.astype(kind)) for sequence in sequences]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
