"""RNN against torch.nn.RNN, and its initialisation."""

import pytest
import torch

from quatrain.errors import ConfigError
from quatrain.mixers.rnn import RNN, RNNConfig


def copied(nonlinearity: str) -> tuple[RNN, torch.nn.RNN]:
    """One of ours and one of torch's with the same weights, in float64."""
    torch.manual_seed(0)
    ours = RNN(width=8, nonlinearity=nonlinearity).double()
    torch.nn.init.normal_(ours.in_proj.bias)
    theirs = torch.nn.RNN(8, 8, nonlinearity=nonlinearity, batch_first=True).double()
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(ours.in_proj.weight)
        theirs.bias_ih_l0.copy_(ours.in_proj.bias)
        theirs.weight_hh_l0.copy_(ours.recurrent)
        theirs.bias_hh_l0.zero_()
    return ours, theirs


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_it_agrees_with_torch(nonlinearity: str) -> None:
    ours, theirs = copied(nonlinearity)
    x, h = torch.randn(3, 20, 8).double(), torch.randn(3, 8).double()
    y, state = ours(x, ours.State(h))
    wanted, last = theirs(x, h[None])
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(state.h, last[0])
    weight = torch.randn_like(y)
    grads = torch.autograd.grad((y * weight).sum(), [ours.in_proj.weight, ours.in_proj.bias, ours.recurrent])
    known = [theirs.weight_ih_l0, theirs.bias_ih_l0, theirs.weight_hh_l0]
    for got, other in zip(grads, torch.autograd.grad((wanted * weight).sum(), known), strict=True):
        torch.testing.assert_close(got, other)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_padded_rows_agree_with_torch_packed_sequences(nonlinearity: str) -> None:
    ours, theirs = copied(nonlinearity)
    x, lengths = torch.randn(3, 6, 8).double(), torch.tensor([6, 4, 1])
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
    wanted, last = theirs(packed)
    wanted, _ = torch.nn.utils.rnn.pad_packed_sequence(wanted, batch_first=True)
    y, state = ours(x, None, lengths)
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(state.h, last[0])


def test_initialisation() -> None:
    eye = torch.eye(32)
    orthogonal = RNN(width=32).recurrent
    torch.testing.assert_close(orthogonal @ orthogonal.T, eye, atol=1e-5, rtol=0)
    assert torch.equal(RNN(width=32, recurrent_init="identity").recurrent, eye)
    assert RNN(width=32).in_proj.bias.abs().max() == 0
    assert RNN(width=32).in_proj.weight.abs().max() <= 32**-0.5


def test_unknown_words_are_refused() -> None:
    with pytest.raises(ConfigError, match="nonlinearity = 'gelu': must be one of tanh, relu"):
        RNNConfig(nonlinearity="gelu")
    with pytest.raises(ConfigError, match="recurrent_init = 'zero': must be one of orthogonal, identity"):
        RNNConfig(recurrent_init="zero")
