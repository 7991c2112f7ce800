"""A fast, fixed look at the validation part while a model trains."""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from quatrain.errors import DataError
from quatrain.model.device import to_device
from quatrain.model.lm import LanguageModel


class Readable(Protocol):
    """The part of a numpy array that reading windows needs."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: slice, /) -> "np.ndarray[tuple[int, ...], np.dtype[np.integer]]": ...


class Validation:
    """Mean nats per token over windows spread evenly over the validation part.

    Which windows depends on the tokens, ``sequence`` and ``budget`` alone, so every model and every step is
    scored on the same ones. Each window starts from an empty state and is scored in full, in float32:
    ``nats`` is an upper bound of what `quatrain.infer.evaluate` finds with carried state. Raises DataError
    for fewer than two tokens. Cost: one forward pass over at most ``budget`` tokens.
    """

    def __init__(self, tokens: Readable, sequence: int, budget: int, rows: int) -> None:
        if len(tokens) < 2:
            raise DataError(f"validation part: has {len(tokens)} tokens; needs at least 2 to predict one")
        self.window = min(sequence, len(tokens) - 1)
        count = max(1, min(budget // self.window, (len(tokens) - 1) // self.window))
        last = len(tokens) - 1 - self.window
        starts = [last * index // max(1, count - 1) for index in range(count)]
        self._windows = np.stack([np.asarray(tokens[at : at + self.window + 1]) for at in starts])
        self._rows = rows

    @property
    def tokens(self) -> int:
        """Tokens that one look scores."""
        return len(self._windows) * self.window

    def nats(self, model: LanguageModel) -> float:
        """Mean nats per token. The model is left in the mode it came in."""
        training = model.training
        model.eval()
        total = 0.0
        with torch.no_grad():
            for at in range(0, len(self._windows), self._rows):
                inputs, targets = self._batch(at)
                inputs, targets = (to_device(each, model.device) for each in (inputs, targets))
                loss, _ = model.loss(inputs, targets, keep_state=False)
                total += loss.item() * len(inputs)
        model.train(training)
        return total / len(self._windows)

    def _batch(self, at: int) -> tuple[Tensor, Tensor]:
        block = torch.from_numpy(self._windows[at : at + self._rows].astype(np.int64))
        return block[:, :-1], block[:, 1:]
