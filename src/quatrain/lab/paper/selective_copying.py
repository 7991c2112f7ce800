"""Selective copying: Gu and Dao, Mamba, arXiv:2312.00752, section 4.1.1."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from quatrain.config.check import check
from quatrain.lab.paper._generator import Array, Endless, blank, subsets


@dataclass(frozen=True, kw_only=True)
class SelectiveCopying(Endless):
    """Copy the data tokens that lie at random places among noise, in their order.

    With ``data`` = 3 and ``vocab`` = 6 (0 noise, 1 to 4 data, 5 asks for an answer)::

        input   0 3 0 0 1 0 2 0 5 5 5
        target  . . . . . . . . 3 1 2

    The noise is one token, so where a data token stands depends on the sequence and a convolution, whose
    delays are fixed, cannot do it; a step that depends on its input can pass over noise. ``length`` counts
    the steps that ask. Chance: 1 / (vocab - 2).
    """

    data: Annotated[int, "tokens to copy"] = 16
    symbols: Annotated[int, "different tokens, noise and the one that asks included"] = 16
    rule = "must be at least {self.least}, twice data = {self.data}"

    def __post_init__(self) -> None:
        check(self.data >= 1, "data", self.data, "must be at least 1")
        check(self.symbols >= 4, "symbols", self.symbols, "must be at least 4")

    @property
    def least(self) -> int:
        """The shortest sequence: no noise at all."""
        return 2 * self.data

    @property
    def vocab(self) -> int:
        return self.symbols

    def fits(self, length: int) -> bool:
        return length >= self.least

    def draw(self, random: np.random.Generator, batch: int, length: int) -> tuple[Array, Array]:
        room = length - self.data
        data = random.integers(1, self.symbols - 1, (batch, self.data))
        places = np.sort(subsets(random, batch, self.data, room), 1)
        inputs, targets = blank(batch, length)
        np.put_along_axis(inputs, places, data, 1)
        inputs[:, room:] = self.symbols - 1
        targets[:, room:] = data
        return inputs, targets
