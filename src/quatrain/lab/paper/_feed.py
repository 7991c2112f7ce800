"""A task of the papers as what the training loop reads."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quatrain.config.schema import digest, to_dict
from quatrain.lab.paper._generator import Generator, length_of
from quatrain.lab.paper._score import Score, add, asked_loss, asked_only
from quatrain.lab.paper.recipe import Training
from quatrain.model.sequence import SequenceModel
from quatrain.train.config import RunConfig
from quatrain.train.feed import Autocast, Feed, Look, Work, one_batch

VALID = 0  # seed of the validation and test parts: the same sequences for every seed of training


@dataclass(frozen=True)
class Drawn:
    """A generator and how it is read, in the place of prepared data."""

    task: str
    generator: Generator
    training: Training

    @property
    def name(self) -> str:
        return self.task

    @property
    def vocab(self) -> int:
        return self.generator.vocab

    @property
    def digest(self) -> str:
        """Names the sequences that are drawn."""
        training = self.training
        drawn = {"batch": training.batch, "lengths": list(training.lengths), "look": training.look_sequences}
        return digest({"task": self.task, **drawn, "settings": to_dict(self.generator)})

    def feed(self, config: RunConfig) -> Feed:
        return GeneratorFeed(config, self)


class GeneratorFeed:
    """Batch k of a run is the generator's for (seed, k); the validation part is the same for all seeds."""

    def __init__(self, config: RunConfig, data: Drawn) -> None:
        self.settings, self.model, self.data = config.train, config.model, data
        training, generator = data.training, data.generator
        self.lengths = generator.lengths(training.lengths)
        self.look_tokens = _batches(data) * training.batch * training.high
        self.carries = generator.carries and "attention" not in config.model.kinds
        self.carry: list[Any] = [None]

    def backward(self, model: SequenceModel, step: int, autocast: Autocast) -> tuple[float, int]:
        """One batch, of one length."""
        return one_batch(self, model, step, autocast)

    def draw(self, step: int) -> Work:
        """One batch, of one length; a step's length is the same for every model."""
        seed, rows = self.settings.seed, self.data.training.batch
        length = length_of(self.lengths, seed, step)
        generator = self.data.generator
        batch = generator.batch(seed, step, "train", rows, length)
        return Work(asked_only(batch), rows * length, generator.begins(step, rows, length))

    def loss(self, model: SequenceModel, tensors: tuple[Tensor, ...], state: Any) -> tuple[Tensor, Any]:
        """Mean loss where something is asked."""
        found, after = asked_loss(model, tensors, state, keep_state=self.carries)
        return found, after if self.carries else None

    def look(self, model: SequenceModel) -> Look:
        """The same validation sequences every time."""
        total = validate(model, self.data)
        row = total.as_row()
        return Look(total.loss, total.merit, {name: row[name] for name in row if name.endswith("accuracy")})

    def meta(self) -> dict[str, object]:
        """Which task it is, so that a checkpoint of another one is told apart."""
        return {"paper": {"task": self.data.task, "settings": to_dict(self.data.generator)}}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Nothing."""
        return {}


def validate(model: SequenceModel, data: Drawn) -> Score:
    """Score the validation part: ``look_sequences`` of them, of lengths drawn as in training."""
    from quatrain.model.mode import evaluating

    generator, training = data.generator, data.training
    lengths = generator.lengths(training.lengths)
    total = Score(generator.regression)
    with torch.no_grad(), evaluating(model):
        for step in range(_batches(data)):
            length = length_of(lengths, VALID, step)
            add(total, model, generator, generator.batch(VALID, step, "valid", training.batch, length))
    return total


def _batches(data: Drawn) -> int:
    """Batches of a look: as many as have the sequences asked for, or those of a file."""
    wanted, limit = data.training.look_sequences, data.generator.pieces("valid", data.training.high)
    return -(-min(wanted, limit or wanted) // data.training.batch)
