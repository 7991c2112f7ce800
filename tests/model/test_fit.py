"""Shapes of models with a given number of parameters."""

from dataclasses import replace

import pytest

from quatrain.errors import ConfigError
from quatrain.mixers import MIXERS
from quatrain.model.config import ModelConfig
from quatrain.model.count import parameters
from quatrain.model.fit import fit_size


@pytest.mark.parametrize("pattern", [*MIXERS, "s6 s6 attention", "lstm attention"])
def test_fitted_models_have_the_size_asked_for(pattern: str) -> None:
    for step in range(12):
        target = round(20_000 * 10 ** (4.7 * step / 11))  # 20 K to 1 G
        fitted = fit_size(pattern, target)
        real = parameters(fitted).rest  # of the whole model, on the meta device
        assert abs(real / target - 1) <= 0.02, f"{target}: {real}"
        assert fitted.layers % len(pattern.split()) == 0
        if target >= 1_000_000:
            assert fitted.width % 2 == 0
        if "attention" in pattern and fitted.width >= 32:
            assert 32 <= fitted.mixer_config("attention").head_width <= 64


@pytest.mark.parametrize("pattern", MIXERS)
def test_a_million_parameters_have_a_sensible_shape(pattern: str) -> None:
    fitted = fit_size(pattern, 1_000_000)
    assert 3 <= fitted.layers <= 8
    assert 128 <= fitted.width <= 400
    assert abs(parameters(fitted).rest / 1_000_000 - 1) <= 0.01


def test_fitting_keeps_what_it_does_not_fit() -> None:
    base = ModelConfig(
        vocab=99,
        pattern="s6 attention",
        dropout=0.1,
        mlp="gated",
        mixer={"s6": {"state": 8}, "attention": {"heads": 4, "kv_heads": 2}},
    )
    fitted = fit_size("attention", 300_000, base=base)
    assert (fitted.vocab, fitted.dropout, fitted.mlp) == (99, 0.1, "gated")
    assert fitted.mixer == {"attention": {"heads": 4, "kv_heads": 2}}
    assert abs(parameters(fitted).rest / 300_000 - 1) <= 0.02
    stack = fit_size("lstm", 300_000, base=replace(base, mlp="auto", form="stack"))
    assert abs(parameters(stack).rest / 300_000 - 1) <= 0.02


def test_fitting_says_what_is_impossible() -> None:
    with pytest.raises(ConfigError, match=r"params = 0: must be at least 1"):
        fit_size("lstm", 0)
    with pytest.raises(ConfigError, match=r"params = 500: no 's6' model .* within 2 %; the nearest has \d+"):
        fit_size("s6", 500)
    with pytest.raises(ConfigError, match=r"model\.pattern = 'mamba'"):
        fit_size("mamba", 100_000)
