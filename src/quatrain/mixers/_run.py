"""Steps of one mixer with memory of their own: for generation, where nobody else holds the state."""

from abc import abstractmethod
from collections.abc import Callable
from math import inf
from typing import Generic, TypeVar

import torch
from torch import Tensor

from quatrain.kernels._core.tape import Tape

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

    def residual(self, x: Tensor, norm_weight: Tensor, eps: float) -> Tensor | None:
        """The step of a residual block, x + mixer(rms_norm(x)), where one op makes it; None: no step."""
        return None

    def state(self) -> S:
        """The state reached, as a value: later steps do not change it."""
        return self._state


class RecordedRun(Run[S]):
    """A run on the CPU whose memory stays where it is, so that a step is a row of recorded calls."""

    def __init__(self) -> None:
        self._tape: Tape | None = None
        self._left: float = 0

    @abstractmethod
    def record(self, tape: Tape, x: Tensor, y: Tensor, add: bool) -> None:
        """Record one step: ``y (B, D)`` becomes the mixer of ``x (B, D)``, added to y with ``add``."""

    def room(self) -> float:
        """Steps that a record is good for, counted from now."""
        return inf

    def advance(self, steps: int) -> None:
        """Take note of so many steps made; called before `grow` and `state`."""

    def grow(self) -> None:
        """Make room for at least one step more. Records made before are void."""

    def __call__(self, x: Tensor) -> Tensor:
        if self._tape is None or self._left == 0:
            self.grow()
            self._tape, self._left = Tape(), self.room()
            self._x, self._y = x.clone(), torch.empty_like(x)
            self.record(self._tape, self._x, self._y, add=False)
        self._x.copy_(x)
        self._tape.run()
        self._left -= 1
        self.advance(1)
        return self._y
