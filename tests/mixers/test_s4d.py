"""S4D: convolution against recurrence over long sequences, time invariance, initialisation."""

from math import pi

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from quatrain.errors import ConfigError
from quatrain.mixers import _lti
from quatrain.mixers.s4d import S4D, S4DConfig

BOTH = pytest.mark.parametrize(
    "fields", [{"state": 4}, {"state": 6, "complex": True}], ids=["real", "complex"]
)


def make(**fields: object) -> S4D:
    torch.manual_seed(0)
    layer = S4D(**{"width": 6, "conv": 3, **fields}).double()
    with torch.no_grad():
        layer.skip.normal_()
    return layer


def block(layer: S4D, x: Tensor) -> Tensor:
    """Outputs (T, D) of one row x (T, D), from the equations, step by step in complex128."""
    dt = F.softplus(layer.dt_bias)
    a = torch.complex(
        -layer.a_log.exp(), layer.a_imag if layer.config.complex else torch.zeros_like(layer.a_log)
    )
    c = 2 * torch.view_as_complex(layer.c) if layer.config.complex else layer.c.to(torch.complex128)
    decay = torch.exp(dt[:, None] * a)
    h = torch.zeros_like(decay)
    u, z = (x @ layer.in_proj.weight.T).chunk(2, -1)
    u = F.pad(u, (0, 0, layer.config.conv - 1, 0))
    outputs = []
    for t in range(x.shape[0]):
        window = u[t : t + layer.config.conv]
        u_t = F.silu((window * layer.conv_weight.T).sum(0) + layer.conv_bias)
        h = decay * h + (decay - 1) / a * u_t[:, None]
        outputs.append(((c * h).sum(-1).real + layer.skip * u_t) * F.silu(z[t]))
    return torch.stack(outputs) @ layer.out_proj.weight.T


@BOTH
def test_it_agrees_with_the_equations(fields: dict[str, object]) -> None:
    layer = make(**fields)
    x = torch.randn(1, 300, 6).double()
    with torch.no_grad():
        torch.testing.assert_close(layer(x)[0][0], block(layer, x[0]))


@BOTH
@pytest.mark.parametrize("time", [1, 2, 3, 4, 5, 16, 17, 100, 1000])
def test_powers_cover_every_length(fields: dict[str, object], time: int) -> None:
    layer = make(**fields)
    with torch.no_grad():
        rate, drive, c = layer._system()
        coarse, fine = _lti.powers(rate, time)
        kernel = _lti.impulse_response(coarse, fine, c, drive, time)
        direct = (c * drive)[..., None] * torch.exp(rate[..., None] * torch.arange(time))
    assert kernel.shape == (12, time)
    torch.testing.assert_close(kernel, direct.sum(1).real if direct.is_complex() else direct.sum(1))


@BOTH
def test_float32_keeps_its_digits_over_a_long_sequence(fields: dict[str, object]) -> None:
    exact, x = make(**fields), torch.randn(1, 4096, 6).double()
    layer = S4D(exact.config)
    layer.load_state_dict(exact.state_dict())
    with torch.no_grad():
        wanted, last = exact(x)
        y, state = layer(x.float())
    assert (y - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert (state.h - last.h).abs().max() < 1e-5 * last.h.abs().max()


@BOTH
def test_the_system_does_not_change_with_time(fields: dict[str, object]) -> None:
    layer = make(**fields)
    u, gate = torch.randn(1, 40, 12).double(), torch.ones(1, 40, 12).double()
    late = F.pad(u, (0, 0, 7, 0))[:, :40]
    with torch.no_grad():
        y, _ = layer._ssm(u, gate, None, None, None, False)
        delayed, _ = layer._ssm(late, gate, None, None, None, False)
        doubled, _ = layer._ssm(2 * u + late, gate, None, None, None, False)
    torch.testing.assert_close(delayed[:, 7:], y[:, :-7])
    torch.testing.assert_close(doubled, 2 * y + delayed)


def test_initialisation_of_the_paper() -> None:
    torch.manual_seed(0)
    real, lin = S4D(width=64), S4D(width=64, complex=True)
    torch.testing.assert_close(-real.a_log.exp(), -torch.arange(1.0, 17).expand(128, 16))
    torch.testing.assert_close(-lin.a_log.exp(), torch.full((128, 8), -0.5))
    torch.testing.assert_close(lin.a_imag, pi * torch.arange(8.0).expand(128, 8))
    assert real.c.std().item() == pytest.approx(1, abs=0.1)
    assert lin.c.square().sum(-1).mean().item() == pytest.approx(1, abs=0.1)
    for layer in (real, lin):
        sizes = F.softplus(layer.dt_bias)
        assert sizes.min() > 0.00099
        assert sizes.max() < 0.101
        assert layer.initial_state(3).h.shape == (3, 128, 16)


def test_complex_modes_come_in_pairs() -> None:
    with pytest.raises(ConfigError, match="state = 5: must be even with complex = true"):
        S4DConfig(width=8, state=5, complex=True)
    with pytest.raises(ConfigError, match="complex = 1: must be true or false"):
        S4DConfig(width=8, complex=1)
