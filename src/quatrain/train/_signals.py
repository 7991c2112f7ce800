"""A signal asks for a stop; the loop saves at the end of its step."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A run stopped by a signal, after it was saved. ``signal`` is its number; the message says how to go
    on."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number


class StopSignals:
    """While entered, the first SIGINT or SIGTERM is only noted in ``number``; a second one stops at once.

    ``patient``: a second one does nothing. So it is for a process that is asked to stop by the one that began
    it, which kills it where it takes too long: a signal to a whole group of processes reaches it as well.
    Outside the main thread, where Python allows no handlers, signals stay the caller's matter.
    """

    def __init__(self, *, patient: bool = False) -> None:
        self.number, self.patient = 0, patient
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number and not self.patient:
            raise Interrupted("stopped at once; the last checkpoint stands", number)
        self.number = number
