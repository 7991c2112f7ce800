"""What the training runs of one process share, so that several can be advanced in turn."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from quatrain.train import _machine
from quatrain.train._graph import Turn
from quatrain.train._signals import StopSignals

T = TypeVar("T")
Steps = Generator[None, None, T]  # advanced with next; returns a T at its end


@dataclass(frozen=True)
class Company:
    """Who watches for signals, who sets threads and kernels, and whose turn it is to draw on the device."""

    stop: StopSignals
    numerics: Callable[[int, torch.device], AbstractContextManager[None]] = _machine.numerics
    turn: Turn = field(default_factory=Turn)


def drive(steps: Steps[T]) -> T:
    """Go through to the end, and return what comes out."""
    try:
        while True:
            next(steps)
    except StopIteration as end:
        found: T = end.value
        return found
    finally:
        steps.close()
