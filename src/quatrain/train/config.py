"""What one training run is: the model, the data and how it is optimised."""

from dataclasses import dataclass, field
from math import isfinite
from typing import Annotated, Literal

from quatrain.config.check import check
from quatrain.data.config import DataConfig
from quatrain.model.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How one run is optimised. Only free choices are fields; what follows from them is a property.

    Raises ConfigError where a value is out of range or two contradict each other.
    """

    steps: Annotated[int, "optimiser steps"] = 1000
    batch_tokens: Annotated[int, "tokens of one optimiser step, over all its micro-batches"] = 4096
    sequence: Annotated[int, "tokens of one training sequence"] = 256
    batch_sequences: Annotated[int, "labelled sequences of one optimiser step (not of lm and forecast)"] = 32
    accumulate: Annotated[int, "micro-batches of one optimiser step; more need less memory"] = 1
    carry_state: Annotated[bool, "truncated backpropagation: read the text in order, keep the state"] = False
    lr: Annotated[float, "learning rate after the warm-up"] = 2e-3
    warmup: Annotated[float, "fraction of the steps over which the learning rate rises, in [0, 1)"] = 0.05
    lr_floor: Annotated[float, "learning rate of the last step as a fraction of lr, in [0, 1]"] = 0.1
    weight_decay: Annotated[float, "decay of matrices; gains, biases and embeddings have none"] = 0.1
    beta1: Annotated[float, "AdamW's memory of the gradient, in [0, 1)"] = 0.9
    beta2: Annotated[float, "AdamW's memory of its square, in [0, 1)"] = 0.98
    clip: Annotated[float, "largest global gradient norm; inf turns clipping off"] = 1.0
    dtype: Annotated[Literal["float32", "bfloat16"], "of matrix products; weights stay float32"] = "float32"
    init_from: Annotated[
        str, "a checkpoint whose weights the run begins with; empty: they are drawn from the seed"
    ] = ""
    seed: Annotated[int, "of the weights, the order of the data and dropout"] = 0
    eval_every: Annotated[int, "steps between two looks at the validation part"] = 100
    eval_tokens: Annotated[int, "tokens of one look at the validation part"] = 16_384
    save_every: Annotated[int, "steps between two checkpoints; a new best one is always kept"] = 100
    keep: Annotated[int, "checkpoints kept beside the best one"] = 2
    log_every: Annotated[int, "steps between two rows of the records"] = 1

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "sequence",
            "batch_sequences",
            "accumulate",
            "eval_every",
            "eval_tokens",
            "save_every",
            "keep",
            "log_every",
        ):
            check(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "must be at least 1")
        rows = self.sequence * self.accumulate
        check(
            self.batch_tokens >= 1 and self.batch_tokens % rows == 0,
            "train.batch_tokens",
            self.batch_tokens,
            f"must be a multiple of train.sequence x train.accumulate = {self.sequence} x {self.accumulate}",
        )
        check(self.lr > 0 and isfinite(self.lr), "train.lr", self.lr, "must be positive and finite")
        check(0 <= self.warmup < 1, "train.warmup", self.warmup, "is a fraction of the steps in [0, 1)")
        check(0 <= self.lr_floor <= 1, "train.lr_floor", self.lr_floor, "is a fraction of train.lr in [0, 1]")
        decay = self.weight_decay
        check(decay >= 0 and isfinite(decay), "train.weight_decay", decay, "must be 0 or more and finite")
        for name in ("beta1", "beta2"):
            check(0 <= getattr(self, name) < 1, f"train.{name}", getattr(self, name), "must lie in [0, 1)")
        check(self.clip > 0, "train.clip", self.clip, "must be positive; inf turns clipping off")
        check(0 <= self.seed < 2**31, "train.seed", self.seed, "must lie in [0, 2**31)")

    @property
    def batch(self) -> int:
        """Sequences of one optimiser step."""
        return self.batch_tokens // self.sequence

    @property
    def warmup_steps(self) -> int:
        """Steps over which the learning rate rises."""
        return round(self.warmup * self.steps)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run's numbers, given a machine. Its digest names the run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
