"""What costs nothing: the answers that any trained model has to beat, by the same metrics."""

from collections.abc import Callable
from math import inf

import numpy as np
from numpy.typing import NDArray

from quatrain.data import metrics
from quatrain.data.batches import places, windows
from quatrain.data.sequences import Part, SequenceFile
from quatrain.model.config import FORECAST_WIDTH
from quatrain.tasks.score import choose, judge_of

Ints = NDArray[np.int64]


def trivial(
    file: SequenceFile, part: Part, *, sequence: int, limit: float = inf
) -> dict[str, dict[str, float]]:
    """Metrics of the task's baselines on a part, by the baseline's name, on what `score` scores.

    - majority (classify, tag): the label that is most frequent in training, always
    - persistence: the last value goes on; seasonal-naive: the values of the last season go on
    - blank (transcribe): nothing is said
    """
    return _BASELINES[file.task](file, part, sequence, limit)


def _majority(file: SequenceFile, part: Part, _: int, limit: float) -> dict[str, dict[str, float]]:
    classes = len(file.meaning.labels)
    counts = _counts(file, file.indices("train"), classes)
    truth = _counts(file, choose(file, part, limit), classes)
    table = np.zeros((classes, classes), dtype=np.int64)
    table[:, int(counts.argmax())] = truth
    return {"majority": metrics.classification(table)}


def _counts(file: SequenceFile, indices: Ints, classes: int) -> Ints:
    counts = np.zeros(classes, dtype=np.int64)
    for index in indices:
        numbers = file.target(int(index))
        counts += np.bincount(numbers[numbers >= 0], minlength=classes)
    return counts


def _naive(file: SequenceFile, part: Part, sequence: int, limit: float) -> dict[str, dict[str, float]]:
    meaning = file.meaning
    horizon, season = meaning.horizon, min(meaning.season, sequence)
    found, _ = places(file, part, sequence, limit)
    judges = {"persistence": judge_of(file)}
    if season > 1:
        judges["seasonal-naive"] = judge_of(file)
    for at in range(0, len(found), 256):
        block = windows(file, found[at : at + 256], sequence).targets.numpy()
        past, truth = block[:, :sequence], block[:, sequence:]
        for name, judge in judges.items():
            back = 1 if name == "persistence" else season
            steps = sequence - back + np.arange(horizon) % back
            guess = past[:, steps]
            judge.add(truth, np.repeat(guess[..., None], FORECAST_WIDTH, -1))
    return {name: judge.result() for name, judge in judges.items()}


def _blank(file: SequenceFile, part: Part, _: int, limit: float) -> dict[str, dict[str, float]]:
    return {"blank": {"cer": 1.0, "wer": 1.0}}


_BASELINES: dict[str, Callable[[SequenceFile, Part, int, float], dict[str, dict[str, float]]]] = {
    "classify": _majority,
    "tag": _majority,
    "forecast": _naive,
    "transcribe": _blank,
}
