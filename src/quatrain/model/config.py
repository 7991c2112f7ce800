"""What a model is: mixers in a pattern, sizes, norm and head. Importing this module loads no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Annotated, Any, Literal

from quatrain.config.check import check

TASK_NAMES = ("lm", "classify", "forecast", "tag", "transcribe")
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)  # of a forecast, beside its mean
FORECAST_WIDTH = 1 + len(QUANTILES)  # numbers for one value of a forecast


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A stack of mixers between an embedding and a head.

    ``task``, ``channels``, ``outputs`` and ``horizon`` say what goes in and what comes out; the data decides
    them (see `resolved`). With ``channels`` = 0 a step is one of ``vocab`` tokens, else that many numbers.

    ``pattern`` is repeated until there are ``layers`` kinds: ``"s6 s6 attention"`` with 7 layers ends in one
    s6. Sizes that follow from others are properties. Raises ConfigError where a value is out of range, a kind
    is unknown, or two settings contradict each other.
    """

    task: Annotated[
        Literal["lm", "classify", "forecast", "tag", "transcribe"], "what the head says; set by the data"
    ] = "lm"
    vocab: Annotated[int, "number of different tokens; 256 for bytes"] = 256
    channels: Annotated[int, "numbers of one step; 0: a step is a token; set by the data"] = 0
    outputs: Annotated[int, "numbers the head gives; 0: the vocabulary; set by the data"] = 0
    horizon: Annotated[int, "steps that a forecast reaches; set by the data"] = 0
    anchors: Annotated[
        int, "leading channels that a forecast starts from and the mixers do not see; set by the data"
    ] = 0
    pool: Annotated[Literal["mean", "max", "last"], "how a class is read from all steps"] = "mean"
    width: Annotated[int, "numbers that describe one token between layers"] = 256
    layers: Annotated[int, "number of mixers, one after the other"] = 4
    pattern: Annotated[str, "kinds of mixers, separated by spaces, repeated until there are enough"] = "s6"
    mlp: Annotated[Literal["auto", "gated", "none"], "MLP after each mixer; auto: after attention only"] = (
        "auto"
    )
    mlp_ratio: Annotated[float, "inner width of the MLP as a multiple of width"] = 8 / 3
    form: Annotated[
        Literal["residual", "stack"], "stack: no norms and no residuals, as in a classic LSTM"
    ] = "residual"
    tied: Annotated[bool, "head and embedding are one matrix"] = True
    dropout: Annotated[float, "probability of dropping a number of a layer's output, in [0, 1)"] = 0.0
    norm_eps: Annotated[float, "added to the mean square before its root"] = 1e-5
    checkpoint_layers: Annotated[
        bool, "recompute each layer in the backward pass: less memory, more time"
    ] = False
    mixer: Annotated[Mapping[str, Mapping[str, object]], "settings per kind, e.g. mixer.s6.state = 32"] = (
        field(default_factory=dict)
    )

    def __post_init__(self) -> None:
        for name in ("vocab", "width", "layers"):
            check(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "must be at least 1")
        for name in ("channels", "outputs", "horizon", "anchors"):
            check(getattr(self, name) >= 0, f"model.{name}", getattr(self, name), "must be 0 or more")
        check(self.task in TASK_NAMES, "model.task", self.task, f"must be one of {', '.join(TASK_NAMES)}")
        check(self.pool in ("mean", "max", "last"), "model.pool", self.pool, "must be one of mean, max, last")
        self._check_task()
        ratio = self.mlp_ratio
        check(ratio > 0 and isfinite(ratio), "model.mlp_ratio", ratio, "must be positive and finite")
        check(0 <= self.dropout < 1, "model.dropout", self.dropout, "is a probability in [0, 1)")
        check(
            self.norm_eps > 0 and isfinite(self.norm_eps),
            "model.norm_eps",
            self.norm_eps,
            "must be positive and finite",
        )
        check(
            self.mlp in ("auto", "gated", "none"), "model.mlp", self.mlp, "must be one of auto, gated, none"
        )
        check(self.form in ("residual", "stack"), "model.form", self.form, "must be one of residual, stack")
        plain = self.form == "stack" and self.mlp == "gated"
        check(not plain, "model.mlp", self.mlp, "contradicts model.form = 'stack', which has no MLPs")
        self._check_pattern()
        object.__setattr__(self, "mixer", {kind: dict(values) for kind, values in self.mixer.items()})
        self._check_mixers()

    def _check_task(self) -> None:
        if self.task == "lm":
            for name in ("channels", "outputs", "horizon", "anchors"):
                check(
                    getattr(self, name) == 0, f"model.{name}", getattr(self, name), "is 0 in a language model"
                )
            return
        check(self.outputs >= 1, "model.outputs", self.outputs, f"must be at least 1 for task {self.task}")
        rule = "is 0 where nothing is forecast"
        check(self.task == "forecast" or self.anchors == 0, "model.anchors", self.anchors, rule)
        if self.task == "forecast":
            check(self.horizon >= 1, "model.horizon", self.horizon, "must be at least 1 in a forecast")
            each = self.horizon * FORECAST_WIDTH
            rule = f"must be below model.channels = {self.channels}"
            check(self.anchors < self.channels, "model.anchors", self.anchors, rule)
            proper = self.outputs % each == 0 and 1 <= self.outputs // each <= self.channels
            rule = f"must be a multiple of model.horizon x {FORECAST_WIDTH} for 1 to {self.channels} channels"
            check(proper, "model.outputs", self.outputs, rule)

    def _check_pattern(self) -> None:
        from quatrain.mixers import MIXERS, did_you_mean

        named = self.pattern.split()
        check(bool(named), "model.pattern", self.pattern, f"must name at least one of {', '.join(MIXERS)}")
        for kind in named:
            rule = f"{kind!r} is none of {', '.join(MIXERS)}{did_you_mean(kind)}"
            check(kind in MIXERS, "model.pattern", self.pattern, rule)
        check(
            self.layers >= len(named),
            "model.layers",
            self.layers,
            f"must be at least {len(named)}, the length of model.pattern = {self.pattern!r}",
        )

    def _check_mixers(self) -> None:
        for kind, values in self.mixer.items():
            known = kind in self.kinds
            check(known, f"model.mixer.{kind}", values, f"is not part of model.pattern = {self.pattern!r}")
            clash = "width" in values
            check(not clash, f"model.mixer.{kind}.width", values.get("width"), "is set by model.width")
            self.mixer_config(kind)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kind of the mixer in each layer."""
        named = self.pattern.split()
        return tuple(named[layer % len(named)] for layer in range(self.layers))

    @property
    def inner(self) -> int:
        """Inner width of a gated MLP: ``mlp_ratio * width``; the nearest multiple of 8 unless it is whole."""
        exact = self.mlp_ratio * self.width
        if abs(exact - round(exact)) < 1e-6:
            return max(1, round(exact))
        return max(8, 8 * round(exact / 8))

    @property
    def draws(self) -> bool:
        """Whether training draws random numbers in the layers: dropout of either kind."""
        return bool(self.dropout) or any(values.get("recurrent_dropout") for values in self.mixer.values())

    @property
    def has_tied_head(self) -> bool:
        """Whether the head is the embedding: it gives next tokens only."""
        return self.tied and self.task == "lm"

    @property
    def head_outputs(self) -> int:
        """Numbers that the head gives for one vector: the vocabulary, or what the task needs."""
        return self.vocab if self.task == "lm" else self.outputs

    @property
    def read_channels(self) -> int:
        """Numbers of a step that the input projection reads."""
        return self.channels - self.anchors

    @property
    def target_channels(self) -> int:
        """Channels that a forecast is made of, the first ones of the input."""
        return self.outputs // (self.horizon * FORECAST_WIDTH) if self.horizon else 0

    def mixer_config(self, kind: str) -> Any:
        """The config of the mixers of one kind. Raises ConfigError for an unknown or wrong setting."""
        from quatrain.config.schema import from_dict
        from quatrain.mixers import mixer_class

        values = {"width": self.width, **self.mixer.get(kind, {})}
        return from_dict(mixer_class(kind).Config, values, f"model.mixer.{kind}")

    def has_mlp(self, kind: str) -> bool:
        """Whether a gated MLP follows each mixer of this kind."""
        from quatrain.mixers import mixer_class

        if self.form == "stack" or self.mlp == "none":
            return False
        return self.mlp == "gated" or mixer_class(kind).gated_mlp
