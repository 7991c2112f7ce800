"""All cells of a table, in any number of processes, in a directory where the same call goes on."""

import fcntl
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import torch

from quatrain.config.check import check
from quatrain.config.schema import digest, to_dict
from quatrain.config.toml import load_toml
from quatrain.errors import ConfigError
from quatrain.lab import machine
from quatrain.lab._study import summary
from quatrain.lab.journal import Journal
from quatrain.lab.paper import cells
from quatrain.lab.paper.cells import Job
from quatrain.lab.paper.fleet import Fleet
from quatrain.lab.paper.metric import best_rate
from quatrain.lab.paper.pool import Here, Pool, Processes
from quatrain.lab.paper.recipe import Recipe
from quatrain.model.device import choose, name_of
from quatrain.model.sequence import SequenceModel, build
from quatrain.train import run_dir
from quatrain.train._signals import Interrupted

Row = dict[str, Any]
Events = Callable[[Row], None]
RECORDS = "records.jsonl"
_PATIENCE = 10.0  # seconds that the processes of a killed call are given to notice


@dataclass(frozen=True)
class Outcome:
    """What `reproduce` returns: its directory, and the cells that failed in this call, by key."""

    out: Path
    failed: dict[str, str]
    again: bool  # whether everything was there before


def default_out(recipe: Recipe) -> Path:
    """``runs/paper-<task>[-reduced]-<digest>``: the same recipe finds its cells again."""
    return Path("runs") / f"paper-{recipe.task}{'-reduced' * bool(recipe.reduced)}-{digest(recipe)}"


def reproduce(
    recipe: Recipe,
    out: Path,
    events: Events,
    *,
    names: Sequence[str] = (),
    seeds: int = 0,
    processes: int = 1,
    device: str = "cpu",
    command: str = "",
) -> Outcome:
    """Train and test every cell that is missing in ``out`` of the models ``names`` with ``seeds`` seeds.

    A cell is one model, learning rate and seed. Every rate is trained to the end with the first seed; the
    best one on the validation part is taken for all seeds, whatever the test part says. What a cell found is
    written when it ends, a cell under way goes on from its last checkpoint, so a call killed at any moment
    and made again ends with the same numbers. A model that sees the future (`quatrain.lab.leak`) is not
    tested.

    Args:
        events: called with rows for a display: "plan", "job", "step", "done".
        names, seeds: which cells of the recipe; all of its models, each with its own number of seeds. Others
            may be added later in the same directory.
        processes: cells at a time, on a CPU in so many processes (with 1 in this one), on a GPU on as many
            streams of this process.

    Raises:
        ConfigError: an unknown model, a length that the task cannot make, another recipe or process in
            ``out``.
        DataError: the file of a task that reads one is missing.
        Interrupted: a signal; everything is saved.
        OSError: ``out`` cannot be written.
    """
    check(processes >= 1, "processes", processes, "must be at least 1")
    check(seeds >= 0, "seeds", seeds, "must be at least 1")
    wanted = recipe.chosen(tuple(names))
    cells.check(recipe)
    where = choose(device)
    with _claimed(out, recipe), Journal(out / RECORDS) as journal:
        if "plan" not in journal:
            run_dir.write_config(out, recipe)
            journal.finish("plan", list(_about(recipe, name_of(where), command)))
        run = _Run(recipe, out, journal, wanted, seeds, events)
        again = not any(run.ready())
        events({"kind": "plan", "out": str(out), "left": len(run.missing()), "again": again})
        if not again:
            count = min(processes, max(1, len(run.missing())))
            pool = _pool(recipe, out, where, run.told, count)
            try:
                with pool:
                    run.all(pool)
            except KeyboardInterrupt as error:
                number = getattr(error, "signal", signal.SIGINT)
                text = f"stopped; everything is saved in {out}; the same command goes on"
                raise Interrupted(text, number) from None
        return Outcome(out, run.failed, again)


def _pool(
    recipe: Recipe, out: Path, device: torch.device, events: Callable[[Job, Row], None], count: int
) -> Pool:
    """Where cells are done: on a GPU in this process, on a CPU in one for each."""
    if count == 1:
        return Here(recipe, out, device.type, events)
    if device.type == "cuda":
        return Fleet(recipe, out, device, events, count)
    return Processes(recipe, out, device.type, events, count)


@contextmanager
def _claimed(out: Path, recipe: Recipe) -> Iterator[None]:
    """Hold the directory, once the processes of a call that was just killed have noticed that it was."""
    _check_same(out, recipe)
    with run_dir.claimed(out, recipe):
        until = perf_counter() + _PATIENCE
        while busy := [lock for lock in out.glob(f"{cells.RUNS}/*/{run_dir.LOCK}") if _is_held(lock)]:
            if perf_counter() > until:
                raise ConfigError(f"out = '{out}': another process is training in {busy[0].parent}")
            sleep(0.05)
        yield


def _check_same(out: Path, recipe: Recipe) -> None:
    """Say in few words what a line with every differing key would hide: another task, or reduced settings."""
    there = load_toml(out / run_dir.CONFIG) if (out / run_dir.CONFIG).is_file() else {}
    what = f"out = '{out}': holds"
    if there and there.get("task") != recipe.task:
        raise ConfigError(f"{what} the task {there.get('task')!r}, not {recipe.task!r}; choose another")
    if there and bool(there.get("reduced")) != bool(recipe.reduced):
        kinds = ("settings as published", "reduced settings")
        raise ConfigError(f"{what} {kinds[not recipe.reduced]}, asked for are {kinds[bool(recipe.reduced)]}")


def _is_held(lock: Path) -> bool:
    with open(lock, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _about(recipe: Recipe, device: str, command: str) -> Iterator[tuple[str, Row]]:
    import numpy

    generator = cells.generator_of(recipe)
    here = machine.machine(1) | {"device": device}
    yield (
        "paper",
        {
            "task": recipe.task,
            "title": recipe.title,
            "source": recipe.source,
            "differs": recipe.differs,
            "reduced": recipe.reduced,
            "recipe": to_dict(recipe),
            "digest": digest(recipe),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": here,
            "versions": {**machine.versions(), "numpy": numpy.__version__},
            "commit": machine.commit(),
            "command": command,
        },
    )
    for name in recipe.models:
        config = cells.model_config(recipe, name, generator)
        with torch.device("meta"):
            shape = build(config)
        yield "model", {"mixer": name, **summary(shape, recipe.train.high), "params": _count(shape)}


def _count(model: SequenceModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


class _Run:
    """Which cells are missing, and what became of those that are done."""

    def __init__(
        self, recipe: Recipe, out: Path, journal: Journal, names: tuple[str, ...], seeds: int, events: Events
    ) -> None:
        self.recipe, self.out, self.journal = recipe, out, journal
        self.names, self.seeds, self.events = names, seeds, events
        self.failed: dict[str, str] = {}
        self._running: dict[str, float] = {}

    def all(self, pool: Pool) -> None:
        """Every job, until none is left that can be done."""
        while True:
            for job in self.ready():
                if not pool.free:
                    break
                self._running[job.key] = perf_counter()
                self.events({"kind": "job", "job": job, "left": len(self.missing())})
                pool.submit(job)
            if not self._running:
                return
            for job, outcome in pool.wait():
                self._finish(job, outcome)

    def told(self, job: Job, row: Row) -> None:
        """Progress of a training run."""
        if row["kind"] in ("step", "eval", "resume"):
            steps = self.recipe.models[job.name].steps or self.recipe.train.steps
            self.events({**row, "kind": row["kind"], "job": job, "steps": steps})

    def _finish(self, job: Job, outcome: Row) -> None:
        took = perf_counter() - self._running.pop(job.key)
        if outcome["status"] == "failed":  # not of the cell's making: the next call tries again
            self.failed[job.key] = outcome["reason"]
        else:
            kind = "cell" if job.kind == "train" else "tested"
            fields = {"mixer": job.name, "lr": job.lr, "seed": job.seed}
            fields |= {"length": job.length} if job.kind == "test" else {}
            self.journal.finish(job.key, [(kind, {**fields, **outcome})], outcome, took)
        self.events({"kind": "done", "job": job, **outcome})
        if job.kind == "train":
            self._drop_losers(job.name)

    # -- what there is to do

    def ready(self) -> list[Job]:
        """Jobs that can begin now: not done, not under way, not failed, and what they build on is there."""
        return [job for job in self.missing() if job.key not in self._running and job.key not in self.failed]

    def missing(self) -> list[Job]:
        """Jobs known so far that are not done."""
        return [job for name in self.names for job in self._jobs(name) if job.key not in self.journal]

    def _jobs(self, name: str) -> Iterator[Job]:
        rates = self.recipe.models[name].learning_rates
        yield from (Job("train", name, rate, 0) for rate in rates)
        chosen = self._chosen(name)
        if chosen is None:
            return
        trained = [Job("train", name, chosen, seed) for seed in range(self.recipe.runs(name, self.seeds))]
        yield from trained[1:]
        for job in trained:
            done = self.journal.outcome(job.key) if job.key in self.journal else None
            if done is not None and done["status"] == "ok":
                for length in cells.lengths(self.recipe, self.recipe.models[name]):
                    yield Job("test", name, chosen, job.seed, length, done["best_step"])

    def _chosen(self, name: str) -> float | None:
        """The learning rate that is best on validation; None while one of several is missing, or where none
        survived."""
        rates = self.recipe.models[name].learning_rates
        keys = {rate: Job("train", name, rate, 0).key for rate in rates}
        if any(key not in self.journal for key in keys.values()):
            return rates[0] if len(rates) == 1 else None
        found = {rate: self.journal.outcome(key) for rate, key in keys.items()}
        return best_rate({rate: row for rate, row in found.items() if row["status"] == "ok"})

    def _drop_losers(self, name: str) -> None:
        chosen = self._chosen(name)
        if chosen is not None:
            for rate in self.recipe.models[name].learning_rates:
                if rate != chosen:
                    cells.drop(self.out, Job("train", name, rate, 0))


def forecast(recipe: Recipe, names: Sequence[str] = (), seeds: int = 0, steps: int = 3) -> float:
    """Seconds of training that a table would take here, one process with one thread, from a few steps each.

    Cost: ``steps`` + 1 training steps of every model.
    """
    from quatrain.lab.paper._score import loss

    generator = cells.check(recipe)
    lengths = generator.lengths(recipe.train.lengths)
    share = sum(lengths) / len(lengths) / lengths[-1]  # of the steps of the longest batch, on average
    total, before = 0.0, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name in recipe.chosen(tuple(names)):
            contestant = recipe.models[name]
            model = build(cells.model_config(recipe, name, generator))
            batch = generator.batch(0, 1, "train", recipe.train.batch, lengths[-1])
            times = []
            for _ in range(steps + 1):
                began = perf_counter()
                torch.autograd.backward(loss(model, batch))
                times.append(perf_counter() - began)
            runs = len(contestant.learning_rates) + recipe.runs(name, seeds) - 1
            total += min(times[1:]) * share * runs * (contestant.steps or recipe.train.steps)
    finally:
        torch.set_num_threads(before)
    return total


__all__ = ["Outcome", "default_out", "forecast", "reproduce"]
