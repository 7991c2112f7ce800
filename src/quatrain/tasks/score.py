"""Scoring a model on a part of a sequence file by the metrics of its task."""

from dataclasses import dataclass
from math import inf

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quatrain.data import metrics
from quatrain.data.batches import Batch, collate, places, windows
from quatrain.data.sequences import Part, SequenceFile
from quatrain.data.task import TASKS
from quatrain.model.config import QUANTILES
from quatrain.model.mode import evaluating
from quatrain.model.objective import OBJECTIVES, forecast_loss
from quatrain.model.sequence import SequenceModel


@dataclass(frozen=True)
class TaskScore:
    """How a model does on a part.

    Attributes:
        loss: mean of what was trained on (see `quatrain.model.objective`).
        metrics: by name, as in the task's table.
        scored: sequences, or windows of a series, that were scored.
        total: how many there are.
        steps: steps that were read.
    """

    loss: float
    metrics: dict[str, float]
    scored: int
    total: int
    steps: int


def score(
    model: SequenceModel, file: SequenceFile, part: Part, *, sequence: int, batch: int, limit: float = inf
) -> TaskScore:
    """Score a part: every sequence, or every window whose forecast lies in it; or as many, evenly chosen, as
    have about ``limit`` steps.

    A window gives ``sequence`` steps of context, which may reach back before the part. Every float32 result
    depends on the batch in its last bits only. Raises DataError for an empty part. Cost: one forward pass.
    """
    with evaluating(model), torch.no_grad():
        if file.task == "forecast":
            return _forecasts(model, file, part, sequence, batch, limit)
        return _labelled(model, file, part, batch, limit)


def choose(file: SequenceFile, part: Part, limit: float) -> NDArray[np.int64]:
    """Sequences of a part, at even distances where all would have more than ``limit`` steps; at least one."""
    indices = file.indices(part)
    steps = int(file.lengths(indices).sum())
    count = len(indices) if steps <= limit else max(1, int(len(indices) * limit / steps))
    return indices[np.arange(count) * len(indices) // count]


def greedy(logits: Tensor, length: int, symbols: tuple[str, ...]) -> str:
    """Best symbol of every step ``(T, K)``, repetitions merged, blanks (0) dropped (Graves et al. 2006)."""
    best = logits[:length].argmax(-1).tolist()
    kept = [now for before, now in zip([0, *best], best, strict=False) if now and now != before]
    return "".join(symbols[number - 1] for number in kept)


def _labelled(model: SequenceModel, file: SequenceFile, part: Part, batch: int, limit: float) -> TaskScore:
    indices = choose(file, part, limit)
    total = len(file.indices(part))
    order = indices[np.argsort(file.lengths(indices), kind="stable")]  # of like length: little padding
    judge = _Judge(file)
    loss, weight, steps = 0.0, 0, 0
    for at in range(0, len(order), batch):
        block = collate(file, order[at : at + batch])
        there = block.to(model.device)
        x, _ = model.hidden(there.inputs, lengths=there.lengths, keep_state=False)
        mean = OBJECTIVES[file.task](model, x, *there)
        output = model.read(x, there.inputs, there.lengths).cpu()
        count = judge.add(block, output)
        loss, weight, steps = loss + mean.item() * count, weight + count, steps + block.steps
    return TaskScore(loss / max(1, weight), judge.result(), len(indices), total, steps)


class _Judge:
    """Gathers what the metrics of a labelled task need, batch by batch."""

    def __init__(self, file: SequenceFile) -> None:
        self.task, self.labels = file.task, file.meaning.labels
        self.table = np.zeros((len(self.labels), len(self.labels)), dtype=np.int64)
        self.transcripts = metrics.Transcripts()

    def add(self, block: Batch, output: Tensor) -> int:
        """Take a batch; what its mean loss was the mean of: sequences, or tagged steps."""
        if self.task == "classify":
            self._count(block.targets, output.argmax(-1))
            return len(output)
        lengths = block.lengths
        assert lengths is not None
        if self.task == "tag":
            inside = torch.arange(output.shape[1]) < lengths[:, None]
            scored = inside & (block.targets >= 0)
            self._count(block.targets[scored], output.argmax(-1)[scored])
            return int(scored.sum())
        assert block.target_lengths is not None
        for row, logits in enumerate(output):
            truth = block.targets[row, : block.target_lengths[row]].tolist()
            guess = greedy(logits, int(lengths[row]), self.labels)
            self.transcripts.add("".join(self.labels[number - 1] for number in truth), guess)
        return len(output)

    def result(self) -> dict[str, float]:
        if self.task == "transcribe":
            return self.transcripts.result()
        return metrics.classification(self.table)

    def _count(self, truth: Tensor, guess: Tensor) -> None:
        self.table += metrics.confusion(truth.numpy(), guess.numpy(), len(self.labels))


def _forecasts(
    model: SequenceModel, file: SequenceFile, part: Part, sequence: int, batch: int, limit: float
) -> TaskScore:
    found, total = places(file, part, sequence, limit)
    judge = judge_of(file)
    loss = 0.0
    for at in range(0, len(found), batch):
        block = windows(file, found[at : at + batch], sequence)
        inputs = block.inputs.to(model.device)
        x, _ = model.hidden(inputs, keep_state=False)
        forecast = model.forecasts(x[:, -1], inputs[:, -1]).float().cpu()  # (B, H, M, 6)
        truth = block.targets[:, sequence:]
        loss += forecast_loss(forecast, truth).item() * len(truth)
        judge.add(truth.numpy(), forecast.numpy())
    return TaskScore(loss / len(found), judge.result(), len(found), total, len(found) * sequence)


def judge_of(file: SequenceFile) -> metrics.ForecastError:
    """The forecast metrics of a file's scales."""
    meaning = file.meaning
    scale = np.asarray(meaning.std[: meaning.targets])
    return metrics.ForecastError(scale, np.asarray(meaning.naive), QUANTILES)


def primary(task: str, found: dict[str, float]) -> float:
    """The number that decides which checkpoint is best, such that less is better."""
    metric = TASKS[task].metrics[0]
    return found[metric.name] if metric.lower else -found[metric.name]
