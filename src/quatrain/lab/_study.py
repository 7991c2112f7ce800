"""What a comparison asks of its task. `quatrain.lab.text` and `quatrain.lab.sequences` answer."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from quatrain.config.schema import to_dict
from quatrain.data.prepare import Data, prepare
from quatrain.data.task import Task
from quatrain.data.tokens import TokenFile
from quatrain.lab.calibrate import STEPS
from quatrain.lab.config import CompareConfig
from quatrain.model.config import ModelConfig
from quatrain.model.count import parameters
from quatrain.model.sequence import SequenceModel
from quatrain.train.config import RunConfig

if TYPE_CHECKING:
    from quatrain.lab.plan import Plan

Row = dict[str, Any]


class Study(Protocol):
    """Everything that is particular to the task of a comparison.

    Attributes:
        task: its row in `quatrain.data.task.TASKS`.
        config: the comparison, with ``sequence`` and ``batch`` as the data needs them: their product is how
            many tokens, or steps of sequences, an optimiser step reads (a mean where lengths differ).
        sweeps: whether contexts longer than those of training are swept.
    """

    task: Task
    config: CompareConfig
    sweeps: bool

    @property
    def data(self) -> Data:
        """The prepared data, read by every run."""

    @property
    def train_tokens(self) -> int:
        """Tokens or steps of an epoch."""

    @property
    def test_total(self) -> int:
        """Tokens or steps that can be scored."""

    def says(self) -> str:
        """How the data is taken, for the line that tells the plan; may be empty."""

    def describe(self) -> Row:
        """The data, for the record."""

    def model(self, mixer: str) -> ModelConfig:
        """A model of the size asked for. Raises ConfigError where there is none."""

    def run(self, model: ModelConfig, lr: float, seed: int, plan: "Plan") -> RunConfig:
        """The training run of one model, learning rate and seed."""

    def trial(self, model: ModelConfig) -> RunConfig:
        """A few steps, for calibration."""

    def merit(self, look: Mapping[str, Any]) -> float:
        """What a row of a look at the validation part is judged by: less is better."""

    def baselines(self, plan: "Plan") -> list[Row]:
        """Rows of the trivial baselines, scored on what the models are scored on."""

    def score(self, model: SequenceModel, plan: "Plan") -> Row:
        """Fields of a result: ``test_loss``, ``valid_loss``, ``metrics``, ``valid_metrics``, and how much
        was scored."""

    def context(self, length: int) -> Tensor:
        """An input of ``length`` steps, ``(T,)`` tokens or ``(T, C)``, for timing."""

    def sweep(
        self, model: SequenceModel | None, plan: "Plan", models: Mapping[str, ModelConfig]
    ) -> tuple[list[tuple[str, Row]], str]:
        """Rows "position" and "far" of contexts longer than those of training, and why there are none."""

    def reach(self, model: SequenceModel) -> dict[int, float]:
        """How much the loss depends on the input k steps before the last one, by k."""

    def samples(self, model: SequenceModel) -> list[Row]:
        """What the model answers, to be looked at: rows whose ``form`` says what they hold."""


def study_of(config: CompareConfig, folder: Path) -> Study:
    """Prepare the data in ``folder`` and take it for its task. Raises DataError, ConfigError."""
    data = prepare(config.data, folder)
    if isinstance(data, TokenFile):
        from quatrain.lab.text import TextTask

        return TextTask(config, data)
    from quatrain.lab.sequences import SequenceTask

    return SequenceTask(config, data)


def planned(plan: "Plan", lr: float, seed: int, eval_tokens: int) -> Row:
    """Settings of training that the plan decides."""
    return {
        "steps": plan.steps,
        "lr": lr,
        "seed": seed,
        "eval_every": plan.eval_every,
        "eval_tokens": eval_tokens,
        "save_every": plan.save_every,
    }


def few_steps(config: CompareConfig, eval_tokens: int) -> Row:
    """Settings of training for calibration."""
    once = {"steps": STEPS, "eval_every": STEPS, "save_every": STEPS}
    return once | {"lr": config.learning_rates[0], "seed": 0, "eval_tokens": eval_tokens}


def summary(model: SequenceModel, context: int) -> Row:
    """A model in numbers and a line, for the record."""
    config, counts = model.config, parameters(model)
    mlp = f"gated, {config.inner} wide" if any(map(config.has_mlp, config.kinds)) else "none"
    heads = {"lm": "tied head" if config.tied else "untied head"}
    head = heads.get(config.task, f"linear head of {config.outputs}")
    if config.task == "classify":
        head += f" on the {config.pool} over time"
    shape = f"{config.layers} layers of width {config.width}"
    form = "pre-norm residual" if config.form == "residual" else "plain stack"
    dropout = f", dropout {config.dropout:g}" if config.dropout else ""
    return {
        "params": counts.rest,
        "params_embedding": counts.embedding,
        "width": config.width,
        "layers": config.layers,
        "mlp": mlp,
        "flops_per_token": model.flops_per_token(context),
        "state_bytes": model.state_bytes(1, context),
        "summary": f"{shape}, MLP {mlp}, {form}{dropout}, {head}",
        "config": to_dict(config),
    }
