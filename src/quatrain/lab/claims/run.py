"""All measurements one after the other, written down so that a killed run goes on, and the verdicts."""

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch

from quatrain.config.schema import digest, to_dict
from quatrain.config.toml import load_toml
from quatrain.errors import ConfigError
from quatrain.lab import machine
from quatrain.lab.claims import CLAIMS, costs, demo, ops, reach, recorded, training
from quatrain.lab.claims.beliefs import BELIEFS
from quatrain.lab.claims.claim import Found, Rows
from quatrain.lab.claims.config import ClaimsConfig
from quatrain.lab.claims.timing import Tell
from quatrain.lab.journal import Journal
from quatrain.model.device import name_of
from quatrain.records import read
from quatrain.train import _machine, run_dir
from quatrain.train._signals import Interrupted

_TRAINING = 600.0  # seconds of one task, roughly
_TRUST = 30.0  # seconds measured, below which the planned ones count more
Events = Callable[[dict[str, Any]], None]


class Measurement(NamedTuple):
    """One stage: what it does in words, about how many seconds it takes on two cores, and the work."""

    says: str
    seconds: float
    measure: Callable[[ClaimsConfig, Tell], Rows]


MEASUREMENTS: Mapping[str, Measurement] = {
    "states": Measurement("hidden states, step by step", 2, ops.new_state),
    "rnn-gradient": Measurement("gradients of an RNN at spectral radii around 1", 2, reach.rnn),
    "lstm-gradient": Measurement("gradients and cells of an LSTM at forget biases 0, 1, 3", 3, reach.lstm),
    "reach": Measurement("gradients of all four at first weights", 10, reach.everyone),
    "s4d": Measurement("S4D as recurrence and as convolution", 1, ops.s4d),
    "cost": Measurement("time against length, all four in turns", 75, costs.by_length),
    "memory": Measurement("peak memory against length", 30, costs.memory),
    "generation": Measurement("a generated token against context and batch", 25, costs.generation),
    "batch": Measurement("training against batch", 30, costs.batches),
    "attention": Measurement("attention, fused and not", 30, ops.attention),
    "scan": Measurement("the S6 scan, fused and materialised", 20, ops.scan),
    "gates": Measurement("training a small LSTM, to draw its gates", 8, demo.gates),
    "heads": Measurement("training a small Transformer, to draw its heads", 20, demo.heads),
    "steps": Measurement("training a small Mamba, to draw its step sizes", 12, demo.steps),
    "far": Measurement("Mamba reads a million tokens", 35, costs.far),
}


@dataclass(frozen=True)
class Outcome:
    """Where the records are, and whether everything had been measured before."""

    out: Path
    again: bool


def run(config: ClaimsConfig, out: Path, events: Events | None = None, *, command: str = "") -> Outcome:
    """Measure every claim and write ``out/records.jsonl``; a killed run goes on after its last stage.

    Args:
        config: sizes, device and threads.
        out: directory, made when missing.
        events: called with {"kind": "stage", "stage", "says", "done", "of", "left"} before a stage, and with
            {"kind": "share", "share", "left"} while it runs.
        command: how a person started it, for the record.

    Raises:
        ConfigError: other settings or another process in ``out``.
        Interrupted: a signal; finished stages are saved.
        DataError: ``out`` or the shipped records hold damaged rows.
        MeasureError: a process that measures memory failed.
        OSError: ``out`` cannot be written.

    Cost: with the settings by default about six minutes on two cores.
    """
    tell = events or (lambda row: None)
    device = torch.device(config.device)
    _check_ours(out)
    with run_dir.claimed(out, config):
        run_dir.write_config(out, config)
        with Journal(out / run_dir.RECORDS) as journal, _machine.numerics(config.threads, device):
            again = "end" in journal
            if not again:
                _measure(_Run(config, out, journal, tell), command)
    return Outcome(out, again)


def _measure(run: "_Run", command: str) -> None:
    """Every stage that is left, and the verdicts; a signal says how to go on."""
    try:
        run.go(command)
        rows = judge(found_in(run.out / run_dir.RECORDS))
        run.journal.finish("end", [*rows, ("end", {"complete": True})])
    except KeyboardInterrupt as error:
        text = f"stopped; what was measured is saved in {run.out}; the same command goes on"
        raise Interrupted(text, getattr(error, "signal", signal.SIGINT)) from None


def _check_ours(out: Path) -> None:
    """Say in few words what a line with every key would hide: a run of another command is in ``out``."""
    there = load_toml(out / run_dir.CONFIG) if (out / run_dir.CONFIG).is_file() else {}
    if there.keys() - to_dict(ClaimsConfig()).keys():
        raise ConfigError(f"out = '{out}': holds a run of another command; choose another directory")


class _Run:
    """The stages of one run, in order, and the time that the rest of them will take."""

    def __init__(self, config: ClaimsConfig, out: Path, journal: Journal, tell: Events) -> None:
        self.config, self.out, self.journal, self.tell = config, out, journal, tell
        self.stages: dict[str, Measurement] = dict(MEASUREMENTS)
        self._began = perf_counter()  # of the stage under way

    def go(self, command: str) -> None:
        """Every stage that is not done."""
        trained = training.tasks() if self.config.train else ()
        if "start" not in self.journal:
            rows = [(kind, row) for kind, row in recorded.shipped() if row["task"] not in trained]
            self.journal.finish("start", [("claims", self._about(command)), *rows])
        for task in trained:
            self.stages[f"train/{task}"] = self._training(task, command)
        for at, (name, stage) in enumerate(self.stages.items()):
            if name in self.journal:
                continue
            self._began = perf_counter()
            left = self._left(name, 0.0)
            told = {"stage": name, "says": stage.says, "done": at, "of": len(self.stages), "left": left}
            self.tell({"kind": "stage", **told})
            rows = stage.measure(self.config, partial(self._share, name))
            self.journal.finish(name, rows, None, perf_counter() - self._began)

    def _training(self, task: str, command: str) -> Measurement:
        def measure(config: ClaimsConfig, tell: Tell) -> Rows:
            return training.train(task, config, self.out, command, tell)

        return Measurement(f"training for {task.replace('_', ' ')}", _TRAINING, measure)

    def _share(self, name: str, share: float) -> None:
        self.tell({"kind": "share", "share": share, "left": self._left(name, share)})

    def _left(self, name: str, share: float) -> float:
        """Seconds left: the planned ones of what is not done, times the ratio seen so far."""
        done = [stage for stage in self.stages if stage in self.journal]
        planned = sum(self.stages[stage].seconds for stage in done)
        planned += share * self.stages[name].seconds
        seen = sum(self.journal.seconds[stage] for stage in done) + perf_counter() - self._began
        ratio = (seen + _TRUST) / (planned + _TRUST)
        rest = sum(stage.seconds for key, stage in self.stages.items() if key not in self.journal)
        return ratio * (rest - share * self.stages[name].seconds)

    def _about(self, command: str) -> dict[str, Any]:
        return {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": {
                **machine.machine(self.config.threads),
                "device": name_of(torch.device(self.config.device)),
            },
            "versions": machine.versions(),
            "commit": machine.commit(),
            "config_digest": digest(self.config),
            "config": to_dict(self.config),
            "command": command,
        }


def found_in(path: Path) -> Found:
    """The rows of a file of records by kind. Raises DataError, OSError."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in read(path):
        found.setdefault(row["kind"], []).append(row)
    return found


def judge(found: Found) -> Rows:
    """Rows "verdict" of every claim, and "belief" of every cell of the table."""
    rows: Rows = []
    for claim in CLAIMS.values():
        word, finding = claim.judge(found)
        about = {"id": claim.id, "group": claim.group, "title": claim.title}
        about |= {"belief": claim.belief, "method": claim.method}
        rows.append(("verdict", {**about, "verdict": word, "finding": finding}))
    for belief in BELIEFS:
        rows.append(("belief", belief._asdict()))
    return rows
