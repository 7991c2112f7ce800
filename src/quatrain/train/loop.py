"""One training run: step, look at the validation part, save; and go on where it stopped."""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from math import nan
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
from quatrain.train.config import RunConfig
from quatrain.train.feed import Feed, Source, feed_of
from quatrain.train.warm_start import warm_start

T = TypeVar("T")
Events = Callable[[dict[str, object]], None]


@dataclass(frozen=True)
class Progress:
    """How far a run is; saved with every checkpoint."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0  # of training steps, over all sessions; evaluation and saving are not in it
    loss: float = nan  # of the last step; nats per token in a language model
    valid: float = nan  # loss of the last look at the validation part
    best_valid: float = nan  # loss of the best look
    best_score: float = nan  # what made it the best, less is better; a language model's is its loss
    best_step: int = 0  # 0: no look yet
    records: int = 0  # bytes of the records that belong to this step


@dataclass(frozen=True)
class Result:
    """What `train` returns. ``status`` is "finished", or "stopped" at ``stop_at``."""

    status: Literal["finished", "stopped"]
    out: Path
    checkpoint: Path
    progress: Progress
    resumed_from: int  # 0: this call began the run
    peak_memory_bytes: int  # of the whole process


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
    out = Path(out)
    check(stop_at is None or stop_at >= 1, "stop_at", stop_at, "must be at least 1")
    check(threads is None or threads >= 1, "threads", threads, "must be at least 1")
    with run_dir.claimed(out, config), StopSignals() as stop:
        newest, begins = checkpoint.latest(out), not (out / run_dir.CONFIG).exists()
        saved = checkpoint.read(newest) if newest else None
        if saved and saved.step >= config.train.steps:
            progress = Progress(**saved.meta["progress"])
            return Result("finished", out, saved.path, progress, saved.step, _machine.peak_memory_bytes())
        machine = saved.meta["machine"] if saved else {}
        wanted = threads or machine.get("threads") or torch.get_num_threads()
        chosen = choose(device, run_dir.device_of(out))
        with _machine.numerics(wanted, chosen):
            ready = data or prepare(config.data, out / run_dir.DATA, _tokenizer(config))
            run = _Run(config, out, ready, saved, chosen, events or (lambda row: None))
            try:
                return run.until(min(stop_at or config.train.steps, config.train.steps), stop)
            except OutOfMemoryError:
                if begins and run.last_good is None:
                    run_dir.forget(out)  # the same directory then takes other settings
                raise
            finally:
                run.writer.close()


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
        self.device = device
        try:
            self.model.to(device).train()
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            raise _memory.too_large(error, sum(p.numel() for p in self.model.parameters()), device) from None
        self.optimizer = optim.optimizer(self.model, settings)
        self.progress = Progress()
        self.machine = _machine.describe(device)
        self.last_good: Path | None = None
        if saved:
            self._restore(saved)
        self.resumed_from = self.progress.step
        run_dir.write_config(out, config)
        self.writer = Writer(out / run_dir.RECORDS, truncate_to=self.progress.records)
        self._announce(saved)
        if begun:
            self.events({"kind": "note", "text": begun})

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
                text = f"{difference}: the last bits may differ from an uninterrupted run"
                self.events({"kind": "note", "text": text})
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

    def until(self, last: int, stop: StopSignals) -> Result:
        """Train up to and with step ``last``."""
        settings = self.config.train
        while self.progress.step < last:
            self._fitting("step", partial(self._step, self.progress.step + 1), self._try_step)
            step = self.progress.step
            finished = step == settings.steps
            looks = finished or step % settings.eval_every == 0
            better = looks and self._fitting("look after step", self._validate, self._try_look)
            if finished:
                self._end()
            if finished or better or stop.number or step == last or step % settings.save_every == 0:
                self._save()
            if stop.number and not finished:
                raise Interrupted(self._how_to_go_on(), stop.number)
        assert self.last_good is not None
        status: Literal["finished", "stopped"] = (
            "finished" if self.progress.step == settings.steps else "stopped"
        )
        peak = _machine.peak_memory_bytes()
        return Result(status, self.out, self.last_good, self.progress, self.resumed_from, peak)

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
        self.optimizer.zero_grad(set_to_none=True)
        self.model.backbone.config = replace(
            self.model.config, checkpoint_layers=config.model.checkpoint_layers
        )
        room = _memory.moments(self.optimizer, self.model)
        trial(feed_of(config, self.data))
        del room

    def _try_step(self, feed: Feed) -> None:
        feed.backward(self.model, self.progress.step + 1, self._autocast)

    def _try_look(self, feed: Feed) -> None:
        feed.look(self.model)

    # -- one step

    def _step(self, step: int) -> None:
        settings = self.config.train
        began = time.perf_counter()
        rate = optim.learning_rate(settings, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(
            _mix(settings.seed, step)
        )  # dropout is a function of (seed, step): nothing to restore
        loss, tokens = self.feed.backward(self.model, step, self._autocast)
        gradients = [value.grad for value in self.model.parameters() if value.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        _health.check_step(self.model, loss, norm, step, self.last_good)
        torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), settings.clip, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.progress = replace(
            self.progress,
            step=step,
            tokens=self.progress.tokens + tokens,
            seconds=self.progress.seconds + time.perf_counter() - began,
            loss=loss,
        )
        if step % settings.log_every == 0 or step == settings.steps:
            self._record(
                "step",
                step=step,
                tokens=self.progress.tokens,
                loss=loss,
                lr=rate,
                grad_norm=norm.item(),
                seconds=self.progress.seconds,
            )

    def _autocast(self) -> AbstractContextManager[object]:
        half = self.config.train.dtype == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16) if half else nullcontext()

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


def _mix(seed: int, step: int) -> int:
    """A seed for one step of one run. Hashed, because torch's CPU generator reads only its lowest 32 bits."""
    return int.from_bytes(sha256(f"{seed} {step}".encode()).digest()[:8], "little")
