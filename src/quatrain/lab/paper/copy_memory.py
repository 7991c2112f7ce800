"""Copy memory: Hochreiter and Schmidhuber 1997; as in Bai et al., arXiv:1803.01271, section 5.1."""

from dataclasses import dataclass
from math import log
from typing import Annotated

import numpy as np

from quatrain.config.check import check
from quatrain.lab.paper._generator import Array, Endless


@dataclass(frozen=True, kw_only=True)
class CopyMemory(Endless):
    """Keep some symbols over a long pause and repeat them when asked.

    With ``data`` = 3 and ``symbols`` = 8 (0 is the pause, 1 to 8 are symbols, 9 asks)::

        input   5 2 7 0 0 0 9 9 9 9
        target  0 0 0 0 0 0 0 5 2 7

    Every step is scored in the loss, as published, so that a model which says 0 and then guesses has
    data ln(symbols) / length; accuracies count the last ``data`` steps. The papers' T is length - 2 data.
    """

    data: Annotated[int, "symbols to keep"] = 10
    symbols: Annotated[int, "different symbols"] = 8
    rule = "must be at least {self.least}, twice data = {self.data} and one that asks"

    def __post_init__(self) -> None:
        check(self.data >= 1, "data", self.data, "must be at least 1")
        check(self.symbols >= 2, "symbols", self.symbols, "must be at least 2")

    @property
    def least(self) -> int:
        """The shortest sequence: no pause."""
        return 2 * self.data + 1

    @property
    def vocab(self) -> int:
        return self.symbols + 2

    @property
    def outputs(self) -> int:
        return self.symbols + 1

    def guess(self, length: int) -> float:
        """Loss without any memory, in nats."""
        return self.data * log(self.symbols) / length

    def fits(self, length: int) -> bool:
        return length >= self.least

    def counted(self, length: int) -> int:
        return self.data

    def draw(self, random: np.random.Generator, batch: int, length: int) -> tuple[Array, Array]:
        data = random.integers(1, self.symbols + 1, (batch, self.data))
        inputs, targets = np.zeros((2, batch, length), np.int64)
        inputs[:, : self.data] = data
        inputs[:, -self.data - 1 :] = self.symbols + 1
        targets[:, -self.data :] = data
        return inputs, targets
