"""What a run trains and looks at, by task: batches, their losses, and the validation part."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quatrain.config.check import check
from quatrain.data.batches import Sequences, SeriesWindows, places
from quatrain.data.prepare import Data
from quatrain.data.sampler import Streams, Windows
from quatrain.data.sequences import SequenceFile, meaning_to_dict
from quatrain.data.task import TASKS
from quatrain.data.tokenizer import COMPLEMENT, Tokenizer
from quatrain.data.tokens import TokenFile
from quatrain.errors import ConfigError
from quatrain.model.config import ModelConfig
from quatrain.model.device import to_device
from quatrain.model.lm import LanguageModel
from quatrain.model.objective import objective
from quatrain.model.sequence import SequenceModel
from quatrain.tasks.score import choose, primary, score
from quatrain.tasks.shape import shaped
from quatrain.train import _carry
from quatrain.train.config import RunConfig
from quatrain.train.validate import Validation


class Look(NamedTuple):
    """One look at the validation part: ``score`` decides which is best, less is better."""

    loss: float
    score: float
    metrics: dict[str, float]


Autocast = Callable[[], Any]


class Feed(Protocol):
    """The part of a run that depends on the task. ``carry`` is the state between batches, by micro-batch."""

    carry: list[Any]
    model: ModelConfig  # as the data shapes it
    look_tokens: int  # tokens or steps of a look

    def backward(self, model: SequenceModel, step: int, autocast: Autocast) -> tuple[float, int]:
        """Gradient of the mean loss of a step, from 1; returns that loss and how many tokens it read."""

    def look(self, model: SequenceModel) -> Look:
        """Score the validation part, or the fixed share of it that the config allows."""

    def meta(self) -> dict[str, object]:
        """What a checkpoint has to hold beside the weights."""

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Groups of tensors that it has to hold."""


class Work(NamedTuple):
    """One batch on the host: what its loss reads, how many tokens that is, and whether it begins anew,
    whatever state is carried."""

    tensors: tuple[Tensor, ...]
    tokens: int
    fresh: bool = True


@runtime_checkable
class Recordable(Feed, Protocol):
    """A feed of one batch a step, whose loss depends on tensors alone: batches can be drawn ahead, and a
    step recorded once is right for every batch of the same shapes."""

    def draw(self, step: int) -> Work:
        """The batch of a step, from 1."""

    def loss(self, model: SequenceModel, tensors: tuple[Tensor, ...], state: Any) -> tuple[Tensor, Any]:
        """Mean loss of what `draw` gave, on the model's device, and the state to carry on, or None."""


def one_batch(feed: Recordable, model: SequenceModel, step: int, autocast: Autocast) -> tuple[float, int]:
    """`Feed.backward` of a recordable feed."""
    work = feed.draw(step)
    tensors = tuple(to_device(tensor, model.device) for tensor in work.tensors)
    with autocast():
        loss, state = feed.loss(model, tensors, None if work.fresh else feed.carry[0])
    torch.autograd.backward(loss)
    feed.carry[0] = None if state is None else _carry.detach(state)
    return loss.item(), work.tokens


class Source(Protocol):
    """Data that is not a prepared file and brings its own feed, as a generator does."""

    @property
    def name(self) -> str:
        """What the records call it."""

    @property
    def digest(self) -> str:
        """Names the content: a run goes on only with the same."""

    @property
    def vocab(self) -> int:
        """Number of different tokens."""

    def feed(self, config: RunConfig) -> Feed:
        """What is trained on and looked at. Raises ConfigError where it does not go with the config."""


def feed_of(config: RunConfig, data: Data | Source) -> Feed:
    """The feed for the data. Raises ConfigError or DataError where they do not go together."""
    if isinstance(data, TokenFile):
        return TextFeed(config, data)
    return TaskFeed(config, data) if isinstance(data, SequenceFile) else data.feed(config)


class TextFeed:
    """Next tokens: windows in random order, or streams with carried state."""

    def __init__(self, config: RunConfig, data: TokenFile) -> None:
        settings = config.train
        self.settings, self.model = settings, config.model
        tokenizer = data.tokenizer
        self.tokenizer = tokenizer
        if tokenizer.name != "bytes" and config.model.vocab == ModelConfig.vocab:
            self.model = replace(config.model, vocab=data.vocab)
        check(config.model.task == "lm", "model.task", config.model.task, "must be lm for a text")
        if data.vocab > self.model.vocab:
            raise ConfigError(
                f"model.vocab = {self.model.vocab}: must be at least {data.vocab}, that of {data.name}"
            )
        rule = "is for windows of DNA, which train.carry_state = true does not draw"
        wanted = config.data.reverse_complement
        check(wanted != "on" or not settings.carry_state, "data.reverse_complement", wanted, rule)
        part, sequence, batch = data.part("train"), settings.sequence, settings.batch
        self.sampler = (
            Streams(part, sequence, batch)
            if settings.carry_state
            else Windows(part, sequence, batch, settings.seed, complement=_complement(config, tokenizer))
        )
        rows = settings.batch // settings.accumulate
        self.validation = Validation(data.part("valid"), settings.sequence, settings.eval_tokens, rows)
        self.look_tokens = self.validation.tokens
        self.carry: list[Any] = [None] * settings.accumulate

    def backward(self, model: SequenceModel, step: int, autocast: Autocast) -> tuple[float, int]:
        """The step's micro-batches are equally large."""
        assert isinstance(model, LanguageModel)
        settings = self.settings
        inputs, targets, fresh = self._batch(step)
        inputs, targets = (to_device(each, model.device) for each in (inputs, targets))
        parts, total = settings.accumulate, 0.0
        for part in range(parts):
            rows = slice(part * len(inputs) // parts, (part + 1) * len(inputs) // parts)
            state = self._state(model, part, fresh[rows]) if settings.carry_state else None
            with autocast():
                loss, state = model.loss(inputs[rows], targets[rows], state, keep_state=settings.carry_state)
            torch.autograd.backward(loss / parts)
            total += loss.item() / parts
            self.carry[part] = _carry.detach(state) if settings.carry_state else None
        return total, settings.batch_tokens

    def look(self, model: SequenceModel) -> Look:
        """Mean nats over fixed windows."""
        assert isinstance(model, LanguageModel)
        nats = self.validation.nats(model)
        return Look(nats, nats, {})

    def meta(self) -> dict[str, object]:
        """What the tokens are, where they are not bytes."""
        return _named(self.tokenizer)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """A byte-pair encoding."""
        return _spelling(self.tokenizer)

    def _batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        if isinstance(self.sampler, Streams):
            return self.sampler.batch(step - 1)
        inputs, targets = self.sampler.batch(step - 1)
        return inputs, targets, torch.ones(len(inputs), dtype=torch.bool)

    def _state(self, model: LanguageModel, part: int, fresh: Tensor) -> Any:
        """The state that micro-batch ``part`` begins with; rows that begin a new stream have an empty one."""
        state = self.carry[part]
        if state is None or fresh.all():
            return None
        if not fresh.any():
            return state
        return _carry.reset(state, model.initial_state(len(fresh)), to_device(fresh, model.device))


def _complement(config: RunConfig, tokenizer: Tokenizer) -> NDArray[np.uint8] | None:
    """What reads DNA from the other strand too; None for other texts, or where it is off."""
    wanted, dna = config.data.reverse_complement, tokenizer.name == "dna"
    check(dna or wanted != "on", "data.reverse_complement", wanted, "is for DNA")
    return COMPLEMENT if dna and wanted != "off" else None


class TaskFeed:
    """Labelled sequences, or windows of a series with what follows them."""

    def __init__(self, config: RunConfig, data: SequenceFile) -> None:
        settings = config.train
        self.settings, self.data = settings, data
        check(not settings.carry_state, "train.carry_state", True, f"is not for the task {data.task}")
        self.model = shaped(config.model, data.meaning)
        self.carry: list[Any] = [None]
        self.sampler: Sequences | SeriesWindows
        if TASKS[data.task].labelled:
            rows, rule = settings.batch_sequences, "must be a multiple of train.accumulate"
            whole = rows % settings.accumulate == 0
            check(whole, "train.batch_sequences", rows, f"{rule} = {settings.accumulate}")
            self.sampler = Sequences(data, "train", settings.batch_sequences, settings.seed)
        else:
            self.sampler = SeriesWindows(data, settings.sequence, settings.batch, settings.seed)
        if TASKS[data.task].labelled:
            self.look_tokens = int(data.lengths(choose(data, "valid", settings.eval_tokens)).sum())
        else:
            seen, _ = places(data, "valid", settings.sequence, settings.eval_tokens)
            self.look_tokens = len(seen) * settings.sequence

    def backward(self, model: SequenceModel, step: int, autocast: Autocast) -> tuple[float, int]:
        """Micro-batches differ by one row at most; each counts by its rows."""
        batch = self.sampler.batch(step - 1)
        rows = len(batch.inputs)
        parts = min(self.settings.accumulate, rows)
        total = 0.0
        for part in range(parts):
            low, high = part * rows // parts, (part + 1) * rows // parts
            with autocast():
                loss = objective(model, *batch.rows(low, high).to(model.device))
            share = (high - low) / rows
            torch.autograd.backward(loss * share)
            total += loss.item() * share
        return total, batch.steps

    def look(self, model: SequenceModel) -> Look:
        """The metrics of the task, and its loss."""
        settings = self.settings
        rows = settings.batch_sequences if TASKS[self.data.task].labelled else settings.batch
        found = score(
            model, self.data, "valid", sequence=settings.sequence, batch=rows, limit=settings.eval_tokens
        )
        return Look(found.loss, primary(self.data.task, found.metrics), found.metrics)

    def meta(self) -> dict[str, object]:
        """What the numbers mean, so that a model can read new inputs and name its answers."""
        return {"meaning": meaning_to_dict(self.data.meaning), **_named(self.data.tokenizer)}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The byte-pair encoding of texts."""
        return _spelling(self.data.tokenizer)


def _named(tokenizer: Tokenizer) -> dict[str, object]:
    """What the tokens are, where they are not bytes."""
    return {} if tokenizer.name == "bytes" else {"tokenizer": tokenizer.name}


def _spelling(tokenizer: Tokenizer) -> dict[str, dict[str, Tensor]]:
    """A byte-pair encoding, as the bytes of its JSON."""
    if not tokenizer.json:
        return {}
    return {"tokenizer": {"json": torch.frombuffer(bytearray(tokenizer.json.encode()), dtype=torch.uint8)}}
