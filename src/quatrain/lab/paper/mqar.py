"""Multi-query associative recall: Arora et al., Zoology, arXiv:2312.04927, section 4 and appendix E."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from quatrain.config.check import check
from quatrain.lab.paper._generator import Array, Endless, blank, subsets


@dataclass(frozen=True, kw_only=True)
class MQAR(Endless):
    """Key-value pairs, then the keys again in another order: say each one's value.

    With ``pairs`` = 2 and ``symbols`` = 8 (keys 1 to 3, values 4 to 7, 0 between the queries)::

        input   3 6 1 4 0 0 1 0 3 0
        target  . . . . . . 4 . 6 .

    Keys of a sequence differ, and so do its values. A query stands at every second step at most; its
    distance from the end of the pairs follows the paper's power law, p(i) ~ i^(power - 1): near ones are
    frequent, as in language. With ``noise`` the steps between are random tokens in the place of 0. Chance:
    2 / symbols.
    """

    pairs: Annotated[int, "key-value pairs"] = 8
    symbols: Annotated[int, "different tokens; half of them are values"] = 8192
    power: Annotated[float, "of the law of distances; small: near"] = 0.01
    noise: Annotated[bool, "random tokens between the queries in the place of 0"] = False
    rule = "must be even and at least {self.least}, four times pairs = {self.pairs}"

    def __post_init__(self) -> None:
        check(self.pairs >= 1, "pairs", self.pairs, "must be at least 1")
        rule = f"must be even and at least 2 x pairs + 2 = {2 * self.pairs + 2}"
        check(self.symbols % 2 == 0 and self.symbols >= 2 * self.pairs + 2, "symbols", self.symbols, rule)
        check(self.power > 0, "power", self.power, "must be positive")

    @property
    def least(self) -> int:
        """The shortest sequence that has room for every query."""
        return 4 * self.pairs

    @property
    def vocab(self) -> int:
        return self.symbols

    def fits(self, length: int) -> bool:
        return length >= self.least and length % 2 == 0

    def draw(self, random: np.random.Generator, batch: int, length: int) -> tuple[Array, Array]:
        half = self.symbols // 2
        keys = 1 + random.permuted(subsets(random, batch, self.pairs, half - 1), axis=1)
        values = half + random.permuted(subsets(random, batch, self.pairs, half), axis=1)
        room = (length - 2 * self.pairs) // 2
        law = np.arange(1.0, room + 1) ** (self.power - 1)
        places = 2 * self.pairs + 2 * _chosen(random, law, batch, self.pairs)
        inputs, targets = blank(batch, length)
        if self.noise:
            inputs[:] = random.integers(0, self.symbols, inputs.shape)
        inputs[:, 0 : 2 * self.pairs : 2] = keys
        inputs[:, 1 : 2 * self.pairs : 2] = values
        np.put_along_axis(inputs, places, keys, 1)
        np.put_along_axis(targets, places, values, 1)
        return inputs, targets


def _chosen(random: np.random.Generator, weights: Array, batch: int, count: int) -> Array:
    """``(batch, count)`` indices without repetition, one after the other in proportion to ``weights``.

    Of independent exponential waiting times with these rates the first ones are such a sample.
    """
    waits = random.standard_exponential((batch, len(weights))) / weights
    return np.argsort(waits, 1)[:, :count]
