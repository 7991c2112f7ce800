"""Cells that share a GPU: one process advances several training runs in turn, each on its own stream.

Processes gain nothing there: a GPU gives each of them all of itself for a slice of time. Streams of one
process run at once, so the steps of models that are too small for the device overlap.
"""

from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from quatrain.lab.paper.cells import Job, Row, performing
from quatrain.lab.paper.pool import Events, Pool
from quatrain.lab.paper.recipe import Recipe
from quatrain.train import _machine
from quatrain.train._signals import Interrupted, StopSignals
from quatrain.train.company import Company, Steps


@dataclass
class _Cell:
    job: Job
    steps: Steps[Row]
    begun: bool = False


class Fleet(Pool):
    """Up to ``count`` cells in this process.

    A round advances every cell by one step: it reads what the step under way gave, looks and saves where it
    is time to, and queues the next one, whose batch is drawn while the device works. A test runs in one piece
    meanwhile the others' queued steps end. A cell that fails or diverges takes itself out alone; only an
    error that spoils the CUDA context (an illegal address) ends all. The first signal saves every run.

    ``train_seconds`` and ``step_seconds`` of a cell are wall-clock times beside the others'.
    """

    def __init__(self, recipe: Recipe, out: Path, device: torch.device, events: Events, count: int) -> None:
        self.recipe, self.out, self.device, self.events = recipe, out, device, events
        self._count = count
        self._cells: list[_Cell] = []
        self._stop = StopSignals()
        self._company = Company(self._stop, numerics=lambda threads, device: nullcontext())
        self._entered = ExitStack()

    @property
    def free(self) -> int:
        return self._count - len(self._cells)

    def submit(self, job: Job) -> None:
        steps = performing(
            self.recipe,
            job,
            self.out,
            self.device.type,
            lambda row: self.events(job, row),
            self._company,
        )
        self._cells.append(_Cell(job, steps))

    def wait(self) -> list[tuple[Job, Row]]:
        done: list[tuple[Job, Row]] = []
        while not done:
            for cell in list(self._cells):
                row = self._advance(cell)
                if row is not None:
                    done.append((cell.job, row))
            if self._stop.number and not self._cells and not done:
                raise Interrupted("stopped", self._stop.number)
        return done

    def _advance(self, cell: _Cell) -> Row | None:
        """One step of a cell; what came of it where it has ended."""
        try:
            if cell.begun or not self._stop.number:
                cell.begun = True
                next(cell.steps)
                return None
            row = None
        except StopIteration as end:
            row = end.value
        except Interrupted:  # it is saved; so will the others be
            row = None
        except Exception as error:  # a fault of ours: said like any other failure
            row = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        self._cells.remove(cell)
        return row

    def __enter__(self) -> Self:
        self._entered.enter_context(self._stop)
        self._entered.enter_context(_machine.numerics(1, self.device))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for cell in self._cells:
            cell.steps.close()
        self._cells.clear()
        self._entered.close()
