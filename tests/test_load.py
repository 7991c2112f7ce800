"""`quatrain.load`: the model of a checkpoint comes back bit for bit, or a message names what does not fit."""

import pytest
import torch

import quatrain
from quatrain import checkpoint
from quatrain.config.schema import to_dict
from quatrain.errors import CheckpointError
from quatrain.model.config import ModelConfig
from quatrain.model.lm import LanguageModel


def small(**changes) -> ModelConfig:
    return ModelConfig(**{"width": 16, "layers": 2, "pattern": "lstm attention", **changes})


def saved(tmp_path, config: ModelConfig, change=None):
    model = LanguageModel(config)
    state = dict(model.state_dict())
    if change:
        change(state)
    return model, checkpoint.save(
        tmp_path / "run", 1, {"model": state}, {"config": {"model": to_dict(config)}}
    )


@pytest.mark.parametrize("tied", [True, False])
def test_load_gives_the_model_bit_for_bit_and_leaves_the_generator_alone(tmp_path, tied):
    config = small(tied=tied, dropout=0.5, pattern="s6 lstm attention rnn s4d", layers=5)
    model, path = saved(tmp_path, config)
    before = torch.random.get_rng_state()
    again = quatrain.load(path)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert again.config == config
    assert not again.training
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    tokens = torch.arange(12)[None]
    assert torch.equal(again(tokens)[0], model.eval()(tokens)[0])
    assert all(parameter.requires_grad for parameter in again.parameters())


def test_load_keeps_the_dtype_that_was_saved(tmp_path):
    model = LanguageModel(small()).to(torch.bfloat16)
    meta = {"config": {"model": to_dict(small())}}
    again = quatrain.load(checkpoint.save(tmp_path, 1, {"model": model.state_dict()}, meta))
    assert {tensor.dtype for tensor in again.parameters()} == {torch.bfloat16}


def drop(state) -> None:
    del state["embedding.weight"]


def add(state) -> None:
    state["extra.weight"] = torch.zeros(1)


def reshape(state) -> None:
    state["embedding.weight"] = torch.zeros(256, 17)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, "tensor 'embedding.weight' is missing"),
        (add, "tensor 'extra.weight' is unexpected"),
        (reshape, r"tensor 'embedding.weight' has shape \(256, 17\), must have \(256, 16\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, message):
    _, path = saved(tmp_path, small(), change)
    with pytest.raises(CheckpointError, match=message) as caught:
        quatrain.load(path)
    assert "\n" not in str(caught.value)


def test_a_whole_other_model_gives_a_short_message(tmp_path):
    _, path = saved(tmp_path, small(), lambda state: state.clear())
    with pytest.raises(CheckpointError, match=r"is missing; and \d+ more") as caught:
        quatrain.load(path)
    assert len(str(caught.value)) < 1200


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({}, "holds no config of a model"),
        (
            {"config": {"model": {"width": "wide", "lairs": 2}}},
            "model.lairs = 2: unknown key.*; model.width = 'wide'",
        ),
    ],
)
def test_a_config_that_is_no_model(tmp_path, meta, message):
    path = checkpoint.save(tmp_path, 1, {"model": {"weight": torch.zeros(2)}}, meta)
    with pytest.raises(CheckpointError, match=message):
        quatrain.load(path)
