"""Architectures side by side: the same size, the same tokens, the same search, one test.

The protocol: every learning rate of the grid trains up to the rung (a fraction of the full run, under the
schedule of the full run); the one that is best on the validation part, by the first metric of the task, goes
on to the end. Further seeds train in full at that rate. The checkpoint that is best on the validation part is
tested, once. What depends on the task is behind `quatrain.lab._study.Study`. Everything is a stage of
the journal, so a comparison that was killed goes on where it stopped and ends with the same numbers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from math import inf
from pathlib import Path
from time import perf_counter

import torch

from quatrain.config.check import check
from quatrain.config.schema import from_dict, to_dict
from quatrain.data.recognise import recognise
from quatrain.lab import calibrate, evaluation, machine, plan, search
from quatrain.lab._study import Study, study_of, summary
from quatrain.lab.clock import Clock
from quatrain.lab.config import CompareConfig, for_text
from quatrain.lab.journal import Journal
from quatrain.lab.plan import Plan
from quatrain.lab.search import Events, Row, Rows, Search
from quatrain.model.config import ModelConfig
from quatrain.model.sequence import build
from quatrain.tasks.score import primary
from quatrain.train import run_dir


@dataclass(frozen=True)
class Outcome:
    """Where a finished comparison lies; ``again``: it was finished before this call."""

    out: Path
    again: bool


def compare(
    config: CompareConfig,
    out: Path,
    events: Events | None = None,
    *,
    threads: int | None = None,
    command: str = "",
) -> Outcome:
    """Make a comparison in ``out``, or go on with the one there; ``records.jsonl`` then holds all of it.

    Args:
        config: what is compared; must equal that of a comparison already in ``out``.
        out: directory, made when missing. ``runs/`` in it are ordinary training runs.
        events: called with rows for a display: "say", "plan", "stage", "step", "valid", "trained",
            "diverged".
        threads: CPU threads; by default those it began with, else torch's own number.
        command: how a person started it, for the record.

    Raises:
        ConfigError: another config, thread count or process in ``out``; sizes or a budget that cannot be.
        DataError: data that is missing, too short, not for its task, or changed since the comparison began.
        RuntimeError: a model sees the future, so that comparing it would mean nothing.
        Interrupted: a signal while training; everything is saved.
        OSError: ``out`` cannot be written.

    Cost: the budget of training, then evaluation, bounded by ``config.evaluation_seconds``.
    """
    out = Path(out)
    check(threads is None or threads >= 1, "threads", threads, "must be at least 1")
    tell = events or (lambda row: None)
    found = recognise(config.data)
    if found.task == "lm":
        config = for_text(config)
    with run_dir.claimed(out, config):
        task = study_of(config, out / run_dir.DATA)
        wanted = threads or torch.get_num_threads()
        decided = plan.load_or_make(
            out / plan.MANIFEST,
            threads,
            task.data.digest,
            partial(_decide, task.config, task, out, wanted, tell),
        )
        run_dir.write_config(out, config)
        with Journal(out / run_dir.RECORDS) as journal, _threads(decided.threads):
            again = "end" in journal
            if not again:
                _Comparison(task.config, task, decided, out, journal, tell).run(command)
    return Outcome(out, again)


def _decide(config: CompareConfig, task: Study, out: Path, threads: int, tell: Events) -> Plan:
    """Fit the sizes, refuse models that leak, measure their speed, and turn the budget into steps."""
    tell({"kind": "say", "text": "checking that no model sees the future"})
    models = {mixer: task.model(mixer) for mixer in config.mixers}
    sizes = {}
    for mixer, model in models.items():
        untrained = evaluation.fresh(model, 0)
        sizes[mixer] = summary(untrained, config.sequence)["params"]
        evaluation.refuse_leak(untrained, config.sequence)
    plan.check_sizes(config, sizes)
    calibrate.clean(out)
    began, speeds = perf_counter(), {}
    for mixer, model in models.items():
        tell({"kind": "say", "text": f"calibrating {mixer}: a few training steps"})
        speeds[mixer] = calibrate.measure(task.trial(model), task.data, out, threads)
    return plan.make(
        config,
        data_digest=task.data.digest,
        threads=threads,
        models={mixer: to_dict(model) for mixer, model in models.items()},
        speeds=speeds,
        calibration_seconds=perf_counter() - began,
        test_total=task.test_total,
    )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Comparison:
    """The stages of one comparison, in order."""

    def __init__(
        self, config: CompareConfig, task: Study, decided: Plan, out: Path, journal: Journal, tell: Events
    ) -> None:
        self.config, self.task, self.plan, self.out = config, task, decided, out
        self.journal, self.tell = journal, tell
        self.models = {
            mixer: from_dict(ModelConfig, decided.models[mixer], f"models.{mixer}") for mixer in config.mixers
        }
        self.seeds = list(range(config.seeds))
        self.clock = Clock(config, decided, search.pieces(config, decided), self._evaluations())
        self.search = Search(config, task, decided, self.models, out, journal, self.clock, tell)

    def _evaluations(self) -> list[str]:
        mixers = self.config.mixers
        tests = [f"test/{mixer}/{seed}" for mixer in mixers for seed in self.seeds]
        if self._again():
            tests += [f"time-test/{mixer}/{seed}" for mixer in mixers for seed in self.seeds]
        each = [f"{what}/{mixer}" for mixer in mixers for what in self._measurements()]
        return ["baselines", *tests, *each]

    def _measurements(self) -> tuple[str, ...]:
        return ("probes", "context") if self.task.sweeps else ("probes",)

    def _again(self) -> bool:
        """Whether every model is trained anew for the same time."""
        return len(self.config.parts) > 1 and bool(self.plan.time_steps)

    def run(self, command: str) -> None:
        stages = (*search.pieces(self.config, self.plan), *self._evaluations())
        for stage in stages:
            if stage in self.journal:
                self.clock.done(stage)
        left = self.clock.left("", 0.0)
        resumed, says, parts = "start" in self.journal, self.task.says(), self.config.parts
        told = {"resumed": resumed, "left": left, "says": says, "parts": parts}
        self.tell({"kind": "plan", "plan": self.plan, **told})
        self._stage("start", partial(self._start, command))
        self._stage("baselines", self._baselines)
        for mixer in self.config.mixers:
            if len(self.config.learning_rates) > 1:
                for lr in self.config.learning_rates:
                    self._stage(search.rung(mixer, lr), partial(self.search.attempt, mixer, lr))
            for seed in self.seeds:
                self._stage(search.full(mixer, seed), partial(self.search.finish, mixer, seed))
            self.search.drop_losers(mixer)
        if self._again():
            self._stage(search.PACE, self.search.pace)
            for mixer in self.config.mixers:
                for seed in self.seeds:
                    self._stage(search.anew(mixer, seed), partial(self.search.again, mixer, seed))
        for mixer in self.config.mixers:
            for seed in self.seeds:
                self._stage(f"test/{mixer}/{seed}", partial(self._result, mixer, seed))
                if self._again():
                    work = partial(self._result, mixer, seed, search.anew, "time")
                    self._stage(f"time-test/{mixer}/{seed}", work)
            self._stage(f"probes/{mixer}", partial(self._probe, mixer))
            if self.task.sweeps:
                self._stage(f"context/{mixer}", partial(self._sweep, mixer))
        self._stage("end", self._end)

    def _stage(self, name: str, work: Callable[[], tuple[Rows, Row]]) -> None:
        """Do a stage and write it down, unless that was done before."""
        if name in self.journal:
            return
        self.tell({"kind": "stage", "stage": name, "left": self.clock.left("", 0.0)})
        began = perf_counter()
        rows, outcome = work()
        self.journal.finish(name, rows, outcome, perf_counter() - began)
        self.clock.done(name)

    def _start(self, command: str) -> tuple[Rows, Row]:
        config, plan = self.config, self.plan
        about = {
            "id": plan.id,
            "started": plan.started,
            "machine": machine.machine(plan.threads),
            "versions": machine.versions(),
            "commit": machine.commit(),
            "config_digest": plan.config_digest,
            "config": to_dict(config),
            "command": command,
            "task": self.task.task.name,
            "primary": asdict(self.task.task.metrics[0]),
            "metrics": [asdict(metric) for metric in self.task.task.metrics],
            "unit": self.task.task.unit,
            "data": self.task.describe(),
            "params_target": config.params,
            "budget_seconds": config.budget_seconds,
            "budget_tokens": config.budget_tokens,
            "equal": config.parts,
            "tokens_per_model": plan.tokens if config.parts[0] == "tokens" else None,
            "time_per_model": plan.time_seconds if plan.time_steps else None,
            "epochs": plan.tokens / self.task.train_tokens,
            "sequence": config.sequence,
            "batch": config.batch,
            "steps": plan.steps,
            "learning_rates": config.learning_rates,
            "rung_fraction": plan.rung_steps / plan.steps,
            "rung_steps": plan.rung_steps,
            "seeds": self.seeds,
            "mixers": config.mixers,
            "peak_memory": "largest resident memory of a fresh process that trains the model for some steps",
        }
        rows: Rows = [("comparison", about)]
        for mixer, model in self.models.items():
            with torch.device("meta"):
                shape = build(model)
            memory = {"empty_memory_bytes": plan.speed(mixer).empty_memory_bytes}
            rows.append(("model", {"mixer": mixer, **summary(shape, config.sequence), **memory}))
        return rows, {}

    def _baselines(self) -> tuple[Rows, Row]:
        found = self.task.baselines(self.plan)
        best = min(found, key=self._merit)
        outcome = {"name": best["name"], "merit": self._merit(best), "test_loss": best.get("test_loss")}
        return [("baseline", row) for row in found], outcome

    def _merit(self, row: Row) -> float:
        """The task's first metric on the test part, such that less is better; inf where there is none."""
        return primary(self.task.task.name, row["metrics"]) if "metrics" in row else inf

    def _result(
        self, mixer: str, seed: int, stage: Callable[[str, int], str] = search.full, part: str = ""
    ) -> tuple[Rows, Row]:
        outcome = dict(self.journal.outcome(stage(mixer, seed)))
        model = evaluation.trained(self.out, outcome)
        if model is not None:
            evaluation.refuse_leak(model, self.config.sequence)
        found = evaluation.result(model, outcome, self.task, self.plan)
        peak = self.plan.speed(mixer).peak_memory_bytes
        alike = {"budget": part or self.config.parts[0]}
        row = {"mixer": mixer, "seed": seed, **alike, **found, "peak_memory_bytes": peak}
        ended = {"test_loss": row.get("test_loss", inf), "merit": self._merit(row)}
        return [("result", row)], ended | {"status": row["status"]}

    def _probe(self, mixer: str) -> tuple[Rows, Row]:
        """Cost and reach of one mixer, measured on its first seed; cost does not depend on the weights."""
        before = evaluation.fresh(self.models[mixer], 0)
        after = evaluation.trained(self.out, dict(self.journal.outcome(search.full(mixer, 0))))
        limit = plan.cost_seconds(self.config)
        rows = evaluation.costs(mixer, after or before, self.task, self.config.contexts, limit)
        rows += evaluation.reach(mixer, ((before, False), (after, True)), self.task)
        if after is not None:
            rows += [("sample", {"mixer": mixer, **sample}) for sample in self.task.samples(after)]
        return rows, {}

    def _sweep(self, mixer: str) -> tuple[Rows, Row]:
        """Loss by position in windows longer than those of training, for the first seed."""
        model = evaluation.trained(self.out, dict(self.journal.outcome(search.full(mixer, 0))))
        found, lack = self.task.sweep(model, self.plan, self.models)
        rows: Rows = [(kind, {"mixer": mixer, "seed": 0, **row}) for kind, row in found]
        if lack and mixer == self.config.mixers[0]:
            rows.insert(0, ("note", {"about": "context", "text": lack}))
        return rows, {}

    def _end(self) -> tuple[Rows, Row]:
        best = self.journal.outcome("baselines")
        rows: Rows = []
        for mixer in self.config.mixers:
            tests = [self.journal.outcome(f"test/{mixer}/{seed}") for seed in self.seeds]
            merits = [test["merit"] for test in tests if test["status"] == "ok"]
            if merits and sum(merits) / len(merits) >= best["merit"]:
                text = f"{mixer} does not beat the trivial baseline {best['name']}"
                rows.append(("note", {"mixer": mixer, "about": "baseline", "text": text}))
        training = [self.journal.outcome(stage) for stage in search.pieces(self.config, self.plan)]
        overhead = sum(outcome.get("overhead", 0.0) for outcome in training)
        end = {
            "training_seconds": self.search.seconds(),
            "evaluation_seconds": overhead + sum(self.journal.seconds[name] for name in self._evaluations()),
            "calibration_seconds": self.plan.calibration_seconds,
            "complete": True,
        }
        return [*rows, ("end", end)], {}
