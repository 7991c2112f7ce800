"""Steps of one mixer with memory of their own: for generation, where nobody else holds the state."""

from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor

S = TypeVar("S", bound=tuple[Tensor, ...])


class Run(Generic[S]):
    """`Causal.step` again and again from one state on: ``run(x)`` maps (B, D) to (B, D).

    What enters comes from the model itself and the state from here, so neither is checked again. Nothing
    records gradients, and the mixer's parameters must not change while a run lasts.
    """

    def __init__(self, step: Callable[[Tensor, S], tuple[Tensor, S]], state: S) -> None:
        self._step, self._state = step, state

    def __call__(self, x: Tensor) -> Tensor:
        y, self._state = self._step(x, self._state)
        return y

    def state(self) -> S:
        """The state reached, as a value: later steps do not change it."""
        return self._state
