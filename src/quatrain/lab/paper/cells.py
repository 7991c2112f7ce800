"""One cell of a table: train a model with one learning rate and seed, or test it at one length."""

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

from quatrain import checkpoint
from quatrain.config.schema import from_dict
from quatrain.data.config import DataConfig
from quatrain.errors import DivergedError, QuatrainError
from quatrain.lab import curves
from quatrain.lab.leak import leaks
from quatrain.lab.paper import task_class
from quatrain.lab.paper._feed import VALID, Drawn
from quatrain.lab.paper._generator import Generator
from quatrain.lab.paper._score import score
from quatrain.lab.paper.recipe import Contestant, Recipe
from quatrain.model.config import ModelConfig
from quatrain.model.sequence import SequenceModel
from quatrain.train import run_dir
from quatrain.train._signals import StopSignals
from quatrain.train.company import Company, Steps, drive
from quatrain.train.config import RunConfig, TrainConfig
from quatrain.train.loop import stepwise

Row = dict[str, Any]
Events = Callable[[Row], None]
RUNS = "runs"
_LEAK_STEPS = 48  # read when looking for a leak
_LOG_EVERY = 20  # steps between two rows of a run's records: a row costs more than a tiny model's step


@dataclass(frozen=True)
class Job:
    """A piece of work that a process takes; its key names it in the journal."""

    kind: Literal["train", "test"]
    name: str
    lr: float
    seed: int
    length: int = 0
    step: int = 0  # of the checkpoint that is tested; follows from the training, so it is no part of the key

    @property
    def key(self) -> str:
        """Its name in the journal."""
        where = f"{self.kind}/{self.name}/{self.lr!r}/{self.seed}"
        return f"{where}/{self.length}" if self.kind == "test" else where

    @property
    def says(self) -> str:
        """The job in words."""
        what = f"{self.name}, learning rate {self.lr:g}, seed {self.seed}"
        return f"{what}, tested at {self.length:,}" if self.kind == "test" else what


def generator_of(recipe: Recipe) -> Generator:
    """The recipe's task with its settings. Raises ConfigError for a wrong one, and DataError for a file that
    is missing."""
    return from_dict(task_class(recipe.task), recipe.data, "data")


def model_config(recipe: Recipe, name: str, generator: Generator) -> ModelConfig:
    """The model called ``name``, with inputs and outputs as the task has them."""
    values = {"pattern": name, "layers": 1, **recipe.models[name].model}
    if generator.language:
        return from_dict(ModelConfig, {**values, "vocab": generator.vocab}, f"models.{name}.model")
    shape: Row = {"task": "tag", "vocab": generator.vocab, "outputs": generator.outputs}
    return from_dict(ModelConfig, {**values, **shape, "channels": generator.channels}, f"models.{name}.model")


def run_config(recipe: Recipe, job: Job, generator: Generator) -> RunConfig:
    """The training run of a cell."""
    training = recipe.train
    look = training.look_sequences
    settings = TrainConfig(
        steps=recipe.models[job.name].steps or training.steps,
        batch_sequences=training.batch,
        batch_tokens=training.batch * training.high,
        sequence=training.high,
        lr=job.lr,
        warmup=training.warmup,
        lr_floor=training.lr_floor,
        weight_decay=training.weight_decay,
        beta2=training.beta2,
        clip=training.clip,
        dtype=training.dtype,
        seed=job.seed,
        eval_every=training.look_every,
        eval_tokens=look * training.high,
        save_every=training.save_every,
        keep=1,
        log_every=_LOG_EVERY,
    )
    model = model_config(recipe, job.name, generator)
    return RunConfig(model=model, data=DataConfig(source=f"paper:{recipe.task}"), train=settings)


def check(recipe: Recipe) -> Generator:
    """Raise ConfigError for what of a recipe cannot be run, before anything is: models, lengths, rates."""
    generator = generator_of(recipe)
    generator.lengths(recipe.train.lengths)
    for length in recipe.test.lengths:
        generator.check(length)
    for name, contestant in recipe.models.items():
        run_config(recipe, Job("train", name, contestant.learning_rates[0], 0), generator)
    return generator


def lengths(recipe: Recipe, contestant: Contestant) -> tuple[int, ...]:
    """The lengths that a model is tested on."""
    longest = contestant.longest or max(recipe.test.lengths)
    return tuple(length for length in recipe.test.lengths if length <= longest)


def path(out: Path, job: Job) -> Path:
    """Directory of a cell's training run."""
    return out / RUNS / f"{job.name.replace(' ', '-')}-lr{job.lr!r}-seed{job.seed}"


def perform(
    recipe: Recipe, job: Job, out: Path, device: str, events: Events, *, patient: bool = False
) -> Row:
    """Do a job and return its outcome: ``status`` "ok", "diverged", "leak" or "failed", and what was found.

    What a user can mend (a full disk, too little memory, a damaged checkpoint) comes back as "failed" with
    its reason, so that one cell does not end the others. A signal passes through, and a second one stops at
    once unless ``patient``.
    """
    with StopSignals(patient=patient) if job.kind == "train" else nullcontext(StopSignals()) as stop:
        return drive(performing(recipe, job, out, device, events, Company(stop)))


def performing(
    recipe: Recipe, job: Job, out: Path, device: str, events: Events, company: Company
) -> Steps[Row]:
    """`perform`, halting in every training step, beside the other runs of its company."""
    try:
        if job.kind == "test":
            return _test(recipe, job, out, device)
        return (yield from _train(recipe, job, out, device, events, company))
    except DivergedError as error:
        return {"status": "diverged", "reason": str(error).partition("; last good")[0]}
    except (QuatrainError, OSError, MemoryError, RuntimeError) as error:
        reason = "; ".join(str(error).strip().splitlines()[:1]) or type(error).__name__
        return {"status": "failed", "reason": reason}


def _train(recipe: Recipe, job: Job, out: Path, device: str, events: Events, company: Company) -> Steps[Row]:
    generator = generator_of(recipe)
    config, where = run_config(recipe, job, generator), path(out, job)
    data = Drawn(recipe.task, generator, recipe.train)
    began = perf_counter()
    result = yield from stepwise(config, where, events, data=data, threads=1, device=device, company=company)
    seconds = perf_counter() - began
    progress = result.progress
    if not isfinite(progress.best_valid):
        return {"status": "diverged", "reason": f"the validation loss is {progress.best_valid:g}"}
    model = load(out, replace(job, step=progress.best_step))
    leak = leaks(model, min(_LEAK_STEPS, recipe.train.high))
    if leak:
        return {"status": "leak", "reason": leak}
    look = curves.last_look(where / run_dir.RECORDS, progress.best_step)
    return {
        "status": "ok",
        "run": str(where.relative_to(out)),
        "valid_loss": progress.best_valid,
        "merit": progress.best_score,
        **{f"valid_{name}": value for name, value in look.get("metrics", {}).items()},
        "best_step": progress.best_step,
        "steps": progress.step,
        "tokens": progress.tokens,
        "train_seconds": progress.seconds,
        "step_seconds": curves.step_seconds(where / run_dir.RECORDS),
        "overhead_seconds": max(0.0, seconds - progress.seconds),
        "params": sum(parameter.numel() for parameter in model.parameters()),
    }


def _test(recipe: Recipe, job: Job, out: Path, device: str) -> Row:
    from quatrain.model.device import choose
    from quatrain.train import _machine

    generator, length = generator_of(recipe), job.length
    where = choose(device)
    began = perf_counter()
    with _machine.numerics(1, where):
        model = load(out, job).to(where)
        found = score(
            model, generator, "test", seed=VALID, length=length, sequences=recipe.test.count(length)
        )
    if not isfinite(found.loss):
        return {"status": "failed", "reason": f"the test loss is {found.loss:g}"}
    state = model.state_bytes(1, length)
    return {"status": "ok", **found.as_row(), "state_bytes": state, "seconds": perf_counter() - began}


def load(out: Path, job: Job) -> SequenceModel:
    """The model of a cell at a step. Raises CheckpointError where it is missing or damaged."""
    return checkpoint.load(path(out, job) / "checkpoints" / f"step-{job.step:08d}")


def drop(out: Path, job: Job) -> None:
    """Remove the checkpoints of a rate that was not chosen; its records stay."""
    shutil.rmtree(path(out, job) / "checkpoints", ignore_errors=True)
