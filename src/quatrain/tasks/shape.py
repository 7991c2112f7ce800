"""What the data decides about a model: its task, what goes in, what comes out."""

from quatrain.config.check import check
from quatrain.config.schema import replace_in
from quatrain.data.sequences import Meaning
from quatrain.model.config import FORECAST_WIDTH, ModelConfig


def shaped(config: ModelConfig, meaning: Meaning) -> ModelConfig:
    """``config`` with task, vocabulary, channels, anchors, outputs and horizon as the data needs them.

    Raises ConfigError where one of them was set to something else.
    """
    task = meaning.task
    outputs = len(meaning.labels)
    if task == "transcribe":
        outputs += 1  # the blank
    if task == "forecast":
        outputs = meaning.horizon * meaning.targets * FORECAST_WIDTH
    wanted = {
        "task": task,
        "channels": meaning.width,
        "anchors": meaning.anchors,
        "outputs": outputs,
        "horizon": meaning.horizon if task == "forecast" else 0,
    }
    if not meaning.channels:
        wanted["vocab"] = meaning.vocab
    for name, value in wanted.items():
        given, default = getattr(config, name), getattr(ModelConfig, name)
        check(given in (default, value), f"model.{name}", given, f"the data asks for {value!r}; leave it out")
    return replace_in(config, wanted)
