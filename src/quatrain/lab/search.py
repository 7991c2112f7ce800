"""The training half of a comparison: every learning rate up to the rung, the best one to the end."""

import shutil
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

from quatrain.errors import DivergedError, OutOfMemoryError
from quatrain.lab import calibrate, curves
from quatrain.lab._study import Study
from quatrain.lab.clock import Clock
from quatrain.lab.config import LEAST_STEPS, CompareConfig
from quatrain.lab.journal import Journal
from quatrain.lab.plan import Plan
from quatrain.model.config import ModelConfig
from quatrain.train import run_dir
from quatrain.train._signals import Interrupted
from quatrain.train.loop import Result, train

Row = dict[str, Any]
Rows = list[tuple[str, Row]]
Events = Callable[[Row], None]
RUNS = "runs"
PACE = "pace"  # name of the stage that counts the steps of equal training time


def rate(lr: float) -> str:
    """A learning rate in names of stages and folders: six digits where they say it all, else every digit."""
    short = f"{lr:g}"
    return short if float(short) == lr else repr(lr)


def rung(mixer: str, lr: float) -> str:
    """Name of the stage that tries one learning rate."""
    return f"rung/{mixer}/{rate(lr)}"


def full(mixer: str, seed: int) -> str:
    """Name of the stage that trains one seed to its end."""
    return f"full/{mixer}/{seed}"


def anew(mixer: str, seed: int) -> str:
    """Name of the stage that trains one seed anew, for the same time as all others."""
    return f"time/{mixer}/{seed}"


def pieces(config: CompareConfig, plan: Plan) -> dict[str, tuple[str, int, int]]:
    """The training stages in order: mixer, and the steps first + 1 .. last that each is planned to take."""
    grid = config.learning_rates
    found: dict[str, tuple[str, int, int]] = {}
    for mixer in config.mixers:
        mine = plan.part(config.parts[0], mixer)
        if len(grid) > 1:
            found |= {rung(mixer, lr): (mixer, 0, mine.rung_steps) for lr in grid}
        for seed in range(config.seeds):
            found[full(mixer, seed)] = (
                mixer,
                mine.rung_steps if seed == 0 and len(grid) > 1 else 0,
                mine.steps,
            )
    if len(config.parts) > 1 and plan.time_steps:
        for mixer in config.mixers:
            for seed in range(config.seeds):
                found[anew(mixer, seed)] = (mixer, 0, plan.time_steps[mixer])
    return found


class Search:
    """Trains the models of a comparison; its stages give rows and an outcome for the journal.

    The outcome of a stage has ``status`` ("ok" or "diverged"), ``lr``, and ``reason`` or ``run``, ``valid``,
    ``merit`` (by which rates are compared, less is better), ``best_step``, ``tokens``, ``seconds`` of
    training steps, and ``overhead``: seconds of the rest.
    """

    def __init__(
        self,
        config: CompareConfig,
        task: Study,
        plan: Plan,
        models: dict[str, ModelConfig],
        out: Path,
        journal: Journal,
        clock: Clock,
        tell: Events,
    ) -> None:
        self.config, self.task, self.plan, self.models = config, task, plan, models
        self.out, self.journal, self.clock, self.tell = out, journal, clock, tell

    def attempt(self, mixer: str, lr: float) -> tuple[Rows, Row]:
        """Train one learning rate up to the rung, with the first seed."""
        return self._train(mixer, lr, 0, 0, self._part(mixer).rung_steps, rung(mixer, lr))

    def finish(self, mixer: str, seed: int) -> tuple[Rows, Row]:
        """Train to the end: the first seed at the best rate that survives, the others at that one."""
        if seed == 0:
            rates = self._ranked(mixer)
            first = self._part(mixer).rung_steps if len(self.config.learning_rates) > 1 else 0
        else:
            chosen = self.journal.outcome(full(mixer, 0))
            rates, first = ([chosen["lr"]] if chosen["status"] == "ok" else []), 0
        outcome: Row = {"status": "diverged", "lr": None, "reason": "every learning rate diverged"}
        rows: Rows = []
        for lr in rates:
            more, outcome = self._train(mixer, lr, seed, first, self._part(mixer).steps, full(mixer, seed))
            rows += more
            if outcome["status"] == "ok":
                break
        return rows, outcome

    def pace(self) -> tuple[Rows, Row]:
        """Steps of each mixer in the time that all get alike, by the median step of its run at equal tokens:
        that saw hundreds of steps, the calibration nine. The calibration stands where every run diverged.
        """
        seconds, steps = self.plan.time_seconds, dict(self.plan.time_steps)
        for mixer in self.config.mixers:
            each = self.journal.outcome(full(mixer, 0)).get("step_seconds")
            if each:
                steps[mixer] = max(LEAST_STEPS, int(seconds / each))
        return [("pace", {"seconds": seconds, "steps": steps})], {"steps": steps}

    def again(self, mixer: str, seed: int) -> tuple[Rows, Row]:
        """Train for the time that all get alike, at the learning rate that the first part chose."""
        chosen = self.journal.outcome(full(mixer, 0))
        if chosen["status"] != "ok":
            reason = "no learning rate survived at equal tokens"
            return [], {"status": "diverged", "lr": None, "reason": reason}
        last = self.journal.outcome(PACE)["steps"][mixer]
        return self._train(mixer, chosen["lr"], seed, 0, last, anew(mixer, seed), part="time")

    def _part(self, mixer: str) -> Plan:
        """The plan of a mixer in the part that chooses the learning rate."""
        return self.plan.part(self.config.parts[0], mixer)

    def _ranked(self, mixer: str) -> list[float]:
        """Learning rates that reached the rung, the best on validation first."""
        grid = self.config.learning_rates
        if len(grid) == 1:
            return list(grid)
        tried = {lr: self.journal.outcome(rung(mixer, lr)) for lr in grid}
        fine = [lr for lr in grid if tried[lr]["status"] == "ok"]
        return sorted(fine, key=lambda lr: (tried[lr]["merit"], tried[lr]["valid"]))

    def _train(
        self, mixer: str, lr: float, seed: int, first: int, last: int, stage: str, part: str = ""
    ) -> tuple[Rows, Row]:
        """Train steps ``first + 1 .. last``; the rows of that stretch, and how it ended."""
        same = {"mixer": mixer, "lr": lr, "seed": seed} | ({"budget": part} if part else {})
        path = self.path(mixer, lr, seed, part)
        plan = self.plan.timed(last) if part else self._part(mixer)
        config = self.task.run(self.models[mixer], lr, seed, plan)
        follow = _Follow(self, stage, same, first, last, plan.steps)
        began, failed = perf_counter(), ""
        result: Result | None = None
        try:
            result = train(config, path, follow, stop_at=last, data=self.task.data, threads=self.plan.threads)
            if not isfinite(result.progress.valid):
                failed = f"step {last}: the validation loss is {result.progress.valid:g}"
        except DivergedError as error:
            failed = str(error)
        except OutOfMemoryError as error:
            raise calibrate.too_little(error, config) from None
        except Interrupted as error:
            raise Interrupted(
                f"stopped; everything is saved in {self.out}; the same command goes on", error.signal
            ) from None
        overhead = max(0.0, perf_counter() - began - follow.seconds)
        rows = curves.rows(path / run_dir.RECORDS, same, first, last, plan.steps)
        if result is None or failed:
            rows.append(("diverged", {**same, "reason": failed}))
            self.tell({"kind": "diverged", **same, "reason": failed})
            return rows, {"status": "diverged", "reason": failed, "lr": lr, "overhead": overhead}
        progress = result.progress
        look = curves.last_look(path / run_dir.RECORDS, last)
        told = {"step": last, "steps": plan.steps, "loss": progress.valid}
        self.tell({"kind": "trained", **same, **told, "metrics": look.get("metrics", {})})
        return rows, {
            "status": "ok",
            "lr": lr,
            "run": str(path.relative_to(self.out)),
            "valid": progress.valid,
            "merit": self.task.merit(look),
            "best_step": progress.best_step,
            "tokens": progress.tokens,
            "steps": progress.step,
            "seconds": progress.seconds,
            "step_seconds": curves.step_seconds(path / run_dir.RECORDS),
            "overhead": overhead,
        }

    def path(self, mixer: str, lr: float, seed: int, part: str = "") -> Path:
        """Directory of a training run; ``part`` is named where it is not the one that chooses the rates."""
        name = f"{mixer.replace(' ', '-')}-lr{rate(lr)}-seed{seed}"
        return self.out / RUNS / (f"{name}-{part}" if part else name)

    def drop_losers(self, mixer: str) -> None:
        """Remove checkpoints of the rates that were not chosen: nothing needs them; their records stay."""
        chosen = self.journal.outcome(full(mixer, 0))["lr"]
        for lr in self.config.learning_rates:
            if lr != chosen:
                shutil.rmtree(self.path(mixer, lr, 0) / "checkpoints", ignore_errors=True)

    def seconds(self) -> float:
        """Seconds of training steps over all runs and sessions, as the runs' own records say."""
        return sum(curves.seconds(path) for path in sorted((self.out / RUNS).glob(f"*/{run_dir.RECORDS}")))


class _Follow:
    """Turns the rows of one training run into those of the comparison's display."""

    def __init__(self, search: Search, stage: str, same: Row, first: int, last: int, steps: int) -> None:
        self.search, self.stage, self.same = search, stage, same
        self.first, self.last, self.steps = first, last, steps
        self.seconds = 0.0  # of the steps of this session
        self._before = 0.0  # of all steps of the run up to the last one

    def __call__(self, row: Row) -> None:
        if row["kind"] == "resume":
            self._before = row["seconds"]
        elif row["kind"] == "step":
            self._step(row)
        elif row["kind"] == "eval":
            look = {"step": row["step"], "loss": curves.loss_of(row)}
            self.search.tell({"kind": "valid", **self.same, **look, "metrics": row.get("metrics", {})})

    def _step(self, row: Row) -> None:
        plan, clock = self.search.plan, self.search.clock
        took, self._before = row["seconds"] - self._before, row["seconds"]
        self.seconds += took
        clock.saw(plan.speed(self.same["mixer"]).step_seconds, took)
        self.search.tell(
            {
                "kind": "step",
                **self.same,
                "step": row["step"],
                "last": self.last,
                "steps": self.steps,
                "loss": row["loss"],
                "tokens_per_second": plan.batch_tokens / took if took > 0 else 0.0,
                "memory_bytes": row["memory_bytes"],
                "left": clock.left(self.stage, (row["step"] - self.first) / (self.last - self.first)),
            }
        )
