"""Parity: Deletang et al., Neural Networks and the Chomsky Hierarchy, arXiv:2207.02098."""

from dataclasses import dataclass

import numpy as np

from quatrain.lab.paper._generator import Array, Endless, last_only


@dataclass(frozen=True, kw_only=True)
class Parity(Endless):
    """Is the number of ones odd? ::

        input   1 0 0 1 1
        target  . . . . 1

    A regular language: two states of an automaton, whatever the length. Chance: 1/2.
    """

    rule = "must be at least 1"

    @property
    def vocab(self) -> int:
        return 2

    @property
    def outputs(self) -> int:
        return 2

    def fits(self, length: int) -> bool:
        return length >= 1

    def draw(self, random: np.random.Generator, batch: int, length: int) -> tuple[Array, Array]:
        inputs = random.integers(0, 2, (batch, length))
        return inputs, last_only(inputs.sum(1) % 2, length)
