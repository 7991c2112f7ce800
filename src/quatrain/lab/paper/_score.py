"""Loss and accuracy of a model on a task, read in chunks with the state carried on, in flat memory."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import nan
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from quatrain.lab.paper._generator import Batch, Generator, Split
from quatrain.model.device import to_device
from quatrain.model.loss import chunked_cross_entropy
from quatrain.model.mode import evaluating
from quatrain.model.sequence import SequenceModel

CHUNK = 2**16  # steps of all rows together that a forward pass reads at a time
_LOGITS = 2**22  # outputs that exist at a time
_ROWS, _LONG_ROWS = 64, 16  # sequences side by side, at most; of those that are read in pieces


@dataclass
class Score:
    """Sums over what was asked so far; the numbers are properties.

    ``loss`` is the mean over all targets, cross-entropy in nats or squared error; ``token_accuracy`` and
    ``sequence_accuracy`` are shares of the counted targets and of the sequences without a wrong one among
    them (NaN in a regression).
    """

    regression: bool
    lost: float = 0.0
    asked: int = 0
    right: int = 0
    counted: int = 0
    whole: int = 0
    sequences: int = 0

    @property
    def loss(self) -> float:
        """Mean over all targets."""
        return self.lost / self.asked if self.asked else nan

    @property
    def token_accuracy(self) -> float:
        """Share of the counted targets that are right."""
        return self.right / self.counted if self.counted and not self.regression else nan

    @property
    def sequence_accuracy(self) -> float:
        """Share of the sequences without a wrong counted target."""
        return self.whole / self.sequences if self.sequences and not self.regression else nan

    @property
    def merit(self) -> float:
        """What decides which of two models is better, less is better: wrong tokens, or the squared error."""
        return self.loss if self.regression else 1 - self.token_accuracy

    def as_row(self) -> dict[str, Any]:
        """What the records keep."""
        if self.regression:
            return {"loss": self.loss, "sequences": self.sequences}
        return {
            "loss": self.loss,
            "token_accuracy": self.token_accuracy,
            "sequence_accuracy": self.sequence_accuracy,
            "sequences": self.sequences,
        }


def score(
    model: SequenceModel,
    generator: Generator,
    split: Split,
    *,
    seed: int,
    length: int,
    sequences: int,
    chunk: int = CHUNK,
) -> Score:
    """Score ``sequences`` sequences of ``length`` steps.

    A sequence longer than ``chunk`` steps is read piece by piece from a carried state: the memory of a
    recurrent model does not grow with the length, that of attention does. Cost: one forward pass.
    """
    total = Score(generator.regression)
    limit = generator.pieces(split, length)
    left = min(sequences, limit) if limit else sequences
    rows = min(_ROWS, chunk // length or (_LONG_ROWS if length <= _LONG_ROWS * chunk else 4), left)
    step = 0
    with torch.no_grad(), evaluating(model):
        while left:
            now = min(rows, left)
            add(total, model, generator, generator.batch(seed, step, split, now, length), chunk)
            left, step = left - now, step + 1
    return total


def add(total: Score, model: SequenceModel, generator: Generator, batch: Batch, chunk: int = CHUNK) -> None:
    """Read one batch and add what it gives to ``total``."""
    rows, length = batch.targets.shape
    first = length - generator.counted(length)  # steps before it count in the loss alone
    right = torch.ones(rows, dtype=torch.bool)
    for at, x in _pieces(model, batch.inputs, max(1, chunk // rows)):
        targets = batch.targets[:, at : at + x.shape[1]]
        asked = Batch(batch.inputs, targets).asked()
        if not bool(asked.any()):
            continue
        for where in torch.split(asked.nonzero(), max(1, _LOGITS // generator.outputs)):
            row, step = where.unbind(1)
            output = model.logits(x[to_device(row, x.device), to_device(step, x.device)]).float().cpu()
            wanted = targets[row, step]
            total.asked += len(wanted)
            total.lost += float(_losses(output, wanted).double().sum())
            if total.regression:
                continue
            counts = step + at >= first
            fine = output.argmax(1) == wanted
            total.right += int((fine & counts).sum())
            total.counted += int(counts.sum())
            right[row[counts & ~fine]] = False
    total.whole += int(right.sum())
    total.sequences += rows


def _pieces(model: SequenceModel, inputs: Tensor, steps: int) -> Iterable[tuple[int, Tensor]]:
    """Where each piece begins and what the head sees of it, ``(B, S, D)``."""
    length = inputs.shape[1]
    if length <= steps:
        yield 0, model.hidden(to_device(inputs, model.device), keep_state=False)[0]
        return
    state = None
    for at in range(0, length, steps):
        piece = to_device(inputs[:, at : at + steps], model.device)
        x, state = model.hidden(piece, state, keep_state=True)
        yield at, x


def loss(model: SequenceModel, batch: Batch) -> Tensor:
    """Mean loss of a batch, for training."""
    tensors = tuple(to_device(tensor, model.device) for tensor in asked_only(batch))
    return asked_loss(model, tensors)[0]


def asked_only(batch: Batch) -> tuple[Tensor, ...]:
    """Inputs, the targets that stand, ``(n,)``, and, unless that is all, their places in ``(B T)``.

    Where more than half stand they are all given, with what is not asked among them: their number, which may
    differ from batch to batch, would be a shape, and each shape a CUDA graph.
    """
    flat = batch.targets.flatten()
    where = batch.asked().flatten().nonzero()[:, 0]
    if len(where) == len(flat) or (2 * len(where) > len(flat) and not flat.is_floating_point()):
        return batch.inputs, flat
    return batch.inputs, flat[where], where


def asked_loss(
    model: SequenceModel, tensors: tuple[Tensor, ...], state: Any = None, *, keep_state: bool = False
) -> tuple[Tensor, Any]:
    """Mean loss of what `asked_only` gave, on the model's device, and the state after it: the head is asked
    where a target stands."""
    inputs, targets, *where = tensors
    x, after = model.hidden(inputs, state, keep_state=keep_state)
    x = x.flatten(0, 1)
    if where:
        x = x.index_select(0, where[0])
    if targets.is_floating_point():
        return _losses(model.logits(x), targets).mean(), after
    bias = None if model.head is None else model.head.bias
    return chunked_cross_entropy(x, model.head_weight, targets, bias), after


def _losses(output: Tensor, targets: Tensor) -> Tensor:
    """``(n, K)`` and ``(n,)`` to a loss each."""
    output = output.to(torch.promote_types(output.dtype, torch.float32))
    if targets.is_floating_point():
        return (output[:, 0] - targets).square()
    return F.cross_entropy(output, targets, reduction="none")
