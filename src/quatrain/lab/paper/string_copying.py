"""Copying a string: Jelassi et al., Repeat After Me, arXiv:2402.01032, section 3."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from quatrain.config.check import check
from quatrain.lab.paper._generator import IGNORE, Array, Endless


@dataclass(frozen=True, kw_only=True)
class StringCopying(Endless):
    """Write a string again, token by token, each after the true ones before it.

    With ``symbols`` = 4 (letters 0 to 3, 4 asks), the string 2 0 3::

        input   2 0 3 4 2 0
        target  . . . 2 0 3

    A state of fixed size holds only so many letters. ``length`` is twice the string's. Chance: 1 / symbols.
    """

    symbols: Annotated[int, "letters"] = 26
    rule = "must be even and at least 2"

    def __post_init__(self) -> None:
        check(self.symbols >= 2, "symbols", self.symbols, "must be at least 2")

    @property
    def vocab(self) -> int:
        return self.symbols + 1

    @property
    def outputs(self) -> int:
        return self.symbols

    def fits(self, length: int) -> bool:
        return length >= 2 and length % 2 == 0

    def draw(self, random: np.random.Generator, batch: int, length: int) -> tuple[Array, Array]:
        half = length // 2
        text = random.integers(0, self.symbols, (batch, half))
        inputs = np.concatenate((text, np.full((batch, 1), self.symbols), text[:, :-1]), 1)
        return inputs, np.concatenate((np.full((batch, half), IGNORE), text), 1)
