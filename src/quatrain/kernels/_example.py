"""Random float64 arguments of an op's cases."""

from collections.abc import Callable

import torch
from torch import Tensor

from quatrain.kernels._op import Arguments, Case


class Draw:
    """Draws the arguments of one case; absent optional ones come out as None.

    Attributes:
        sequences: number of states: B, or S where the case is packed.
    """

    def __init__(self, case: Case, rng: torch.Generator) -> None:
        self.case, self._rng = case, rng
        self._cuts = _cuts(case.dims["T"]) if "cu_seqlens" in case.optional else None
        self.sequences = case.dims["B"] if self._cuts is None else len(self._cuts) - 1

    def normal(self, *sizes: str | int) -> Tensor:
        """Standard normal values; a size is a number or a letter of the case."""
        shape = [self.case.dims[size] if isinstance(size, str) else size for size in sizes]
        return torch.randn(shape, generator=self._rng, dtype=torch.float64)

    def maybe(self, name: str, make: Callable[[], Tensor]) -> Tensor | None:
        """``make()`` if the case has the optional argument ``name``."""
        return make() if name in self.case.optional else None

    def batch_form(self) -> Arguments:
        """``lengths`` (a full row first, then an empty one) and ``cu_seqlens``."""
        return {
            "lengths": self.maybe("lengths", self.lengths),
            "cu_seqlens": None if self._cuts is None else torch.tensor(self._cuts),
        }

    def lengths(self, letter: str = "T") -> Tensor:
        """(B,) in [0, size of the letter]: full, empty, then random ones."""
        batch, time = self.case.dims["B"], self.case.dims[letter]
        lengths = torch.randint(0, time + 1, (batch,), generator=self._rng)
        lengths[0] = time
        lengths[1:2] = 0
        return lengths


def _cuts(total: int) -> list[int]:
    """Sequences of a third, none, one step, the rest, and none again."""
    third = total // 3
    return [0, third, third, min(third + 1, total), total, total]
