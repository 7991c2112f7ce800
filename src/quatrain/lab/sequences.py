"""Labelled sequences and series: what a comparison trains, tests and shows of them.

One class for classify, forecast, tag and transcribe: they share the sequence file, and what differs is in the
tables of `quatrain.model.objective`, `quatrain.tasks` and, for samples, in `quatrain.lab._samples`.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import ceil, log2
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quatrain.config.check import check
from quatrain.config.schema import from_dict
from quatrain.data.batches import Sequences, SeriesWindows, collate, places, windows
from quatrain.data.sequences import Part, SequenceFile
from quatrain.data.task import TASKS
from quatrain.errors import DataError
from quatrain.lab import _samples, probes
from quatrain.lab._study import Row, few_steps, planned
from quatrain.lab.config import BATCH, SEQUENCE, CompareConfig
from quatrain.lab.plan import Plan
from quatrain.model.config import ModelConfig
from quatrain.model.count import fit_size
from quatrain.model.objective import OBJECTIVES, forecast_loss
from quatrain.model.sequence import SequenceModel
from quatrain.tasks.score import choose, primary, score
from quatrain.tasks.shape import shaped
from quatrain.tasks.trivial import trivial
from quatrain.train.config import RunConfig, TrainConfig

_BATCHES = 8, 64  # sequences of a step that is chosen, at least and at most
_EPOCH = 8  # steps of an epoch that a chosen batch leaves, where there are enough sequences
_LOOK = 8192, 65_536  # steps of a look at the validation part
_REACH_STEPS, _REACH = 4096, 32  # steps and sequences over which gradient norms are averaged


class SequenceTask:
    """A comparison on a sequence file.

    ``config.sequence`` and ``config.batch`` are chosen where they were left open. Labelled sequences are read
    whole: as many at a time as have about 2048 steps, 8 to 64; ``sequence`` is their mean length. A forecast
    reads 256 steps of context, or the power of two that is at most a quarter of the training part.

    Raises DataError where a part is empty or too short, ConfigError for a ``sequence`` of labelled data.
    """

    def __init__(self, config: CompareConfig, data: SequenceFile) -> None:
        self.data, self.task, self.sweeps = data, TASKS[data.task], False
        self.config = self._labelled(config) if self.task.labelled else self._series(config)
        for part in ("train", "valid", "test"):
            self._check(part)  # says what is missing, before anything is done

    def _labelled(self, config: CompareConfig) -> CompareConfig:
        rule = f"is not for the task {self.task.name}, whose sequences have their own lengths; leave it out"
        check(config.sequence == 0, "sequence", config.sequence, rule)
        lengths = self.data.lengths(self.data.indices("train"))
        mean = max(1, ceil(float(lengths.mean()))) if len(lengths) else 1
        batch = config.batch or max(_BATCHES[0], min(_batch(mean), _power(len(lengths) / _EPOCH)))
        return replace(config, sequence=mean, batch=max(1, min(batch, len(lengths))))

    def _series(self, config: CompareConfig) -> CompareConfig:
        horizon = self.data.meaning.horizon
        longest = max(stop - start for _, start, stop in self.data.spans("train"))
        if longest <= horizon:
            raise DataError(
                f"data.horizon = {horizon}: must be shorter than the training part, which has {longest} "
                f"steps in a row"
            )
        sequence = config.sequence or min(SEQUENCE, _power((longest - horizon) / 4))
        return replace(config, sequence=sequence, batch=config.batch or _batch(sequence))

    def _check(self, part: Part) -> None:
        config = self.config
        if self.task.labelled:
            Sequences(self.data, part, config.batch, 0)
        elif part == "train":
            SeriesWindows(self.data, config.sequence, config.batch, 0)
        else:
            places(self.data, part, config.sequence, config.sequence)

    @property
    def train_tokens(self) -> int:
        """Steps of the training part."""
        return self._steps("train")

    @property
    def test_total(self) -> int:
        """Steps that scoring the validation or the test part in full reads, the larger of the two."""
        parts: tuple[Part, Part] = ("valid", "test")
        if self.task.labelled:
            return max(map(self._steps, parts))
        size = self.config.sequence
        return max(places(self.data, part, size, size)[1] for part in parts) * size

    def _steps(self, part: Part) -> int:
        if self.task.labelled:
            return int(self.data.lengths(self.data.indices(part)).sum())
        return sum(stop - start for _, start, stop in self.data.spans(part))

    def says(self) -> str:
        """How the sequences are taken."""
        config, meaning = self.config, self.data.meaning
        if not self.task.labelled:
            each = f"every step forecasts the next {meaning.horizon}"
            return f"windows of {config.sequence} steps, {config.batch} at a time; {each}"
        kinds = {"classify": "classes", "tag": "tags", "transcribe": "symbols"}[self.task.name]
        count = f"{self.data.splits['train']:,} sequences to train on"
        length = f"of {config.sequence} steps on average, {config.batch} at a time"
        return f"{count}, {length}; {len(meaning.labels)} {kinds}"

    def describe(self) -> Row:
        """The data, for the record."""
        manifest, meaning = self.data.manifest, self.data.meaning
        row: Row = {
            "name": manifest.name,
            "description": manifest.description,
            "digest": manifest.digest,
            "sequences": manifest.sequences,
            "steps": manifest.steps,
            "longest": manifest.longest,
            "channels": meaning.channels,
            "vocab": self.data.vocab,
            "splits": self.data.splits,
            "part_steps": {"train": self._steps("train"), "test": self._steps("test")},
        }
        if self.task.name == "forecast":
            names = meaning.columns[: meaning.targets]
            return row | {"targets": names, "horizon": meaning.horizon, "season": meaning.season}
        return row | {"labels": meaning.labels[:100], "classes": len(meaning.labels)}

    # -- models and runs

    def model(self, mixer: str) -> ModelConfig:
        """A model of the size asked for. Raises ConfigError where there is none."""
        return fit_size(
            mixer,
            self.config.params,
            base=shaped(ModelConfig(dropout=self.config.dropout), self.data.meaning),
        )

    def run(self, model: ModelConfig, lr: float, seed: int, plan: Plan) -> RunConfig:
        """The training run of one model, learning rate and seed."""
        look = min(_LOOK[1], max(plan.eval_tokens, plan.tokens // 16))
        return self._run(model, planned(plan, lr, seed, look))

    def trial(self, model: ModelConfig) -> RunConfig:
        """A few steps, for calibration."""
        return self._run(model, few_steps(self.config, _LOOK[0]))

    def _run(self, model: ModelConfig, train: Row) -> RunConfig:
        config = self.config
        settings = {
            "sequence": config.sequence,
            "batch_tokens": config.sequence * config.batch,
            "batch_sequences": config.batch,
            "keep": 1,
            **train,
        }
        return RunConfig(model=model, data=config.data, train=from_dict(TrainConfig, settings, "train"))

    # -- scores

    def merit(self, look: Mapping[str, Any]) -> float:
        """The task's first metric, such that less is better."""
        return primary(self.task.name, look["metrics"])

    def baselines(self, plan: Plan) -> list[Row]:
        """Rows of the trivial answers, on the same sequences or windows as the models."""
        found = {
            part: trivial(self.data, part, sequence=self.config.sequence, limit=plan.test_tokens)
            for part in ("valid", "test")
        }
        return [
            {"name": name, "valid_metrics": found["valid"][name], "metrics": metrics}
            for name, metrics in found["test"].items()
        ]

    def score(self, model: SequenceModel, plan: Plan) -> Row:
        """Fields of a result: loss and metrics on the validation and the test part."""
        valid, test = (
            score(
                model,
                self.data,
                part,
                sequence=self.config.sequence,
                batch=max(32, self.config.batch),
                limit=plan.test_tokens,
            )
            for part in ("valid", "test")
        )
        return {
            "valid_loss": valid.loss,
            "test_loss": test.loss,
            "valid_metrics": valid.metrics,
            "metrics": test.metrics,
            "test_tokens": test.steps,
            "test_items": test.scored,
            "test_total_items": test.total,
        }

    # -- what the probes read

    def context(self, length: int) -> Tensor:
        """``length`` steps of the training part, one sequence after the other, repeated where too few."""
        pieces, steps = [], 0
        for index in self.data.indices("train"):  # of series all of them, from their starts
            pieces.append(self.data.sequence(int(index), 0, None if self.task.labelled else length))
            steps += len(pieces[-1])
            if steps >= length:
                break
        joined = np.concatenate(pieces)
        joined = joined[np.arange(length) % len(joined)]
        return torch.from_numpy(joined.astype(np.float32 if self.data.meaning.channels else np.int64))

    def reach(self, model: SequenceModel) -> dict[int, float]:
        """Gradient norms of the loss over sequences of the validation part: of the last step's forecast or
        tag, of a class or transcript the whole of it, which reads every step."""
        if not self.task.labelled:
            size = self.config.sequence
            found, _ = places(self.data, "valid", size, max(size * 4, _REACH_STEPS))
            block = windows(self.data, found, size)
            truth = block.targets[:, size:]

            def last(hidden: Tensor) -> Tensor:
                forecast = model.forecasts(hidden[:, -1], block.inputs[:, -1])
                return forecast_loss(forecast, truth) * len(truth)

            return probes.reach(model, block.inputs, last)
        block = collate(self.data, choose(self.data, "valid", _REACH_STEPS)[:_REACH])
        assert block.lengths is not None
        ends = block.lengths - 1
        rows = torch.arange(len(ends))

        def whole(hidden: Tensor) -> Tensor:
            if self.task.name == "tag":
                logits = model.logits(hidden[rows, ends])
                tags = block.targets[rows, ends]
                return torch.nn.functional.cross_entropy(logits, tags, reduction="sum")
            return OBJECTIVES[self.task.name](model, hidden, *block) * len(rows)

        return probes.reach(model, block.inputs, whole, block.lengths)

    def sweep(
        self, model: SequenceModel | None, plan: Plan, models: Mapping[str, ModelConfig]
    ) -> tuple[list[tuple[str, Row]], str]:
        """Nothing: labelled sequences have their own lengths, and a forecast its context."""
        return [], ""

    def samples(self, model: SequenceModel) -> list[Row]:
        """A row with answers to sequences of the test part."""
        return [_samples.sample(model, self.data, self.config.sequence)]


def _batch(length: int) -> int:
    """Sequences that have about as many steps as a text's batch, a power of two."""
    return min(_BATCHES[1], max(_BATCHES[0], 1 << round(log2(SEQUENCE * BATCH / length))))


def _power(most: float) -> int:
    """The largest power of two up to ``most``, at least 1."""
    return 1 << max(0, int(log2(max(1.0, most))))
