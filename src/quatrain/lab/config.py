"""What one comparison is, as a person asks for it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import inf, isfinite
from typing import Annotated, Literal

from quatrain.data.config import DataConfig
from quatrain.errors import ConfigError

LEAST_STEPS = 20  # of a run; below, it is all warm-up
SEQUENCE, BATCH = 256, 8  # of a text, where nothing else is asked for
CONTEXTS = (128, 256, 512, 1024, 2048, 4096, 8192, 16_384)


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Everything that decides what is compared, and how; its digest names the comparison.

    Either ``budget_seconds`` or ``budget_tokens`` is finite: seconds are turned once into tokens per model,
    by a calibration on the machine at hand. ``sequence`` and ``batch`` that are 0 become 256 and 8 for a
    text; for other data `quatrain.lab.sequences` chooses them. Raises one ConfigError that lists every value
    out of range.
    """

    data: DataConfig = field(default_factory=DataConfig)
    mixers: Annotated[tuple[str, ...], "architectures, or patterns of them such as 's6 s6 attention'"] = (
        "rnn",
        "lstm",
        "attention",
        "s6",
    )
    params: Annotated[int, "parameters of each model, without embedding"] = 1_000_000
    budget_seconds: Annotated[float, "training time in all, over mixers, learning rates and seeds"] = 600.0
    budget_tokens: Annotated[float, "tokens that each model is trained on, in place of a time"] = inf
    equal: Annotated[
        Literal["auto", "tokens", "time", "both"],
        "what all models get alike: tokens, training time, or both, one after the other; auto: both for a "
        "budget in seconds, tokens for one in tokens",
    ] = "auto"
    seeds: Annotated[int, "runs of each model at its chosen learning rate; one is a quick look"] = 1
    learning_rates: Annotated[tuple[float, ...], "the grid, the same for each"] = (1e-3, 3e-3, 1e-2)
    rung: Annotated[float, "fraction of the run after which the learning rate is chosen"] = 0.25
    sequence: Annotated[int, "tokens of one training sequence and one test window; 0: as the data asks"] = 0
    batch: Annotated[int, "sequences of one optimiser step; 0: as the data asks"] = 0
    dropout: Annotated[float, "of every model; helps where little data is read many times"] = 0.0
    contexts: Annotated[tuple[int, ...], "contexts at which one more step is timed"] = CONTEXTS
    context: Annotated[int, "longest window of the loss by position; 0: four times the sequence"] = 0
    evaluation_seconds: Annotated[float, "most time for everything but training, roughly"] = 200.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "mixers", tuple(" ".join(mixer.split()) for mixer in self.mixers))
        problems = [f"{key} = {_shown(value)}: {rule}" for ok, key, value, rule in self._rules() if not ok]
        if problems:
            raise ConfigError("\n".join(problems))

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the comparison in order: "tokens", "time"; the first chooses the learning rates."""
        alike = {"tokens": ("tokens",), "time": ("time",), "both": ("tokens", "time")}
        auto = "both" if isfinite(self.budget_seconds) else "tokens"
        return alike[auto if self.equal == "auto" else self.equal]

    def _rules(self) -> Iterator[tuple[bool, str, object, str]]:
        """(holds, key, value, what must hold) of every rule that can be broken here."""
        from quatrain.mixers import MIXERS, did_you_mean

        names = ", ".join(MIXERS)
        yield len(self.mixers) > 0, "mixers", self.mixers, f"must name some of {names}"
        for kind in dict.fromkeys(kind for mixer in self.mixers for kind in mixer.split() or [mixer]):
            yield kind in MIXERS, "mixers", kind, f"must be one of {names}{did_you_mean(kind)}"
        yield len(set(self.mixers)) == len(self.mixers), "mixers", self.mixers, "names one of them twice"
        for name in ("params", "seeds"):
            yield getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1"
        for name in ("sequence", "batch"):
            yield (
                getattr(self, name) >= 0,
                name,
                getattr(self, name),
                "must be at least 1; 0 lets the data choose",
            )
        yield self.seeds <= 1000, "seeds", self.seeds, "must be at most 1000"
        seconds, tokens = self.budget_seconds, self.budget_tokens
        yield seconds > 0, "budget_seconds", seconds, "must be positive"
        batch, sequence = self.batch or BATCH, self.sequence or SEQUENCE
        known = bool(self.batch) == bool(self.sequence)  # else the data decides how much a step is
        least = LEAST_STEPS * batch * sequence if known else 1
        rule = f"must be at least {least}, {LEAST_STEPS} steps of {batch} x {sequence} tokens"
        shown = int(tokens) if isfinite(tokens) else tokens
        yield tokens >= least, "budget_tokens", shown, rule
        one = isfinite(seconds) != isfinite(tokens)
        yield one, "budget_tokens", shown, f"contradicts budget_seconds = {seconds}: one must be finite"
        yield 0 <= self.dropout < 1, "dropout", self.dropout, "is a probability in [0, 1)"
        rates = self.learning_rates
        fine = len(rates) > 0 and all(rate > 0 and isfinite(rate) for rate in rates)
        yield fine, "learning_rates", rates, "must be positive and finite, at least one"
        yield _rise(rates), "learning_rates", rates, "must rise, each one once"
        yield 0 < self.rung <= 1, "rung", self.rung, "is a fraction of the run in (0, 1]"
        fine = len(self.contexts) > 0 and _rise((0, *self.contexts))
        yield fine, "contexts", self.contexts, "must be positive and rise"
        context, rule = self.context, f"must be more than the {sequence} tokens of training, or 0"
        yield context == 0 or context > sequence, "context", context, rule
        limit = self.evaluation_seconds
        yield limit > 0 and isfinite(limit), "evaluation_seconds", limit, "must be positive and finite"


def for_text(config: CompareConfig) -> CompareConfig:
    """``config`` with the numbers that a text takes where they were left open."""
    if config.sequence and config.batch:
        return config
    return replace(config, sequence=config.sequence or SEQUENCE, batch=config.batch or BATCH)


def _rise(numbers: Sequence[float]) -> bool:
    return all(low < high for low, high in pairwise(numbers))


def _shown(value: object) -> str:
    return repr(list(value) if isinstance(value, tuple) else value)
