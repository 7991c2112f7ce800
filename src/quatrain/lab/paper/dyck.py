"""Brackets of bounded depth: Hewitt et al., RNNs can generate bounded hierarchical languages,
arXiv:2010.07515.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from quatrain.config.check import check
from quatrain.lab.paper._generator import IGNORE, Array, Endless


@dataclass(frozen=True, kw_only=True)
class Dyck(Endless):
    """Which bracket would close now? Dyck-(kinds, depth).

    With ``kinds`` = 2 (0 and 1 open, 2 and 3 close)::

        input   0 1 3 0 2 2        ( [ ] ( ) )
        target  0 1 0 0 0 .

    Where nothing is open nothing is asked. A bracket opens or closes with probability 1/2, except at depth 0,
    where one opens, and at the greatest depth, where one closes. The paper measures the same as the share of
    closing probability that the right kind gets. Chance: 1 / kinds.
    """

    kinds: Annotated[int, "kinds of brackets"] = 8
    depth: Annotated[int, "how many may be open"] = 5
    rule = "must be at least 1"

    def __post_init__(self) -> None:
        check(self.kinds >= 2, "kinds", self.kinds, "must be at least 2")
        check(self.depth >= 1, "depth", self.depth, "must be at least 1")

    @property
    def vocab(self) -> int:
        return 2 * self.kinds

    @property
    def outputs(self) -> int:
        return self.kinds

    def fits(self, length: int) -> bool:
        return length >= 1

    def draw(self, random: np.random.Generator, batch: int, length: int) -> tuple[Array, Array]:
        kinds = random.integers(0, self.kinds, (batch, length))
        wants = random.random((batch, length)) < 0.5
        stack = np.zeros((batch, self.depth + 1), np.int64)  # what is open, from place 1 on
        depth, rows = np.zeros(batch, np.int64), np.arange(batch)
        inputs, targets = np.empty((2, batch, length), np.int64)
        for at in range(length):
            opens = (depth == 0) | (wants[:, at] & (depth < self.depth))
            inputs[:, at] = np.where(opens, kinds[:, at], self.kinds + stack[rows, depth])
            depth = depth + np.where(opens, 1, -1)
            stack[rows[opens], depth[opens]] = kinds[opens, at]
            targets[:, at] = np.where(depth > 0, stack[rows, depth], IGNORE)
        return inputs, targets
