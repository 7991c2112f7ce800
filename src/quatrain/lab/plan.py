"""From what is asked to what is done: sizes, tokens, steps. Decided once and kept in ``manifest.json``."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from math import ceil, inf, isfinite
from pathlib import Path
from statistics import fmean
from typing import Literal

from quatrain._files import write_atomic
from quatrain.config.check import check
from quatrain.config.schema import digest, from_dict, to_dict
from quatrain.errors import ConfigError, DataError
from quatrain.lab.calibrate import Speed
from quatrain.lab.config import LEAST_STEPS, CompareConfig, for_text

MANIFEST = "manifest.json"
_LOOKS = 2  # at the validation part before the learning rate is chosen
_SAVE_SECONDS = 30.0  # training that a kill can cost, about
_TEST_SHARE, _COST_SHARE, SWEEP_SHARE = 0.2, 0.5, 0.2  # of the time for evaluation


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a comparison does, in steps and tokens: nothing in it is decided again when it goes on.

    ``models`` are the configs of the models by mixer, ``speeds`` the calibration by mixer. ``time_steps`` are
    the steps of each mixer where all train for the same time, ``time_seconds``; empty where none do.
    """

    format: Literal["quatrain comparison"] = "quatrain comparison"
    version: Literal[1] = 1
    id: str
    started: str
    config_digest: str
    data_digest: str
    threads: int
    models: Mapping[str, Mapping[str, object]]
    speeds: Mapping[str, Mapping[str, object]]
    calibration_seconds: float
    batch_tokens: int
    steps: int
    rung_steps: int
    eval_every: int
    eval_tokens: int
    save_every: int
    test_tokens: int
    time_steps: Mapping[str, int] = field(default_factory=dict)
    time_seconds: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens that each model is trained on."""
        return self.steps * self.batch_tokens

    def speed(self, mixer: str) -> Speed:
        """The calibration of one mixer."""
        return from_dict(Speed, self.speeds[mixer])

    def part(self, part: str, mixer: str) -> "Plan":
        """The plan as one mixer follows it in a part: its own number of steps where time is equal."""
        return self if part == "tokens" else self.timed(self.time_steps[mixer])

    def timed(self, steps: int) -> "Plan":
        """The plan of a run of so many steps, with as many looks and saves along the way."""
        eval_every = max(1, round(steps * self.eval_every / self.steps))
        return replace(
            self,
            steps=steps,
            eval_every=eval_every,
            rung_steps=min(steps, _LOOKS * eval_every),
            save_every=max(1, min(eval_every, self.save_every)),
        )

    def train_seconds(self, mixer: str, first: int, last: int) -> float:
        """How long steps ``first + 1 .. last`` of a mixer should take."""
        return (last - first) * self.speed(mixer).step_seconds


def seconds_per_token(config: CompareConfig, speeds: Mapping[str, Speed]) -> float:
    """Training time of the whole comparison per token of one model: every learning rate runs to the rung, the
    chosen one to the end, and further seeds to the end; where time is equal as well, every seed trains once
    more, and all models together for as long as before.
    """
    runs = config.seeds * len(config.parts) + (len(config.learning_rates) - 1) * config.rung
    tokens = config.sequence * config.batch
    return runs * sum(speed.step_seconds / tokens for speed in speeds.values())


def make(
    config: CompareConfig,
    *,
    data_digest: str,
    threads: int,
    models: Mapping[str, Mapping[str, object]],
    speeds: Mapping[str, Speed],
    calibration_seconds: float,
    test_total: int,
) -> Plan:
    """Turn the budget into steps by the measured speeds. Raises ConfigError for one that is too small."""
    config = for_text(config)  # a study of other data has chosen already
    batch_tokens = config.sequence * config.batch
    per_token = seconds_per_token(config, speeds)
    tokens = config.budget_tokens if isfinite(config.budget_tokens) else config.budget_seconds / per_token
    steps = int(tokens // batch_tokens)
    if steps < LEAST_STEPS and isfinite(config.budget_tokens):
        rule = f"must be at least {LEAST_STEPS * batch_tokens}, {LEAST_STEPS} steps of {batch_tokens} each"
        raise ConfigError(f"budget_tokens = {int(config.budget_tokens)}: {rule}")
    if steps < LEAST_STEPS:
        needs = ceil(LEAST_STEPS * batch_tokens * per_token)
        raise ConfigError(
            f"budget_seconds = {config.budget_seconds:g}: gives each model {steps} steps of {batch_tokens} "
            f"tokens; {LEAST_STEPS} are the least, which need {needs} s at the speed measured now"
        )
    time_seconds, time_steps = _equal_time(config, speeds, tokens) if "time" in config.parts else (0.0, {})
    eval_every = max(1, round(steps * config.rung / _LOOKS))
    slowest = max(speed.step_seconds for speed in speeds.values())
    now = datetime.now(UTC)
    name = digest(config)
    return Plan(
        id=f"{name}-{now:%Y%m%dT%H%M%SZ}",
        started=now.isoformat(timespec="seconds"),
        config_digest=name,
        data_digest=data_digest,
        threads=threads,
        models=models,
        speeds={mixer: asdict(speed) for mixer, speed in speeds.items()},
        calibration_seconds=calibration_seconds,
        batch_tokens=batch_tokens,
        steps=steps,
        rung_steps=min(steps, _LOOKS * eval_every),
        eval_every=eval_every,
        eval_tokens=min(65_536, max(8192, steps * batch_tokens // 50)),
        save_every=max(1, min(eval_every, int(_SAVE_SECONDS / slowest))),
        test_tokens=_test_tokens(config, speeds, test_total),
        time_steps=time_steps,
        time_seconds=time_seconds,
    )


def _equal_time(
    config: CompareConfig, speeds: Mapping[str, Speed], tokens: float
) -> tuple[float, dict[str, int]]:
    """The training time that models with ``tokens`` each take on average, and the steps each makes in it.
    Raises ConfigError where that are too few.
    """
    seconds = tokens / (config.sequence * config.batch) * fmean(s.step_seconds for s in speeds.values())
    steps = {mixer: int(seconds / speed.step_seconds + 1e-9) for mixer, speed in speeds.items()}
    slow = min(steps, key=lambda mixer: steps[mixer])
    if steps[slow] < LEAST_STEPS:
        more = LEAST_STEPS * speeds[slow].step_seconds / seconds
        key = "budget_seconds" if isfinite(config.budget_seconds) else "budget_tokens"
        raise ConfigError(
            f"{key} = {getattr(config, key):g}: {slow} makes {steps[slow]} steps in the training time of the "
            f"others; {LEAST_STEPS} are the least, which need {ceil(more * getattr(config, key))}; or give "
            f"equal = 'tokens'"
        )
    return seconds, steps


def _test_tokens(config: CompareConfig, speeds: Mapping[str, Speed], total: int) -> int:
    """Tokens of the test part that the time allows: read in windows, with carried state, and as many of the
    validation part."""
    each = 3 * config.seeds * len(config.parts) * sum(speed.forward_seconds for speed in speeds.values())
    allowed = _TEST_SHARE * config.evaluation_seconds / each if each > 0 else inf
    return int(min(total, max(allowed, 16 * config.sequence)))


def cost_seconds(config: CompareConfig) -> float:
    """Time for measuring tokens at all contexts, for one mixer."""
    return _COST_SHARE * config.evaluation_seconds / len(config.mixers)


def check_sizes(config: CompareConfig, sizes: Mapping[str, int]) -> None:
    """Raise ConfigError where two models differ by more than 2 % in parameters."""
    small, large = min(sizes, key=lambda m: sizes[m]), max(sizes, key=lambda m: sizes[m])
    alike = sizes[large] <= 1.02 * sizes[small]
    found = f"{small} has {sizes[small]}, {large} {sizes[large]}"
    check(alike, "params", config.params, f"no models within 2 % of each other: {found}; choose another")


def load_or_make(path: Path, threads: int | None, data_digest: str, new: Callable[[], Plan]) -> Plan:
    """The plan in ``path``, or a new one, which is written there.

    Raises ConfigError where the plan there is for other threads, DataError where it is damaged or for other
    data.
    """
    if not path.exists():
        plan = new()
        write_atomic(path, json.dumps(to_dict(plan), indent=2, ensure_ascii=True) + "\n")
        return plan
    try:
        plan = from_dict(Plan, json.loads(path.read_bytes()))
    except (ValueError, ConfigError) as error:
        raise DataError(f"{path}: is no plan of a comparison: {'; '.join(str(error).splitlines())}") from None
    same = threads is None or threads == plan.threads
    check(same, "threads", threads, f"the comparison in '{path.parent}' began with {plan.threads}")
    if plan.data_digest != data_digest:
        raise DataError(f"{path}: was made for data with digest {plan.data_digest[:12]}, not this one")
    return plan
