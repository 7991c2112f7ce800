"""S6 against a block written anew, one float64 number after the other, and its initialisation."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from quatrain.errors import ConfigError
from quatrain.mixers.s6 import S6, S6Config


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def block(layer: S6, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs (T, D) and last state (E, N) of one row x (T, D): the equations in loops over plain floats."""
    p = {name: value.detach().tolist() for name, value in layer.named_parameters()}
    inner, states, rank, taps = layer.inner, layer.config.state, layer.dt_rank, layer.config.conv
    h = [[0.0] * states for _ in range(inner)]
    past: list[list[float]] = [[0.0] * inner for _ in range(taps - 1)]
    outputs = []
    for token in x.tolist():
        both = [sum(w * v for w, v in zip(row, token, strict=True)) for row in p["in_proj.weight"]]
        past.append(both[:inner])
        u = []
        for e in range(inner):
            mixed = p["conv_bias"][e] + sum(p["conv_weight"][e][j] * past[-taps + j][e] for j in range(taps))
            u.append(mixed * sigmoid(mixed))
        chosen = [sum(w * v for w, v in zip(row, u, strict=True)) for row in p["x_proj.weight"]]
        low, b, c = chosen[:rank], chosen[rank : rank + states], chosen[rank + states :]
        gated = []
        for e in range(inner):
            step = math.log1p(
                math.exp(
                    p["dt_proj.bias"][e]
                    + sum(w * v for w, v in zip(p["dt_proj.weight"][e], low, strict=True))
                )
            )
            y = p["skip"][e] * u[e]
            for n in range(states):
                a = -math.exp(p["a_log"][e][n])
                drive = (math.exp(step * a) - 1) / a if layer.config.zoh else step
                h[e][n] = math.exp(step * a) * h[e][n] + drive * b[n] * u[e]
                y += c[n] * h[e][n]
            gated.append(y * both[inner + e] * sigmoid(both[inner + e]))
        outputs.append([sum(w * v for w, v in zip(row, gated, strict=True)) for row in p["out_proj.weight"]])
    return torch.tensor(outputs, dtype=torch.float64), torch.tensor(h, dtype=torch.float64)


@pytest.mark.parametrize(
    "fields", [{}, {"zoh": True}, {"conv": 2, "expand": 3, "dt_rank": 2, "state": 7}], ids=str
)
def test_it_agrees_with_the_equations(fields: dict[str, object]) -> None:
    torch.manual_seed(0)
    layer = S6(**{"width": 6, "state": 4, **fields}).double()
    with torch.no_grad():
        layer.skip.normal_()
        layer.a_log.add_(0.3 * torch.randn_like(layer.a_log))
    x = torch.randn(2, 150, 6).double()  # longer than a chunk of the scan
    y, state = layer(x)
    for row in range(2):
        wanted, last = block(layer, x[row])
        torch.testing.assert_close(y[row], wanted)
        torch.testing.assert_close(state.h[row], last)


def test_initialisation_of_the_paper() -> None:
    torch.manual_seed(0)
    layer = S6(width=64)
    assert layer.inner == 128
    assert layer.dt_rank == 4
    assert S6(width=65).dt_rank == 5
    torch.testing.assert_close(-layer.a_log.exp(), -torch.arange(1.0, 17).expand(128, 16))
    assert torch.equal(layer.skip, torch.ones(128))
    sizes = F.softplus(S6(width=1024).dt_proj.bias).log10()
    assert sizes.min() >= -3.001
    assert sizes.max() <= -0.999
    quarters = torch.histc(sizes, 4, -3, -1) / sizes.numel()
    assert (quarters - 0.25).abs().max() < 0.05  # log-uniform
    assert layer.dt_proj.weight.abs().max() <= 4**-0.5
    assert layer.conv_weight.abs().max() <= 0.5
    names = "a_log conv_bias conv_weight dt_proj.bias dt_proj.weight in_proj.weight out_proj.weight skip"
    names += " x_proj.weight"
    assert sorted(name for name, _ in layer.named_parameters()) == names.split()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"state": 0}, "state = 0"),
        ({"expand": 1.5}, "expand = 1.5: must be an integer"),
        ({"conv": 1}, "conv = 1: must be an integer from 2 to 8"),
        ({"conv": 9}, "conv = 9: must be an integer from 2 to 8"),
        ({"dt_rank": 0}, "dt_rank = 0"),
        ({"dt_rank": "full"}, "dt_rank = 'full': must be one of auto"),
        ({"dt_min": 0.0}, "dt_min = 0.0: must be a positive"),
        ({"dt_min": 0.2}, "dt_min = 0.2: must be at most dt_max = 0.1"),
        ({"dt_max": math.inf}, "dt_max = inf"),
        ({"zoh": "yes"}, "zoh = 'yes': must be true or false"),
    ],
    ids=str,
)
def test_wrong_fields_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        S6Config(width=16, **fields)
