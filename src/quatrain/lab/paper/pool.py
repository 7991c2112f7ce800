"""Several processes that take jobs, one at a time each, and die with the process that gave them."""

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol, Self

from quatrain.lab.paper.cells import Job, perform
from quatrain.lab.paper.recipe import Recipe
from quatrain.train._signals import Interrupted

Row = dict[str, Any]
Events = Callable[[Job, Row], None]
_GRACE = 30.0  # seconds that a process gets to save when it is asked to stop


class Pool(Protocol):
    """Where jobs are done."""

    @property
    def free(self) -> int:
        """How many jobs can be taken now."""

    def submit(self, job: Job) -> None:
        """Take a job."""

    def wait(self) -> list[tuple[Job, Row]]:
        """Jobs that have ended, with their outcomes; waits for one. May be empty after a row of progress."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Here(Pool):
    """A pool of one, in this process."""

    def __init__(self, recipe: Recipe, out: Path, device: str, events: Events) -> None:
        self.recipe, self.out, self.device, self.events = recipe, out, device, events
        self._jobs: list[Job] = []

    @property
    def free(self) -> int:
        return 1 - len(self._jobs)

    def submit(self, job: Job) -> None:
        self._jobs.append(job)

    def wait(self) -> list[tuple[Job, Row]]:
        job = self._jobs.pop()
        return [(job, perform(self.recipe, job, self.out, self.device, lambda row: self.events(job, row)))]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._jobs.clear()


class Processes(Pool):
    """``count`` processes, each with one thread on a CPU.

    A process that ends by itself (the system took it for want of memory) fails its job and is replaced. Each
    holds the end of a pipe whose other end is this process's alone: when that one is killed the pipe closes
    and they end at once, so that nothing goes on in a directory that nobody watches.
    """

    def __init__(self, recipe: Recipe, out: Path, device: str, events: Events, count: int) -> None:
        self.recipe, self.out, self.device, self.events = recipe, out, device, events
        self._workers: list[_Worker] = []
        self._count = count
        self._before: Any = None

    @property
    def free(self) -> int:
        return self._count - sum(worker.job is not None for worker in self._workers)

    def submit(self, job: Job) -> None:
        idle = next((worker for worker in self._workers if worker.job is None), None)
        if idle is None:
            idle = _Worker(self.recipe, self.out, self.device)
            self._workers.append(idle)
        idle.give(job)

    def wait(self) -> list[tuple[Job, Row]]:
        done: list[tuple[Job, Row]] = []
        ready = wait([worker.news for worker in self._workers if worker.job is not None])
        for worker in [worker for worker in self._workers if worker.news in ready]:
            job = worker.job
            assert job is not None
            try:
                kind, row = worker.news.recv()
            except (EOFError, OSError):
                self._workers.remove(worker)
                done.append((job, {"status": "failed", "reason": worker.how_it_ended()}))
                continue
            if kind == "event":
                self.events(job, row)
            elif kind == "interrupted":
                raise Interrupted(row["text"], row["signal"])
            else:
                worker.job = None
                done.append((job, row))
        return done

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, _stopped)  # SIGINT raises by itself
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.stop()
        for worker in self._workers:
            worker.join()
        self._workers.clear()
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)


def _stopped(number: int, frame: FrameType | None) -> None:
    raise Interrupted("stopped", number)


class _Worker:
    """One process as its parent sees it."""

    def __init__(self, recipe: Recipe, out: Path, device: str) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads in mid-step
        theirs, self.orders = context.Pipe(duplex=False)
        self.news, back = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, args=(theirs, back, recipe, out, device), daemon=True)
        self.process.start()
        theirs.close()
        back.close()
        self.job: Job | None = None

    def give(self, job: Job) -> None:
        self.job = job
        self.orders.send(job)

    def how_it_ended(self) -> str:
        self.process.join(_GRACE)
        code = self.process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            hint = ", as when memory runs out" if -code == signal.SIGKILL else ""
            return f"its process was ended by {name}{hint}"
        return f"its process ended with code {code}"

    def stop(self) -> None:
        """Ask it to save what it does and end."""
        if self.job is not None and self.process.is_alive() and self.process.pid:
            os.kill(self.process.pid, signal.SIGTERM)
        else:
            self.orders.close()

    def join(self) -> None:
        self.process.join(_GRACE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.news.close()
        self.orders.close()


def _work(orders: Connection, news: Connection, recipe: Recipe, out: Path, device: str) -> None:
    """What a process does: jobs until the pipe of orders closes."""
    jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()

    def listen() -> None:
        while True:
            try:
                jobs.put(orders.recv())
            except (EOFError, OSError):
                os._exit(0)  # the parent is gone, or wants nothing more

    threading.Thread(target=listen, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's goes to the parent too, which then asks
    while True:
        job = jobs.get()
        try:
            row = perform(recipe, job, out, device, lambda row: news.send(("event", row)), patient=True)
        except Interrupted as error:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one for all processes, and one from the parent
            news.send(("interrupted", {"text": str(error), "signal": error.signal}))
            return
        except Exception as error:  # a fault of ours: said by the parent, like any other failure
            row = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        news.send(("done", row))
