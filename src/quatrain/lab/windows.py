"""Pieces of a text that everything in a comparison is scored on: the same for every model and baseline."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quatrain.config.check import check
from quatrain.errors import DataError

Tokens = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Pieces:
    """Windows of a text, each read from an empty state; every token of a window but the first is predicted.

    ``starts`` (n,) are positions in the text, ``lengths`` (n,) numbers of predicted tokens; only the last may
    differ from the others. ``total`` is how many tokens of the text could be predicted.
    """

    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    total: int

    @property
    def tokens(self) -> int:
        """Number of predicted tokens."""
        return int(self.lengths.sum())

    def positions(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Position in the text of every predicted token ``(tokens,)``, and how many tokens it is predicted
        from, at least 1.
        """
        first = np.repeat(np.cumsum(self.lengths) - self.lengths, self.lengths)
        context = np.arange(self.tokens) - first + 1
        return np.repeat(self.starts, self.lengths) + context, context


def cut(tokens: Tokens, sequence: int, limit: float, *, part: str) -> Pieces:
    """Windows of ``sequence`` predicted tokens: all of the text side by side, the last one shorter, or, where
    that is more than ``limit`` tokens, as many whole ones at even distances as stay below it, at least one.

    Depends on nothing but the length of the text and the two numbers. ``part`` names the text in messages.
    Raises DataError for fewer than two tokens, ConfigError for a sequence below 1.
    """
    check(sequence >= 1, "sequence", sequence, "must be at least 1")
    total = len(tokens) - 1
    if total < 1:
        raise DataError(f"{part}: has {len(tokens)} tokens; needs at least 2 to predict one")
    length = min(sequence, total)
    whole = total // length
    if total <= limit:
        starts = np.arange(0, total, length, dtype=np.int64)
    else:
        count = max(1, min(whole, int(limit // length)))
        starts = np.arange(count, dtype=np.int64) * whole // count * length
    return Pieces(starts, np.minimum(length, total - starts), total)
