"""What a comparison is judged by: the first metric of its task, in words, and which end of it is good."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from quatrain.report import numbers
from quatrain.report.numbers import NBSP

_SHORT = {
    "accuracy": "Accuracy",
    "f1": "Macro F1",
    "mse": "MSE",
    "mae": "MAE",
    "rmse": "RMSE",
    "quantile": "Quantile loss",
    "mase": "MASE",
    "cer": "CER",
    "wer": "WER",
}


class Measure(NamedTuple):
    """One metric: ``key`` names its test values in an `Entry`, ``valid`` those of the validation part."""

    name: str
    says: str
    lower: bool = True
    percent: bool = False

    @property
    def key(self) -> str:
        """Where an entry keeps its values on the test part."""
        return "test_loss" if self.name == "nats" else f"test_{self.name}"

    @property
    def valid(self) -> str:
        """Where an entry keeps its values on the validation part."""
        return "valid_loss" if self.name == "nats" else f"valid_{self.name}"

    @property
    def title(self) -> str:
        """A few letters for a heading: ``MSE``."""
        return _SHORT.get(self.name, self.says)

    @property
    def better(self) -> str:
        """Which way is good, in words."""
        return "less is better" if self.lower else "more is better"

    def show(self, value: float) -> str:
        """A value with its unit: ``97.8 %``, ``0.312``."""
        return f"{100 * value:.1f}{NBSP}%" if self.percent else _plain(value)

    def words(self, value: float) -> str:
        """A value and what it is: ``97.8 % accuracy``."""
        return f"{self.show(value)} {self.says}"

    def merit(self, value: float) -> float:
        """The value such that less is better."""
        return value if self.lower else -value

    def apart(self, better: float, worse: float) -> str:
        """How far two values are from each other: points of a share, else a fraction of the worse one."""
        if self.percent:
            points = f"{100 * abs(better - worse):.1f}"
            return f"{points} point" + ("" if points == "1.0" else "s")
        return numbers.percent(abs(worse - better) / abs(worse)) if worse else numbers.percent(0.0)


def _plain(value: float) -> str:
    return numbers.loss(value) if abs(value) < 100 else numbers.significant(value, 4)


NATS = Measure("nats", "nats per token")


def measures(about: Mapping[str, Any]) -> tuple[Measure, ...]:
    """The metrics of a comparison, the first one decides; nats per token where the record names none."""
    listed = about.get("metrics")
    found = [
        Measure(
            str(metric["name"]),
            str(metric.get("says") or metric["name"]),
            bool(metric.get("lower", True)),
            bool(metric.get("percent", False)),
        )
        for metric in (listed if isinstance(listed, list | tuple) else [])
        if isinstance(metric, Mapping) and metric.get("name")
    ]
    return tuple(found) or (NATS,)


class Words(NamedTuple):
    """What one input is called, and the loss and its unit: ``token``, ``nats per token``."""

    step: str
    unit: str
    reach: str


_REACH = {
    "lm": (
        "Norm of the gradient of the last token's loss with respect to the input k tokens earlier, on a log "
        "scale. A line that falls straight forgets exponentially; a flat one still listens to the far past."
    ),
    "forecast": (
        "Norm of the gradient of the last step's forecast loss with respect to the input k steps earlier, on "
        "a log scale. A line that falls straight forgets exponentially; a flat one still listens to the far "
        "past."
    ),
    "tag": (
        "Norm of the gradient of the last step's tag loss with respect to the input k steps earlier, on a "
        "log scale. A line that falls straight forgets exponentially; a flat one still listens to the past."
    ),
    "classify": (
        "Norm of the gradient of the loss of the class with respect to the input k steps before the end, on "
        "a log scale. The class is read from all steps, so every step has a short way to it, and no line "
        "falls as it would if only the last step counted."
    ),
    "transcribe": (
        "Norm of the gradient of the transcript's loss with respect to the input k steps before the end, on "
        "a log scale. Every step says a symbol or a blank, so every step has a short way to the loss."
    ),
}


def words(about: Mapping[str, Any]) -> Words:
    """The words of a comparison's task; those of a language model where the record names none."""
    task = str(about.get("task") or "lm")
    unit = str(about.get("unit") or "nats per token")
    return Words("token" if task == "lm" else "step", unit, _REACH.get(task, _REACH["lm"]))
