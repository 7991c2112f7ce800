"""LSTM against torch.nn.LSTM, and its initialisation."""

import pytest
import torch

from quatrain.errors import ConfigError
from quatrain.mixers.lstm import LSTM, LSTMConfig


def copied() -> tuple[LSTM, torch.nn.LSTM]:
    """One of ours and one of torch's with the same weights, in float64."""
    torch.manual_seed(0)
    ours = LSTM(width=8).double()
    theirs = torch.nn.LSTM(8, 8, batch_first=True).double()
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(ours.in_proj.weight)
        theirs.bias_ih_l0.copy_(ours.in_proj.bias)
        theirs.weight_hh_l0.copy_(ours.recurrent)
        theirs.bias_hh_l0.zero_()
    return ours, theirs


def test_it_agrees_with_torch() -> None:
    ours, theirs = copied()
    x, h, c = torch.randn(3, 20, 8).double(), torch.randn(3, 8).double(), torch.randn(3, 8).double()
    y, state = ours(x, ours.State(h, c))
    wanted, (last_h, last_c) = theirs(x, (h[None], c[None]))
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(state.h, last_h[0])
    torch.testing.assert_close(state.c, last_c[0])
    weight = torch.randn_like(y)
    grads = torch.autograd.grad((y * weight).sum(), [ours.in_proj.weight, ours.in_proj.bias, ours.recurrent])
    known = [theirs.weight_ih_l0, theirs.bias_ih_l0, theirs.weight_hh_l0]
    for got, other in zip(grads, torch.autograd.grad((wanted * weight).sum(), known), strict=True):
        torch.testing.assert_close(got, other)


def test_padded_rows_agree_with_torch_packed_sequences() -> None:
    ours, theirs = copied()
    x, lengths = torch.randn(3, 6, 8).double(), torch.tensor([6, 4, 1])
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
    wanted, (last_h, last_c) = theirs(packed)
    wanted, _ = torch.nn.utils.rnn.pad_packed_sequence(wanted, batch_first=True)
    y, state = ours(x, None, lengths)
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(state.h, last_h[0])
    torch.testing.assert_close(state.c, last_c[0])


def test_initialisation() -> None:
    layer = LSTM(width=32, forget_bias=1.5)
    i, f, g, o = layer.in_proj.bias.chunk(4)
    assert torch.equal(f, torch.full((32,), 1.5))
    assert torch.cat((i, g, o)).abs().max() == 0
    assert torch.equal(LSTM(width=32).in_proj.bias[32:64], torch.ones(32))
    for weight in (layer.in_proj.weight, layer.recurrent):
        assert 0.9 * 32**-0.5 < weight.abs().max() <= 32**-0.5


@pytest.mark.parametrize("value", [float("inf"), float("nan"), "1", None])
def test_a_forget_bias_that_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"forget_bias = .*: must be a finite number"):
        LSTMConfig(forget_bias=value)
