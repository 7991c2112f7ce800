"""The numbers that the field judges by, on arrays; and the edit distance."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quatrain.errors import DataError

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]


def confusion(truth: Ints, guess: Ints, classes: int) -> NDArray[np.int64]:
    """How often class i was taken for class j, ``(classes, classes)``."""
    flat = truth.astype(np.int64) * classes + guess
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)


def classification(table: NDArray[np.int64]) -> dict[str, float]:
    """Accuracy, and F1 averaged over the classes that occur in truth or guess, from a `confusion` table.

    F1 of a class is 2 tp / (2 tp + fp + fn). Raises DataError for an empty table.
    """
    if table.sum() == 0:
        raise DataError("metrics: nothing was scored")
    hits = table.diagonal()
    seen = table.sum(0) + table.sum(1)
    return {
        "accuracy": float(hits.sum() / table.sum()),
        "f1": float((2 * hits[seen > 0] / seen[seen > 0]).mean()),
    }


class ForecastError:
    """Sums of forecast errors, one batch of windows after the other.

    Errors are taken on the normalised series, as the field's tables have them, and on the original one for
    RMSE. MASE (Hyndman and Koehler 2006): mean absolute error over that of the seasonal-naive forecast within
    the training part, mean over target columns.

    Args:
        scale: ``(M,)`` one normalised unit in original units.
        naive: ``(M,)`` mean of |x_t - x_(t-season)| over the training part, normalised.
        levels: the quantiles that are forecast.
    """

    def __init__(self, scale: Floats, naive: Floats, levels: Sequence[float]) -> None:
        self.scale, self.naive, self.levels = scale.astype(np.float64), naive, np.asarray(levels)
        self.square = np.zeros(len(scale))
        self.absolute = np.zeros(len(scale))
        self.pinball = 0.0
        self.windows = 0

    def add(self, truth: Floats, forecast: Floats) -> None:
        """``truth (B, H, M)``, ``forecast (B, H, M, 1 + quantiles)``, both normalised."""
        error = truth.astype(np.float64) - forecast[..., 0]
        self.square += np.square(error).mean(1).sum(0)
        self.absolute += np.abs(error).mean(1).sum(0)
        under = truth[..., None].astype(np.float64) - forecast[..., 1:]
        self.pinball += float(
            np.maximum(self.levels * under, (self.levels - 1) * under).mean((1, 2, 3)).sum()
        )
        self.windows += len(truth)

    def result(self) -> dict[str, float]:
        """mse, mae and quantile loss normalised, rmse in original units, mase. Raises DataError if empty."""
        if self.windows == 0:
            raise DataError("metrics: nothing was scored")
        square, absolute = self.square / self.windows, self.absolute / self.windows
        moving = self.naive > 0  # a column that never moves has no scale to be judged on
        return {
            "mse": float(square.mean()),
            "mae": float(absolute.mean()),
            "rmse": float(np.sqrt((square * self.scale**2).mean())),
            "quantile": self.pinball / self.windows,
            "mase": float((absolute[moving] / self.naive[moving]).mean()) if moving.any() else 0.0,
        }


class Transcripts:
    """Character and word error rate: edits over symbols of the truth, summed over all transcripts."""

    def __init__(self) -> None:
        self.edits, self.symbols = [0, 0], [0, 0]

    def add(self, truth: str, guess: str) -> None:
        """One transcript and what it should have been."""
        for index, (right, said) in enumerate(((truth, guess), (truth.split(), guess.split()))):
            self.edits[index] += edit_distance(right, said)
            self.symbols[index] += len(right)

    def result(self) -> dict[str, float]:
        """cer and wer. Raises DataError where the truth is empty."""
        if min(self.symbols) == 0:
            raise DataError("metrics: no symbols to transcribe")
        return {
            name: edits / symbols
            for name, edits, symbols in zip(("cer", "wer"), self.edits, self.symbols, strict=True)
        }


def edit_distance(truth: Sequence[object], guess: Sequence[object]) -> int:
    """Fewest insertions, deletions and replacements that turn one into the other (Levenshtein 1966)."""
    before = list(range(len(guess) + 1))
    for row, right in enumerate(truth, 1):
        now = [row]
        for column, said in enumerate(guess, 1):
            now.append(min(before[column] + 1, now[-1] + 1, before[column - 1] + (right != said)))
        before = now
    return before[-1]
