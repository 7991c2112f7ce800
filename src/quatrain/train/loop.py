"""One training run: step, look at the validation part, save; and go on where it stopped."""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor

from quatrain import checkpoint
from quatrain.config.check import check
from quatrain.config.schema import digest, to_dict
from quatrain.data.prepare import Data, prepare
from quatrain.data.task import TASKS
from quatrain.data.tokenizer import Tokenizer
from quatrain.errors import DataError, OutOfMemoryError, ran_out_of_memory
from quatrain.model.count import parameters
from quatrain.model.device import choose
from quatrain.model.init import initialise
from quatrain.model.sequence import build
from quatrain.records import Writer
from quatrain.tasks.spelling import tokenizer_of
from quatrain.train import _carry, _health, _machine, _memory, optim, run_dir
from quatrain.train._signals import Interrupted, StopSignals
from quatrain.train._step import Stepper
from quatrain.train.company import Company, Steps, drive
from quatrain.train.config import RunConfig
from quatrain.train.feed import Feed, Source, feed_of
from quatrain.train.progress import Progress, Result
from quatrain.train.warm_start import warm_start

T = TypeVar("T")
Events = Callable[[dict[str, object]], None]


def train(
    config: RunConfig,
    out: Path,
    events: Events | None = None,
    stop_at: int | None = None,
    *,
    data: Data | Source | None = None,
    threads: int | None = None,
    device: str = "cpu",
) -> Result:
    """Train a model in ``out``, or go on where the run in ``out`` stopped.

    Killed at any moment and called again, a run gives the losses and weights of an uninterrupted one, bit for
    bit, on the same machine and versions: a step depends only on weights, moments and carried state, which a
    checkpoint holds whole, on (seed, step), which draws the batch and dropout, and on the thread count, which
    is restored. Deterministic kernels are on while it runs. On a GPU, whose kernels may add in any order, the
    same holds up to rounding. The first SIGINT or SIGTERM ends the step, saves and raises Interrupted.

    Args:
        config: model, data and optimisation; must equal that of a run already in ``out``.
        out: the run's directory, made when missing.
        events: called with every row of the records as it is written, and with display-only rows ("note",
        "resume").
        stop_at: a step to stop and save at, to go on later; the whole run by default.
        data: prepared data in place of ``config.data``, shared between runs, or what brings its own feed.
        threads: CPU threads; by default those of the run so far, else torch's own number.
        device: "cpu", "cuda", or "auto": that of the run so far where usable, else CUDA where usable.

    Raises:
        ConfigError: another config or process in ``out``, or settings that contradict each other or the data.
        DataError: data that is missing, too short, unfit for the task, or changed since the run began.
        CheckpointError: the run's last checkpoint is damaged.
        OutOfMemoryError: memory ran out; names settings that were tried and fit, what was saved stays.
        DivergedError: NaN or infinity; names step, parameter and last good checkpoint.
        OSError: ``out`` can't be written; what was saved before stays whole.
        Interrupted: a signal; the run is saved.
    """
    with StopSignals() as stop:
        company = Company(stop)
        return drive(
            stepwise(config, out, events, stop_at, data=data, threads=threads, device=device, company=company)
        )


def stepwise(
    config: RunConfig,
    out: Path,
    events: Events | None = None,
    stop_at: int | None = None,
    *,
    data: Data | Source | None = None,
    threads: int | None = None,
    device: str = "cpu",
    company: Company,
) -> Steps[Result]:
    """`train`, halting whenever a step is under way, so that several runs can be advanced in turn.

    On a GPU a run has a stream of its own, so that their steps overlap there. Advancing it ends the step,
    looks and saves where it is time to, and begins the next one. Raises as `train` does.
    """
    out = Path(out)
    check(stop_at is None or stop_at >= 1, "stop_at", stop_at, "must be at least 1")
    check(threads is None or threads >= 1, "threads", threads, "must be at least 1")
    with run_dir.claimed(out, config):
        newest, begins = checkpoint.latest(out), not (out / run_dir.CONFIG).exists()
        saved = checkpoint.read(newest) if newest else None
        if saved and saved.step >= config.train.steps:
            progress = Progress(**saved.meta["progress"])
            return Result("finished", out, saved.path, progress, saved.step, _machine.peak_memory_bytes())
        machine = saved.meta["machine"] if saved else {}
        wanted = threads or machine.get("threads") or torch.get_num_threads()
        chosen = choose(device, run_dir.device_of(out))
        with company.numerics(wanted, chosen):
            ready = data or prepare(config.data, out / run_dir.DATA, _tokenizer(config))
            run = _Run(config, out, ready, saved, chosen, events or (lambda row: None), company)
            try:
                last = min(stop_at or config.train.steps, config.train.steps)
                return (yield from run.until(last, company.stop))
            except OutOfMemoryError:
                if begins and run.last_good is None:
                    run_dir.forget(out)  # the same directory then takes other settings
                raise
            finally:
                run.close()


class _Run:
    """The moving parts of one run in one process."""

    def __init__(
        self,
        config: RunConfig,
        out: Path,
        data: Data | Source,
        saved: "checkpoint.Checkpoint | None",
        device: torch.device,
        events: Events,
        company: Company,
    ) -> None:
        settings = config.train
        self.config, self.out, self.data, self.events = config, out, data, events
        self.feed = feed_of(config, data)
        self.task = self.feed.model.task
        self.model = build(self.feed.model)
        initialise(self.model, settings.seed)
        begun = ""
        if settings.init_from and saved is None:
            begun = warm_start(self.model, self.feed.meta(), settings.init_from)
        self.device, self.stream = device, _stream(device)
        with self._on_stream():
            self._move()
            self.optimizer = optim.optimizer(self.model, settings)
            self.progress = Progress()
            self.machine = _machine.describe(device)
            self.last_good: Path | None = None
            if saved:
                self._restore(saved)
            self.stepper = Stepper(self.feed, self.model, self.optimizer, settings, company.turn, self._note)
        self._began = 0.0  # the step under way
        self.resumed_from = self.progress.step
        run_dir.write_config(out, config)
        self.writer = Writer(out / run_dir.RECORDS, truncate_to=self.progress.records)
        self._announce(saved)
        if begun:
            self._note(begun)

    def _note(self, text: str) -> None:
        self.events({"kind": "note", "text": text})

    def _move(self) -> None:
        try:
            self.model.to(self.device).train()
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            count = sum(p.numel() for p in self.model.parameters())
            raise _memory.too_large(error, count, self.device) from None

    def _on_stream(self) -> AbstractContextManager[object]:
        """All of a run's work on a GPU is queued on its own stream, which others' work does not wait for."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def close(self) -> None:
        """Let go of the records and of recorded steps, which hold memory."""
        self.writer.close()
        self.stepper.forget()

    # -- beginning and end

    def _restore(self, saved: "checkpoint.Checkpoint") -> None:
        meta = saved.meta
        if meta["data"]["digest"] != self.data.digest:
            raise DataError(
                f"data.source = {self.config.data.source!r}: has digest {self.data.digest}, "
                f"the run in {self.out} began with {meta['data']['digest']}; give that text, or another out"
            )
        self.model.load_state_dict(saved.tensors("model"))
        optim.load_state(self.optimizer, self.model, saved.tensors("optimizer"))
        if meta["carried"]:
            tensors = saved.tensors("carry")
            rows = self.config.train.batch // self.config.train.accumulate
            like = self.model.initial_state(rows)
            tensors = {name: tensor.to(self.device) for name, tensor in tensors.items()}
            carry = [_carry.rebuild(like, tensors, str(part)) for part in range(len(self.feed.carry))]
            self.feed.carry = carry
        self.progress = Progress(**meta["progress"])
        if self.progress.best_step and self.progress.best_score != self.progress.best_score:  # NaN
            self.progress = replace(self.progress, best_score=self.progress.best_valid)
        self.last_good = saved.path

    def _announce(self, saved: "checkpoint.Checkpoint | None") -> None:
        if saved:
            for difference in _machine.differences(saved.meta["machine"], self.machine):
                self._note(f"{difference}: the last bits may differ from an uninterrupted run")
            self.events({"kind": "resume", "steps": self.config.train.steps, **asdict(self.progress)})
            return
        counts = parameters(self.model)
        self._record(
            "run",
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            config=to_dict(self.config),
            digest=digest(self.config),
            data=self._data(),
            params=counts.rest,
            params_embedding=counts.embedding,
            machine=self.machine,
            validation_tokens=self.feed.look_tokens,
        )

    def _data(self) -> dict[str, object]:
        found = {"name": self.data.name, "digest": self.data.digest, "vocab": self.data.vocab}
        return found if self.task == "lm" else {**found, "task": self.task}

    def until(self, last: int, stop: StopSignals) -> Steps[Result]:
        """Train up to and with step ``last``, halting in every step."""
        while self.progress.step < last:
            step = self.progress.step + 1
            with self._on_stream():
                self._fitting("step", partial(self._begin, step, last), self._try_step)
            yield
            with self._on_stream():
                self._fitting("step", partial(self._finish, step), self._try_step)
                self._after(step, last, stop)
        assert self.last_good is not None
        status: Literal["finished", "stopped"] = (
            "finished" if self.progress.step == self.config.train.steps else "stopped"
        )
        peak = _machine.peak_memory_bytes()
        return Result(status, self.out, self.last_good, self.progress, self.resumed_from, peak)

    def _after(self, step: int, last: int, stop: StopSignals) -> None:
        """Look and save where it is time to."""
        settings = self.config.train
        finished = step == settings.steps
        looks = finished or step % settings.eval_every == 0
        better = looks and self._fitting("look after step", self._validate, self._try_look)
        if finished:
            self._end()
        if finished or better or stop.number or step == last or step % settings.save_every == 0:
            self._save()
        if stop.number and not finished:
            raise Interrupted(self._how_to_go_on(), stop.number)

    def _how_to_go_on(self) -> str:
        done = f"stopped at step {self.progress.step} of {self.config.train.steps}, saved in {self.out}"
        return f"{done}; go on with: quatrain train --resume {self.out}"

    # -- memory

    def _fitting(self, doing: str, work: Callable[[], T], trial: Callable[[Feed], object]) -> T:
        """Do the work, and where memory runs out say with which settings it would not have."""
        step = self.progress.step + (doing == "step")
        try:
            return work()
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            said = _memory.explained(
                error,
                f"{doing} {step}",
                self.config,
                self.task != "lm" and TASKS[self.task].labelled,
                _memory.kept(self.out, self.last_good),
                partial(self._try, trial),
            )
            raise said from None

    def _try(self, trial: Callable[[Feed], object], config: RunConfig) -> None:
        """The run ends in any case: its model may be spoilt."""
        self.stepper.forget()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.backbone.config = replace(
            self.model.config, checkpoint_layers=config.model.checkpoint_layers
        )
        room = _memory.moments(self.optimizer, self.model)
        trial(feed_of(config, self.data))
        del room

    def _try_step(self, feed: Feed) -> None:
        feed.backward(self.model, self.progress.step + 1, self.stepper.autocast)

    def _try_look(self, feed: Feed) -> None:
        feed.look(self.model)

    # -- one step

    def _begin(self, step: int, last: int) -> None:
        self._began = time.perf_counter()
        self.stepper.begin(step, last, self.last_good)

    def _finish(self, step: int) -> None:
        """Wait for the step and write down what it gave."""
        settings = self.config.train
        loss, norm, tokens = self.stepper.finish(step, self.last_good)
        self.progress = replace(
            self.progress,
            step=step,
            tokens=self.progress.tokens + tokens,
            seconds=self.progress.seconds + time.perf_counter() - self._began,
            loss=loss,
        )
        if step % settings.log_every == 0 or step == settings.steps:
            self._record(
                "step",
                step=step,
                tokens=self.progress.tokens,
                loss=loss,
                lr=optim.learning_rate(settings, step),
                grad_norm=norm,
                seconds=self.progress.seconds,
            )

    # -- looking and saving

    def _validate(self) -> bool:
        """Score the validation part; whether it is the best score so far."""
        look, before = self.feed.look(self.model), self.progress
        first = before.best_step == 0
        better = first or (look.score, look.loss) < (before.best_score, before.best_valid)
        self.progress = replace(before, valid=look.loss)
        if better:
            self.progress = replace(
                self.progress, best_valid=look.loss, best_score=look.score, best_step=before.step
            )
        found = {"nats": look.loss} if self.task == "lm" else {"loss": look.loss, "metrics": look.metrics}
        self._record("eval", step=before.step, tokens=before.tokens, split="valid", **found, best=better)
        return better

    def _end(self) -> None:
        progress = self.progress
        self._record(
            "end",
            step=progress.step,
            tokens=progress.tokens,
            seconds=progress.seconds,
            valid=progress.valid,
            best_step=progress.best_step,
            best_valid=progress.best_valid,
            peak_memory_bytes=_machine.peak_memory_bytes(),
        )

    def _record(self, kind: str, **fields: object) -> None:
        self.writer.write(kind, **fields)
        self.events({"kind": kind, **fields, "memory_bytes": _machine.memory_bytes()})

    def _save(self) -> None:
        """Write a checkpoint whole, then drop the ones that the rule doesn't keep."""
        moments = optim.state_tensors(self.optimizer, self.model)
        _health.check_saved(self.model, moments, self.progress.step, self.last_good)
        tensors: dict[str, Mapping[str, Tensor]] = {"model": self.model.state_dict(), "optimizer": moments}
        tensors |= self.feed.tensors()
        carried = all(state is not None for state in self.feed.carry)
        if carried:
            tensors["carry"] = {
                name: leaf
                for part, state in enumerate(self.feed.carry)
                for name, leaf in _carry.flatten(state, str(part)).items()
            }
        self.progress = replace(
            self.progress, records=self.writer.offset()
        )  # on the disk before the checkpoint is
        meta = {
            "config": to_dict(self.config),
            "progress": {name: value for name, value in asdict(self.progress).items() if value == value},
            "carried": carried,
            "data": self._data(),
            "machine": self.machine,
            **({} if self.feed.model == self.config.model else {"model": to_dict(self.feed.model)}),
            **self.feed.meta(),
        }
        self.last_good = checkpoint.save(self.out, self.progress.step, tensors, meta)
        checkpoint.prune(self.out, self.config.train.keep, protect=[self.progress.best_step])


def _tokenizer(config: RunConfig) -> Tokenizer | None:
    """Fine-tuning reads a text in the tokens of the model that it begins from, unless it names others."""
    if not config.train.init_from or config.data.tokenizer != "auto":
        return None
    found = tokenizer_of(config.train.init_from)
    return found if found.name == "bpe" else None


def _stream(device: torch.device) -> torch.cuda.Stream | None:
    """A stream that goes on from the caller's; None on a CPU."""
    if device.type != "cuda":
        return None
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    return stream


__all__ = ["Events", "Progress", "Result", "stepwise", "train"]
