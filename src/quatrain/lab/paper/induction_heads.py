"""Induction heads: Gu and Dao, Mamba, arXiv:2312.00752, section 4.1.2."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from quatrain.config.check import check
from quatrain.lab.paper._generator import Array, Endless, last_only


@dataclass(frozen=True, kw_only=True)
class InductionHeads(Endless):
    """Say what followed the special token, when it comes a second time.

    With ``symbols`` = 5 (4 is the special token)::

        input   2 0 4 1 3 3 0 4
        target  . . . . . . . 1

    The first special token lies at a random place, the second at the end. Chance: 1 / (symbols - 1).
    """

    symbols: Annotated[int, "different tokens, the special one included"] = 16
    rule = "must be at least 3"

    def __post_init__(self) -> None:
        check(self.symbols >= 3, "symbols", self.symbols, "must be at least 3")

    @property
    def vocab(self) -> int:
        return self.symbols

    def fits(self, length: int) -> bool:
        return length >= 3

    def draw(self, random: np.random.Generator, batch: int, length: int) -> tuple[Array, Array]:
        inputs = random.integers(0, self.symbols - 1, (batch, length))
        place = random.integers(0, length - 2, batch)
        rows = np.arange(batch)
        inputs[rows, place] = self.symbols - 1
        inputs[:, -1] = self.symbols - 1
        return inputs, last_only(inputs[rows, place + 1], length)
