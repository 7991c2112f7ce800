"""What the command line does, as functions: the names that ``quatrain`` offers beside models and layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any

from quatrain import records, report
from quatrain.config.check import check
from quatrain.config.schema import digest, from_dict
from quatrain.data.recognise import recognise
from quatrain.errors import MissingExtraError
from quatrain.lab.compare import compare as _compare
from quatrain.lab.config import CompareConfig, for_text
from quatrain.lab.inspection import Input
from quatrain.lab.inspection import inspect as _inspect
from quatrain.lab.look import LIMIT
from quatrain.lab.search import Events
from quatrain.report import inspect as inspect_page

__all__ = ["Compared", "Inspected", "compare", "inspect"]


@dataclass(frozen=True)
class Compared:
    """A finished comparison.

    Attributes:
        out: its directory: ``records.jsonl``, ``table.md``, ``report.html`` and ``runs/``.
        page: the page; None where the extra ``report`` is not installed.
        again: whether it was finished before.
    """

    out: Path
    page: Path | None
    again: bool

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """All rows of ``records.jsonl``; the kinds ``result`` and ``baseline`` hold the scores."""
        return list(records.read(self.out / "records.jsonl"))

    @property
    def headline(self) -> str:
        """Which one is best, in a sentence."""
        return report.summary(self.rows).headline

    @property
    def best(self) -> Path | None:
        """Directory of the run that is best on the test part, for `quatrain.load` and `quatrain.predict`;
        None where every run diverged."""
        found = report.best(self.rows)
        return self.out / str(found["run"]) if found else None

    def __str__(self) -> str:
        return report.markdown(self.rows)


def compare(
    data: str | Path | CompareConfig = "python",
    out: str | Path | None = None,
    *,
    mixers: Sequence[str] = ("rnn", "lstm", "attention", "s6"),
    params: int = 1_000_000,
    seconds: float | None = None,
    tokens: float | None = None,
    seeds: int = 1,
    settings: Mapping[str, object] | None = None,
    data_settings: Mapping[str, object] | None = None,
    threads: int | None = None,
    events: Events | None = None,
) -> Compared:
    """Train architectures side by side on the same data and write a table and a page.

    Each has the same number of parameters (within 2 %), reads the same data in the same order, and has its
    learning rate chosen on the validation part; the test part is scored once. What the data is, and which
    task it is for, is recognised (`quatrain.data.recognise`): text, FASTA, CSV, Parquet, JSON Lines, ``.ts``,
    a folder of texts or recordings for each class. Killed at any moment, the same call goes on where it
    stopped and ends with the same numbers; called again when it is finished, it only shows.

    Args:
        data: a file, directory or glob, "python" for Python's own library; or a whole `CompareConfig`, and
            then nothing below but ``out``, ``threads`` and ``events`` may be given.
        out: directory, made when missing; ``runs/compare-<data>-<digest>`` by default.
        mixers: architectures, or patterns such as ``"s6 s6 attention"``.
        params: parameters of each model, embedding and head not counted.
        seconds: training time of all runs together, 600 by default; turned once into a number of tokens by a
            calibration on this machine.
        tokens: tokens (or steps of sequences) that each model is trained on, in place of a time.
        seeds: runs of each model at its chosen learning rate.
        settings: other fields of `CompareConfig`, such as ``{"learning_rates": (1e-3, 1e-2)}``.
        data_settings: fields of `quatrain.data.config.DataConfig`, such as ``{"horizon": 48}``.
        threads: CPU threads; by default those it began with, else torch's own number.
        events: called with rows for a display, as `quatrain.lab.compare.compare` says.

    Raises:
        ConfigError: a value out of range, both ``seconds`` and ``tokens``, another comparison in ``out``.
        DataError: data that is missing, not fit for the task, or changed since the comparison began.
        RuntimeError: a model sees the future, so that comparing it would mean nothing.
        Interrupted: a signal while training; everything is saved.
        OSError: ``out`` cannot be written.

    Cost: the budget, then evaluation, at most about ``CompareConfig.evaluation_seconds``; with ten minutes on
    two cores about a quarter of an hour.
    """
    if isinstance(data, CompareConfig):
        config = data
    else:
        both = seconds is not None and tokens is not None
        check(not both, "tokens", tokens, f"contradicts seconds = {seconds}: give one of them")
        budget = {"budget_seconds": 600.0 if seconds is None else float(seconds)}
        if tokens is not None:
            budget = {"budget_seconds": inf, "budget_tokens": float(tokens)}
        source = {"source": str(data), **(data_settings or {})}
        values = {"data": source, "mixers": list(mixers), "params": params, "seeds": seeds, **budget}
        config = from_dict(CompareConfig, {**values, **(settings or {})})
    found = recognise(config.data)
    if found.task == "lm":
        config = for_text(config)
    folder = Path("runs") / f"compare-{found.name}-{digest(config)}" if out is None else Path(out)
    command = f"quatrain.compare({config.data.source!r})"
    outcome = _compare(config, folder, events, threads=threads, command=command)
    page: Path | None = None
    try:
        page = report.write(outcome.out)
    except MissingExtraError:
        page = None
    return Compared(outcome.out, page, outcome.again)


@dataclass(frozen=True)
class Inspected:
    """What a model does inside on one input.

    Attributes:
        rows: plain data: ``inspection``, then the input, the answer and a row for each layer (see
            `quatrain.lab.inspection.inspect`).
    """

    rows: list[dict[str, Any]]

    @property
    def headline(self) -> str:
        """The model, the input and what came of it, in a line."""
        return inspect_page.summary(self.rows)[0]

    def write(self, path: str | Path) -> Path:
        """Write the page, one file that loads nothing, whole or not at all. Raises OSError."""
        return inspect_page.write(self.rows, path)

    def __str__(self) -> str:
        return "\n".join(inspect_page.summary(self.rows))


def inspect(checkpoint: str | Path, input: Input, *, limit: int = LIMIT, device: str = "auto") -> Inspected:
    """Look into a trained model: gates, step sizes, attention maps, norms and memory on one input.

    ``quatrain.inspect(run, b"To be, or not to be").write("page.html")``. `quatrain.lab.look.look` gives the
    tensors themselves, for a model of one's own too.

    Args:
        checkpoint: directory of one checkpoint, or of a run, whose newest is taken.
        input: a path: a file as in training, labels not needed, of several inputs the first. Or the input
            itself: bytes are a text, an array ``(T,)`` or ``(T, C)`` is one sequence in the data's own units.
        limit: steps that are looked at: the first ones, of a series that is forecast the last ones.
        device: "cpu", "cuda", or "auto", which is CUDA where it is usable.

    Raises:
        DataError: an input that is missing, empty, binary, or of another kind than the model reads.
        CheckpointError: a checkpoint that is missing, damaged or foreign.
        ConfigError: limit below 1, a device that is not usable.

    Cost: two forward passes; attention holds T^2 numbers a head.
    """
    return Inspected(_inspect(checkpoint, input, limit=limit, device=device))
