"""What one comparison is, as a person asks for it."""

from dataclasses import dataclass, field
from itertools import pairwise
from math import inf, isfinite
from typing import Annotated

from quatrain.config.check import check, closest
from quatrain.train.config import DataConfig

CONTEXTS = (128, 256, 512, 1024, 2048, 4096, 8192, 16_384)


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Everything that decides what is compared, and how; its digest names the comparison.

    Either ``budget_seconds`` or ``budget_tokens`` is finite: seconds are turned once into tokens per model,
    by a calibration on the machine at hand. Raises ConfigError where a value is out of range.
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
    seeds: Annotated[int, "runs of each model at its chosen learning rate; one is a quick look"] = 1
    learning_rates: Annotated[tuple[float, ...], "the grid, the same for each"] = (1e-3, 3e-3, 1e-2)
    rung: Annotated[float, "fraction of the run after which the learning rate is chosen"] = 0.25
    sequence: Annotated[int, "tokens of one training sequence, and of one window of the test"] = 256
    batch: Annotated[int, "sequences of one optimiser step"] = 8
    contexts: Annotated[tuple[int, ...], "contexts at which a generated token is timed"] = CONTEXTS
    evaluation_seconds: Annotated[float, "most time for everything but training, roughly"] = 200.0

    def __post_init__(self) -> None:
        self._check_mixers()
        for name in ("params", "seeds", "sequence", "batch"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        check(self.seeds <= 1000, "seeds", self.seeds, "must be at most 1000")
        seconds, tokens = self.budget_seconds, self.budget_tokens
        check(seconds > 0, "budget_seconds", seconds, "must be positive")
        check(tokens > 0, "budget_tokens", tokens, "must be positive")
        one = isfinite(seconds) != isfinite(tokens)
        check(one, "budget_tokens", tokens, f"contradicts budget_seconds = {seconds}: one must be finite")
        rates = self.learning_rates
        check(
            len(rates) > 0 and all(rate > 0 and isfinite(rate) for rate in rates),
            "learning_rates",
            list(rates),
            "must be positive and finite, at least one",
        )
        rising = all(low < high for low, high in pairwise(rates))
        check(rising, "learning_rates", list(rates), "must rise, each one once")
        check(0 < self.rung <= 1, "rung", self.rung, "is a fraction of the run in (0, 1]")
        rising = all(low < high for low, high in pairwise((0, *self.contexts)))
        check(len(self.contexts) > 0 and rising, "contexts", list(self.contexts), "must be positive and rise")
        enough = self.evaluation_seconds > 0 and isfinite(self.evaluation_seconds)
        check(enough, "evaluation_seconds", self.evaluation_seconds, "must be positive and finite")

    def _check_mixers(self) -> None:
        from quatrain.mixers import MIXERS

        check(len(self.mixers) > 0, "mixers", list(self.mixers), f"must name some of {', '.join(MIXERS)}")
        for mixer in self.mixers:
            for kind in mixer.split() or [mixer]:
                known = kind in MIXERS
                check(known, "mixers", kind, f"must be of {', '.join(MIXERS)}{closest(kind, MIXERS)}")
        plain = [" ".join(mixer.split()) for mixer in self.mixers]
        check(len(set(plain)) == len(plain), "mixers", list(self.mixers), "names one of them twice")
        object.__setattr__(self, "mixers", tuple(plain))
        object.__setattr__(self, "learning_rates", tuple(map(float, self.learning_rates)))
