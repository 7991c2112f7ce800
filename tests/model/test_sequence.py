"""The sequence model: shapes by task, padding that does not matter, steps, and losses against plain ones."""

import pytest
import torch
from torch.nn import functional as F

from quatrain.errors import ConfigError, ShapeError
from quatrain.model import ModelConfig, initialise, parameters
from quatrain.model.config import FORECAST_WIDTH, QUANTILES
from quatrain.model.objective import OBJECTIVES, objective
from quatrain.model.sequence import SequenceModel, build, pooled

CONFIGS = {
    "classify": {"channels": 3, "outputs": 4},
    "tag": {"vocab": 11, "outputs": 5},
    "transcribe": {"channels": 2, "outputs": 6},
    "forecast": {"channels": 3, "horizon": 4, "outputs": 4 * 2 * FORECAST_WIDTH},
}
per_task = pytest.mark.parametrize("task", CONFIGS)


def model_of(task, pattern="lstm", **more) -> SequenceModel:
    config = ModelConfig(task=task, width=16, layers=2, pattern=pattern, **CONFIGS[task], **more)
    model = build(config)
    initialise(model, 3)
    return model.double()


def inputs_of(model, batch=3, time=9):
    config, random = model.config, torch.Generator().manual_seed(1)
    if config.channels:
        return torch.randn(batch, time, config.channels, generator=random, dtype=torch.float64)
    return torch.randint(config.vocab, (batch, time), generator=random)


def test_every_task_but_the_language_model_has_an_objective():
    from quatrain.data.task import TASKS
    from quatrain.model.config import TASK_NAMES

    assert set(OBJECTIVES) == set(TASKS) - {"lm"}
    assert tuple(TASKS) == TASK_NAMES


@per_task
def test_shapes(task):
    model = model_of(task)
    shape = {"classify": (3, 4), "tag": (3, 9, 5), "transcribe": (3, 9, 6), "forecast": (3, 9, 4, 2, 6)}
    assert model(inputs_of(model))[0].shape == shape[task]


@per_task
@pytest.mark.parametrize("pattern", ["lstm", "attention", "s6", "gru rnn"])
def test_padding_does_not_matter(task, pattern):
    model = model_of(task, pattern)
    inputs = inputs_of(model)
    lengths = torch.tensor([9, 4, 1])
    other = inputs.clone()
    other[1, 4:], other[2, 1:] = 1, 1
    one, two = model(inputs, lengths=lengths)[0], model(other, lengths=lengths)[0]
    alone = model(inputs[1:2, :4])[0]
    if task == "classify":
        torch.testing.assert_close(one, two)
        torch.testing.assert_close(one[1:2], alone)
    else:
        torch.testing.assert_close(one[1:2, :4], two[1:2, :4])
        torch.testing.assert_close(one[1:2, :4], alone)


@pytest.mark.parametrize("task", ["tag", "transcribe", "forecast"])
def test_steps_give_what_one_pass_gives(task):
    model = model_of(task, "s6 attention")
    inputs = inputs_of(model)
    whole = model(inputs)[0]
    state = model.initial_state(3)
    for time in range(inputs.shape[1]):
        out, state = model.step(inputs[:, time], state)
        torch.testing.assert_close(out, whole[:, time])


@pytest.mark.parametrize("how", ["mean", "max", "last"])
def test_pooling(how):
    x = torch.arange(24.0).reshape(2, 4, 3) * torch.tensor([1.0, -1.0])[:, None, None]
    got = pooled(x, torch.tensor([4, 2]), how)
    for row, part in enumerate((x[0], x[1, :2])):
        want = {"mean": part.mean(0), "max": part.amax(0), "last": part[-1]}[how]
        torch.testing.assert_close(got[row], want)


def test_class_loss_is_cross_entropy_of_the_pooled_steps():
    model = model_of("classify")
    inputs, targets = inputs_of(model), torch.tensor([0, 3, 1])
    torch.testing.assert_close(objective(model, inputs, targets), F.cross_entropy(model(inputs)[0], targets))


def test_tag_loss_leaves_out_padding_and_what_is_not_scored():
    model = model_of("tag")
    inputs, lengths = inputs_of(model), torch.tensor([9, 4, 1])
    targets = torch.randint(5, (3, 9))
    targets[0, 0] = -100
    logits = model(inputs, lengths=lengths)[0]
    terms = [
        F.cross_entropy(logits[row, at], targets[row, at])
        for row in range(3)
        for at in range(int(lengths[row]))
        if targets[row, at] >= 0
    ]
    torch.testing.assert_close(objective(model, inputs, targets, lengths), torch.stack(terms).mean())


def test_transcription_loss_sums_over_alignments():
    """Two steps, one label: the paths are (blank, a), (a, blank), (a, a)."""
    model = model_of("transcribe")
    inputs = inputs_of(model, batch=1, time=2)
    p = model(inputs)[0].softmax(-1)[0]
    want = -torch.log(p[0, 0] * p[1, 2] + p[0, 2] * p[1, 0] + p[0, 2] * p[1, 2])
    got = objective(model, inputs, torch.tensor([[2]]), torch.tensor([2]), torch.tensor([1]))
    torch.testing.assert_close(got, want)


def test_forecast_loss_judges_every_step_and_starts_from_the_present():
    model = model_of("forecast")
    series = torch.randn(2, 9 + 4, 3, dtype=torch.float64)
    forecast = model(series[:, :9])[0]
    total = []
    for time in range(9):
        truth = series[:, time + 1 : time + 5, :2]
        out = forecast[:, time]
        square = (out[..., 0] - truth).square().mean()
        pinball = [
            torch.where(
                truth > out[..., 1 + i], q * (truth - out[..., 1 + i]), (1 - q) * (out[..., 1 + i] - truth)
            )
            for i, q in enumerate(QUANTILES)
        ]
        total.append(square + 2 * torch.stack(pinball).mean())
    got = objective(model, series[:, :9], series[..., :2])
    torch.testing.assert_close(got, torch.stack(total).mean())
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.zero_()
    still = model(series[:, :9])[0]
    torch.testing.assert_close(still, series[:, :9, None, :2, None].expand_as(still))


@per_task
def test_weights_come_from_the_seed_alone_and_are_counted(task):
    one, two = model_of(task), model_of(task)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    assert parameters(one).total == sum(p.numel() for p in one.parameters())
    assert parameters(one.config) == parameters(one)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task": "classify"}, "model.outputs = 0: must be at least 1 for task classify"),
        ({"outputs": 3}, "model.outputs = 3: is 0 in a language model"),
        ({"task": "forecast", "outputs": 6}, "model.horizon = 0: must be at least 1"),
        (
            {"task": "forecast", "outputs": 7, "horizon": 1, "channels": 1},
            "model.outputs = 7: must be a multiple",
        ),
        ({"task": "translate"}, "model.task = 'translate'"),
        ({"pool": "sum"}, "model.pool = 'sum'"),
    ],
)
def test_configs_that_contradict_themselves(values, message):
    with pytest.raises(ConfigError) as caught:
        ModelConfig(**values)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("task", "inputs", "message"),
    [
        ("classify", torch.zeros(2, 4), r"inputs: shape \(2, 4\): must be \(B, T, 3\)"),
        ("classify", torch.zeros(2, 4, 2), "must be 3 floating-point numbers a step"),
        ("tag", torch.full((1, 2), 11), r"tokens: 11: must lie in \[0, 11\)"),
    ],
)
def test_wrong_inputs(task, inputs, message):
    with pytest.raises(ShapeError, match=message):
        model_of(task)(inputs)


def test_a_language_model_is_built_for_the_task_lm_only():
    from quatrain.model import LanguageModel

    assert isinstance(build(ModelConfig(width=16, layers=1)), LanguageModel)
    with pytest.raises(ConfigError, match="must be lm in a language model"):
        LanguageModel(ModelConfig(task="classify", outputs=2, width=16, layers=1))
