"""Modular arithmetic without brackets: Deletang et al., arXiv:2207.02098 ("Modular Arithmetic (Simple)")."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from quatrain.config.check import check
from quatrain.lab.paper._generator import Array, Endless, last_only


@dataclass(frozen=True, kw_only=True)
class ModularArithmetic(Endless):
    """The value of numbers joined by +, - and x, modulo ``modulus``; products go before sums.

    With ``modulus`` = 5 (0 to 4 are numbers, 5 is +, 6 is -, 7 is x), 3 + 4 x 2 = 11 = 1::

        input   3 5 4 7 2
        target  . . . . 1

    A regular language: the automaton holds the sum and the product so far. Chance: about 1 / modulus.
    """

    modulus: Annotated[int, "numbers are 0 to modulus - 1"] = 5
    rule = "must be odd: numbers with a sign between them"

    def __post_init__(self) -> None:
        check(self.modulus >= 2, "modulus", self.modulus, "must be at least 2")

    @property
    def vocab(self) -> int:
        return self.modulus + 3

    @property
    def outputs(self) -> int:
        return self.modulus

    def fits(self, length: int) -> bool:
        return length >= 1 and length % 2 == 1

    def draw(self, random: np.random.Generator, batch: int, length: int) -> tuple[Array, Array]:
        inputs = random.integers(0, self.modulus, (batch, length))
        inputs[:, 1::2] = self.modulus + random.integers(0, 3, (batch, length // 2))
        total, product = np.zeros(batch, np.int64), inputs[:, 0].copy()
        for at in range(2, length, 2):
            sign, number = inputs[:, at - 1] - self.modulus, inputs[:, at]
            times = sign == 2
            total = np.where(times, total, total + product) % self.modulus
            product = np.where(times, product * number, np.where(sign == 1, -number, number)) % self.modulus
        return inputs, last_only((total + product) % self.modulus, length)
