"""What a trained model says about new inputs: classes, tags, transcripts, forecasts."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quatrain import checkpoint
from quatrain.data._encode import spell
from quatrain.data.batches import padded
from quatrain.data.readers._item import Item
from quatrain.data.sequences import Meaning, meaning_from_dict
from quatrain.errors import DataError
from quatrain.model.backbone import State
from quatrain.model.config import QUANTILES
from quatrain.model.memory import in_parts
from quatrain.model.mode import evaluating
from quatrain.model.sequence import SequenceModel
from quatrain.tasks.score import greedy
from quatrain.tasks.spelling import tokenizer_of

_BATCH = 32  # sequences answered at a time


@dataclass(frozen=True)
class Forecast:
    """What follows a series, in its own units.

    Attributes:
        columns: the target columns, M of them.
        mean: ``(H, M)``.
        quantiles: ``(H, M, Q)`` at the levels ``levels``.
    """

    columns: tuple[str, ...]
    mean: NDArray[np.float64]
    quantiles: NDArray[np.float64]
    levels: tuple[float, ...] = QUANTILES


class Predictor:
    """A checkpoint of any task but lm, ready to answer. Raises DataError, CheckpointError as `load`."""

    def __init__(self, path: str | Path, device: torch.device | str = "cpu") -> None:
        meta = checkpoint.load_meta(path)
        self.model: SequenceModel = checkpoint.load(path, device)
        self.task = self.model.config.task
        if self.task == "lm":
            raise DataError(
                f"checkpoint {str(path)!r}: is a language model; quatrain generate continues texts"
            )
        self.meaning: Meaning = meaning_from_dict(meta.get("meaning"))
        self.context = int(meta["config"]["train"]["sequence"])
        self.tokenizer = tokenizer_of(path)

    def answers(self, items: Iterable[Item]) -> Iterator[dict[str, Any]]:
        """A row for each item, in order: ``source``, and by task

        - classify: ``class``, ``probability``, ``probabilities`` of all classes
        - tag: ``tags``, one for each step (of a text: for each byte)
        - transcribe: ``text``

        Raises DataError for an item of another shape than the model reads, OutOfMemoryError for one that does
        not fit.
        """
        queue = iter(items)
        while block := list(islice(queue, _BATCH)):
            for item in block:
                self.check(item)
            rows = in_parts(len(block), partial(self._rows, block), "sequence")
            for item, answer in zip(block, rows, strict=True):
                yield {"source": item.where, **answer}

    def forecast(self, values: NDArray[Any]) -> Forecast:
        """What follows ``values (T, C)``, of which the last steps that training saw at a time are read."""
        normal = self.meaning.normalised(values[-self.context :])
        inputs = torch.from_numpy(normal)[None].to(self.model.device)
        with torch.no_grad(), evaluating(self.model):
            x, _ = self.model.hidden(inputs, keep_state=False)
            return self._unscaled(self.model.forecasts(x[:, -1], inputs[:, -1])[0])

    def stream(self, rows: Iterable[NDArray[Any]]) -> Iterator[Forecast]:
        """A forecast after every row ``(C,)`` as it arrives; the state and that row are all that is kept."""
        state: State = self.model.initial_state(1)
        before: NDArray[Any] | None = None
        with torch.no_grad(), evaluating(self.model):
            for row in rows:
                inputs = torch.from_numpy(self.meaning.normalised(row[None], before)).to(self.model.device)
                before = row
                output, state = self.model.step(inputs, state)
                yield self._unscaled(output[0])

    def tokens(self, item: Item) -> NDArray[Any]:
        """What the model reads of an item: numbers as it was trained on, or tokens."""
        if self.meaning.tokenizer != "bytes":
            return spell(self.tokenizer, item.values.tobytes(), item.where)
        return self.meaning.normalised(item.values)

    def _rows(self, items: Sequence[Item], at_once: int) -> list[dict[str, Any]]:
        """The answers to some items, so many of them in one pass."""
        found = []
        for first in range(0, len(items), at_once):
            sequences = [self.tokens(item) for item in items[first : first + at_once]]
            lengths = torch.tensor([len(sequence) for sequence in sequences])
            inputs = padded(sequences, self.meaning.channels).to(self.model.device)
            with torch.no_grad(), evaluating(self.model):
                output, _ = self.model(inputs, lengths=lengths.to(self.model.device), keep_state=False)
            pairs = zip(output.float().cpu(), lengths.tolist(), strict=True)
            found += [self._answer(logits, length) for logits, length in pairs]
        return found

    def _answer(self, logits: Tensor, length: int) -> dict[str, Any]:
        labels = self.meaning.labels
        if self.task == "classify":
            chances = logits.softmax(-1)
            best = int(chances.argmax())
            every = {label: round(float(p), 6) for label, p in zip(labels, chances, strict=True)}
            return {"class": labels[best], "probability": every[labels[best]], "probabilities": every}
        if self.task == "tag":
            return {"tags": [labels[number] for number in logits[:length].argmax(-1).tolist()]}
        return {"text": greedy(logits, length, labels)}

    def _unscaled(self, forecast: Tensor) -> Forecast:  # (H, M, 6)
        meaning = self.meaning
        mean, std = (np.asarray(each[: meaning.targets]) for each in (meaning.mean, meaning.std))
        values = forecast.double().cpu().numpy() * std[:, None] + mean[:, None]
        ordered = np.sort(values[..., 1:], -1)  # quantiles are learnt one by one and may cross
        return Forecast(meaning.columns[: meaning.targets], values[..., 0], ordered)

    def check(self, item: Item) -> None:
        """Raise DataError for an item of another shape, or rate, than the model reads."""
        channels = item.values.shape[1] if item.values.ndim == 2 else 0
        if channels != self.meaning.channels:
            here, there = (f"{n} numbers a step" if n else "text" for n in (channels, self.meaning.channels))
            raise DataError(f"{item.where}: has {here}, the model reads {there}")
        if item.rate != self.meaning.rate:
            rate = f"{item.rate} samples a second, the model was trained on {self.meaning.rate}"
            raise DataError(f"{item.where}: has {rate}")


def csv_lines(forecast: Forecast) -> Iterator[Sequence[object]]:
    """Header and rows: step ahead, then for each column its mean and quantiles."""
    head: list[object] = ["step"]
    for column in forecast.columns:
        head += [column, *(f"{column} q{level:g}" for level in forecast.levels)]
    yield head
    for step, (mean, quantiles) in enumerate(zip(forecast.mean, forecast.quantiles, strict=True), 1):
        row: list[object] = [step]
        for index in range(len(forecast.columns)):
            row += [f"{mean[index]:.6g}", *(f"{value:.6g}" for value in quantiles[index])]
        yield row
