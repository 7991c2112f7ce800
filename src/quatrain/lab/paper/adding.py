"""The adding problem: Hochreiter and Schmidhuber 1997; as in Bai et al., arXiv:1803.01271."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from quatrain.lab.paper._generator import Array, Endless, last_only


@dataclass(frozen=True, kw_only=True)
class Adding(Endless):
    """Add the two marked numbers, one in each half of the sequence::

        input   0.3 0.9 0.5 0.1 0.7 0.2
                0   1   0   0   1   0
        target  .   .   .   .   .   1.6

    Numbers are uniform in [0, 1]. Saying 1 always has a squared error of 1/6, the variance of the sum.
    """

    channels: ClassVar[int] = 2
    regression: ClassVar[bool] = True
    rule = "must be at least 2"

    @property
    def vocab(self) -> int:
        return 1

    @property
    def outputs(self) -> int:
        return 1

    def fits(self, length: int) -> bool:
        return length >= 2

    def draw(self, random: np.random.Generator, batch: int, length: int) -> tuple[Array, Array]:
        inputs = np.zeros((batch, length, 2), np.float32)
        inputs[:, :, 0] = random.random((batch, length), np.float32)
        half, rows = length // 2, np.arange(batch)
        first, second = random.integers(0, half, batch), random.integers(half, length, batch)
        inputs[rows, first, 1] = inputs[rows, second, 1] = 1
        return inputs, last_only(inputs[rows, first, 0] + inputs[rows, second, 0], length)
