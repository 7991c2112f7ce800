"""Batches as pure functions of (seed, step): nothing to save or restore, a position resumes exactly."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quatrain.config.check import check
from quatrain.errors import DataError

Tokens = NDArray[np.integer]
_ROUNDS = 6
_ONE = np.uint64(1)


class Windows:
    """Windows of ``sequence`` tokens that do not overlap, each once an epoch, in random order.

    Epoch e cuts the tokens into ``count`` windows from an offset drawn from (seed, e), up to one window long,
    so that other epochs cut elsewhere. Sample i = step * batch + row is window ``permute(i mod count)`` of
    epoch i div count; a batch may span two epochs. Memory is O(batch * sequence)
    whatever the number of tokens.

    Args:
        tokens: ``(N,)`` integers, N >= sequence + 1 (the last token of a window is only a target).
        sequence: tokens of a window.
        batch: windows of a batch.
        seed: any integer in [0, 2**63).
        part: how messages call the tokens.
        complement: of DNA: the complement of every token; each window is then read from the other strand,
            reversed and complemented, with probability 1/2.

    Raises DataError where the tokens are too few, ConfigError for numbers out of range.
    """

    def __init__(
        self,
        tokens: Tokens,
        sequence: int,
        batch: int,
        seed: int,
        *,
        part: str = "the training part",
        complement: Tokens | None = None,
    ) -> None:
        _check_sizes(sequence, batch)
        check(0 <= seed < 2**63, "seed", seed, "must lie in [0, 2**63)")
        if len(tokens) < sequence + 1:
            raise DataError(
                f"sequence = {sequence}: needs {sequence + 1} tokens in a row, {part} has {len(tokens)}"
            )
        self.tokens, self.sequence, self.batch_size, self.seed = tokens, sequence, batch, seed
        self._complement = complement
        # One window less than fit, so that every offset below a whole window leaves room for all of them.
        self.count = max(1, (len(tokens) - sequence) // sequence)
        self._offsets = min(sequence, len(tokens) - self.count * sequence)

    def starts(self, step: int) -> NDArray[np.int64]:
        """Where the windows of a step begin, ``(batch,)``."""
        check(step >= 0, "step", step, "must be at least 0")
        first = step * self.batch_size
        starts: list[NDArray[np.int64]] = []
        done = 0
        while done < self.batch_size:  # once for each epoch that the batch touches
            epoch, position = divmod(first + done, self.count)
            rows = min(self.batch_size - done, self.count - position)
            positions = np.arange(position, position + rows, dtype=np.uint64)
            window = permute(positions, self.count, _key(self.seed, epoch, 0)).astype(np.int64)
            starts.append(window * self.sequence + _key(self.seed, epoch, 1) % self._offsets)
            done += rows
        return np.concatenate(starts)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets ``(batch, sequence)`` int64 on the CPU; targets are one token ahead."""
        windows = _cut(self.tokens, self.starts(step), self.sequence)
        if self._complement is not None:
            first = np.uint64(_key(self.seed, step, 5))
            drawn = _splitmix64(first + np.arange(self.batch_size, dtype=np.uint64))
            other = (drawn >> np.uint64(63)).astype(bool)
            windows[other] = self._complement[windows[other, ::-1]]
        return _shifted(windows)


class Streams:
    """The text in order, for truncated backpropagation: every row reads on in its own stretch.

    The tokens are cut into ``batch`` stretches of ``steps_per_epoch * sequence`` tokens. At the first step of
    an epoch every row is ``fresh``: the state carried from before does not belong to it. What does not fill
    the stretches is left out at the end in epoch 0 and at other places in later ones.

    Raises DataError where a stretch is shorter than one window, ConfigError for numbers out of range.
    """

    def __init__(self, tokens: Tokens, sequence: int, batch: int, *, part: str = "the training part") -> None:
        _check_sizes(sequence, batch)
        self.steps_per_epoch = (len(tokens) - 1) // (sequence * batch)
        if self.steps_per_epoch < 1:
            least = sequence * batch + 1
            raise DataError(
                f"sequence = {sequence}: {batch} streams need {least} tokens, {part} has {len(tokens)}"
            )
        self.tokens, self.sequence, self.batch_size = tokens, sequence, batch

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, targets ``(batch, sequence)`` int64, fresh ``(batch,)`` bool: rows that begin anew."""
        check(step >= 0, "step", step, "must be at least 0")
        epoch, position = divmod(step, self.steps_per_epoch)
        stretch = self.steps_per_epoch * self.sequence
        spare = len(self.tokens) - 1 - self.batch_size * stretch
        offset = _key(0, epoch, 1) % (spare + 1) if epoch else 0
        starts = np.arange(self.batch_size, dtype=np.int64) * stretch + offset + position * self.sequence
        inputs, targets = _gather(self.tokens, starts, self.sequence)
        return inputs, targets, torch.full((self.batch_size,), position == 0)


def permute(positions: NDArray[np.uint64], count: int, key: int) -> NDArray[np.uint64]:
    """A bijection of [0, count) chosen by ``key``, evaluated where asked: O(1) memory, no table.

    A balanced Feistel network (Luby and Rackoff 1988) of 6 rounds, with splitmix64 as round function,
    permutes [0, 4**h), the smallest such range that holds ``count``; a result outside [0, count) is permuted
    again until it falls inside ("cycle walking", Black and Rogaway 2002), fewer than 4 times on average.
    Every position must lie in [0, count), count in [1, 2**62].
    """
    half = np.uint64(max(1, ((count - 1).bit_length() + 1) // 2))
    low = (_ONE << half) - _ONE
    keys = [np.uint64(_key(key, turn, 2)) for turn in range(_ROUNDS)]
    result = positions.astype(np.uint64)
    outside = np.arange(len(result))
    while len(outside):
        value = result[outside]
        left, right = value >> half, value & low
        for turn in keys:
            left, right = right, left ^ (_splitmix64(right + turn) & low)
        result[outside] = (left << half) | right
        outside = outside[result[outside] >= np.uint64(count)]
    return result


def _splitmix64(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of splitmix64 (Steele, Lea and Flood 2014), modulo 2**64, element by element."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _key(seed: int, counter: int, purpose: int) -> int:
    """64 bits that depend on all three numbers; the purpose keeps draws of different kinds apart."""
    state = np.zeros(1, dtype=np.uint64)
    for word in (seed, counter, purpose):
        state = _splitmix64(state ^ np.uint64(word % 2**64))
    return int(state[0])


def _gather(tokens: Tokens, starts: NDArray[np.int64], sequence: int) -> tuple[Tensor, Tensor]:
    return _shifted(_cut(tokens, starts, sequence))


def _cut(tokens: Tokens, starts: NDArray[np.int64], sequence: int) -> NDArray[np.int64]:
    return np.stack([tokens[start : start + sequence + 1] for start in starts]).astype(np.int64)


def _shifted(windows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    block = torch.from_numpy(windows)
    return block[:, :-1].contiguous(), block[:, 1:].contiguous()


def _check_sizes(sequence: int, batch: int) -> None:
    check(sequence >= 1, "sequence", sequence, "must be at least 1")
    check(batch >= 1, "batch", batch, "must be at least 1")
