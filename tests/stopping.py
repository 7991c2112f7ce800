"""Comparisons that are ended at random moments and called again, for the tests of all their parts."""

import random
from collections.abc import Callable
from typing import Any


class Killed(BaseException):
    """Ends a comparison at once, as a signal would."""


def stopped_often(run: Callable[[Callable[[Any], None]], object], least: int, most: int) -> int:
    """Call ``run(events)`` until it ends, killed after ``least .. most`` events each time; how many kills."""
    stops = 0
    while True:
        left = random.Random(stops).randrange(least, most)

        def count(event: Any) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed

        try:
            run(count)
            return stops
        except Killed:
            stops += 1
