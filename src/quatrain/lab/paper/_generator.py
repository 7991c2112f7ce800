"""What every task of the papers is: a pure function from (seed, step, split) to a batch."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quatrain.config.check import check
from quatrain.errors import ConfigError
from quatrain.model.loss import IGNORE

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
_LENGTHS = len(SPLITS)  # the stream that draws a batch's length, beside those that draw its contents
Array = NDArray[Any]


class Batch(NamedTuple):
    """Inputs, tokens ``(B, T)`` int64 or numbers ``(B, T, C)`` float32, and the target of each step.

    Targets are ``(B, T)``: int64 with -100 where nothing is asked, or float32 with NaN there.
    """

    inputs: Tensor
    targets: Tensor

    def asked(self) -> Tensor:
        """``(B, T)``: where a target stands."""
        return ~self.targets.isnan() if self.targets.is_floating_point() else self.targets != IGNORE


@dataclass(frozen=True, kw_only=True)
class Generator(ABC):
    """A task. Its fields are its settings; batch k of seed s is the same on every call.

    Attributes:
        channels: numbers of a step; 0 where a step is a token.
        regression: whether a target is a number (squared error) in the place of a symbol (cross-entropy).
        language: whether targets are the next tokens, so that the head can be the embedding.
        carries: whether a training batch goes on where the one before it ended.
        rule: which lengths there are, in words.
    """

    channels: ClassVar[int] = 0
    regression: ClassVar[bool] = False
    language: ClassVar[bool] = False
    carries: ClassVar[bool] = False
    rule: ClassVar[str] = "must be at least 1"

    @property
    @abstractmethod
    def vocab(self) -> int:
        """Number of different input tokens; 1 where the inputs are numbers."""

    @property
    def outputs(self) -> int:
        """Number of different targets, or of numbers of one; as many as inputs unless a task has others."""
        return self.vocab

    @abstractmethod
    def fits(self, length: int) -> bool:
        """Whether there are sequences of this many steps."""

    def counted(self, length: int) -> int:
        """Accuracies count the last so many steps; all of them unless a task scores trivial ones too."""
        return length

    @abstractmethod
    def pieces(self, split: Split, length: int) -> int:
        """Number of sequences of ``length`` steps that a part has; 0: without end."""

    def begins(self, step: int, batch: int, length: int) -> bool:
        """Whether training batch ``step`` begins anew; else it goes on where the one before it ended."""
        return True

    @abstractmethod
    def batch(self, seed: int, step: int, split: Split, batch: int, length: int) -> Batch:
        """Batch number ``step`` of a split. Raises ConfigError for a length that cannot be made."""

    def check(self, length: int) -> None:
        """Raise ConfigError, which says the rule, for a length that the task doesn't have."""
        check(self.fits(length), "length", length, f"{self.rule_in_words} in {type(self).__name__}")

    @property
    def rule_in_words(self) -> str:
        """The rule with this generator's numbers in it."""
        return self.rule.format(self=self)

    def lengths(self, named: tuple[int, ...]) -> tuple[int, ...]:
        """The lengths that are drawn: those of a range where two are named, else the named ones themselves.

        Raises ConfigError where a named one cannot be made, or none of a range.
        """
        if len(named) != 2:
            for length in named:
                self.check(length)
            return named
        found = tuple(length for length in range(named[0], named[1] + 1) if self.fits(length))
        if not found:
            raise ConfigError(f"lengths = {list(named)}: hold none that fits; a length {self.rule_in_words}")
        return found


@dataclass(frozen=True, kw_only=True)
class Endless(Generator):
    """A task that is drawn without end.

    Random numbers come from Philox (Salmon et al., SC 2011), a function of a key and a counter: (seed, split)
    is the key, the step stands in the counter's highest word, so no state has to be kept to go on.
    """

    @abstractmethod
    def draw(self, random: np.random.Generator, batch: int, length: int) -> tuple[Array, Array]:
        """Inputs and targets of ``batch`` sequences of ``length`` steps, drawn from ``random``."""

    def pieces(self, split: Split, length: int) -> int:
        """0: without end."""
        return 0

    def batch(self, seed: int, step: int, split: Split, batch: int, length: int) -> Batch:
        """Batch number ``step`` of a split. Raises ConfigError for a length that cannot be made."""
        self.check(length)
        inputs, targets = self.draw(stream(seed, SPLITS.index(split), step), batch, length)
        return to_batch(inputs, targets)


def stream(seed: int, number: int, step: int) -> np.random.Generator:
    """Random numbers that are a function of (seed, number, step), each in [0, 2**63)."""
    return np.random.Generator(np.random.Philox(key=[seed, number], counter=[0, 0, 0, step]))


def length_of(lengths: tuple[int, ...], seed: int, step: int) -> int:
    """The length of batch ``step`` of a seed: uniform over ``lengths``, the same for every model."""
    return (
        lengths[int(stream(seed, _LENGTHS, step).integers(len(lengths)))] if len(lengths) > 1 else lengths[0]
    )


def blank(batch: int, length: int, token: int = 0) -> tuple[Array, Array]:
    """Inputs ``(B, T)`` of one token, and targets that ask for nothing.

    Both lie in one block: malloc keeps one that is freed for the next batch, two it gives back to the system,
    whose pages are then made anew each time (1.3 ms in the place of 0.2 at 64 x 4096).
    """
    inputs, targets = np.empty((2, batch, length), np.int64)
    inputs[:], targets[:] = token, IGNORE
    return inputs, targets


def subsets(random: np.random.Generator, batch: int, count: int, among: int) -> Array:
    """``(batch, count)`` different numbers below ``among`` in each row: every set of them equally likely.

    Which number stands where isn't random. Algorithm F2 of Bentley and Floyd, CACM 30(9), 1987; cost:
    O(batch count^2), whatever ``among``.
    """
    found = np.empty((batch, count), np.int64)
    highs = np.arange(among - count + 1, among + 1)
    drawn = random.integers(0, highs, (batch, count))
    for place, high in enumerate(highs):
        now = drawn[:, place]
        taken = (found[:, :place] == now[:, None]).any(1)
        found[:, place] = np.where(taken, high - 1, now)
    return found


def last_only(values: Array, length: int) -> Array:
    """Targets ``(B, T)`` that stand at the last step alone, from ``values (B,)``."""
    number = values.dtype.kind == "f"
    targets = np.full((len(values), length), np.nan if number else IGNORE, values.dtype)
    targets[:, -1] = values
    return targets


def next_ones(words: Array, starts: Array, length: int) -> tuple[Array, Array]:
    """Windows of ``words`` from ``starts (B,)`` on, and the words that come next; none behind the end."""
    places, last = starts[:, None] + np.arange(length), len(words) - 1
    inputs, targets = words[np.minimum(places, last)], words[np.minimum(places + 1, last)]
    return inputs, np.where(places < last, targets, IGNORE)


def to_batch(inputs: Array, targets: Array) -> Batch:
    """Arrays as tensors: float32 where they hold numbers, else int64."""
    return Batch(_tensor(inputs), _tensor(targets))


def _tensor(values: Array) -> Tensor:
    return torch.from_numpy(values.astype(np.float32 if values.dtype.kind == "f" else np.int64, copy=False))


__all__ = [
    "IGNORE",
    "SPLITS",
    "Batch",
    "Endless",
    "Generator",
    "Split",
    "blank",
    "last_only",
    "length_of",
    "next_ones",
    "stream",
    "subsets",
    "to_batch",
]
