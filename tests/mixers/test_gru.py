"""GRU against torch.nn.GRU, against the paper's equations, and its initialisation."""

import pytest
import torch

from quatrain.errors import ConfigError
from quatrain.mixers.gru import GRU, GRUConfig


def copied() -> tuple[GRU, torch.nn.GRU]:
    """One of ours and one of torch's with the same weights, in float64."""
    torch.manual_seed(0)
    ours = GRU(width=8).double()
    torch.nn.init.normal_(ours.in_proj.bias)
    torch.nn.init.normal_(ours.recurrent_bias)
    theirs = torch.nn.GRU(8, 8, batch_first=True).double()
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(ours.in_proj.weight)
        theirs.bias_ih_l0.copy_(ours.in_proj.bias)
        theirs.weight_hh_l0.copy_(ours.recurrent)
        theirs.bias_hh_l0.zero_()
        theirs.bias_hh_l0[16:] = ours.recurrent_bias
    return ours, theirs


def test_it_agrees_with_torch() -> None:
    ours, theirs = copied()
    x, h = torch.randn(3, 20, 8).double(), torch.randn(3, 8).double()
    y, state = ours(x, ours.State(h))
    wanted, last = theirs(x, h[None])
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(state.h, last[0])
    weight = torch.randn_like(y)
    parameters = [ours.in_proj.weight, ours.in_proj.bias, ours.recurrent, ours.recurrent_bias]
    grads = torch.autograd.grad((y * weight).sum(), parameters)
    known = [theirs.weight_ih_l0, theirs.bias_ih_l0, theirs.weight_hh_l0, theirs.bias_hh_l0]
    *others, of_bias = torch.autograd.grad((wanted * weight).sum(), known)
    for got, other in zip(grads, (*others, of_bias[16:]), strict=True):
        torch.testing.assert_close(got, other)


def test_padded_rows_agree_with_torch_packed_sequences() -> None:
    ours, theirs = copied()
    x, lengths = torch.randn(3, 6, 8).double(), torch.tensor([6, 4, 1])
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
    wanted, last = theirs(packed)
    wanted, _ = torch.nn.utils.rnn.pad_packed_sequence(wanted, batch_first=True)
    y, state = ours(x, None, lengths)
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(state.h, last[0])


def test_reset_before_is_the_paper() -> None:
    torch.manual_seed(0)
    layer = GRU(width=8, reset="before").double()
    x, h = torch.randn(3, 5, 8).double(), torch.randn(3, 8).double()
    y, state = layer(x, layer.State(h))
    (w_r, w_z, w_n), (u_r, u_z, u_n) = layer.in_proj.weight.chunk(3), layer.recurrent.chunk(3)
    for t in range(5):
        r = torch.sigmoid(x[:, t] @ w_r.T + h @ u_r.T)
        z = torch.sigmoid(x[:, t] @ w_z.T + h @ u_z.T)
        h = z * h + (1 - z) * torch.tanh(x[:, t] @ w_n.T + (r * h) @ u_n.T)
        torch.testing.assert_close(y[:, t], h)
    torch.testing.assert_close(state.h, h)


def test_initialisation() -> None:
    layer = GRU(width=32)
    assert layer.recurrent_bias is not None
    assert torch.cat((layer.in_proj.bias, layer.recurrent_bias)).abs().max() == 0
    for weight in (layer.in_proj.weight, layer.recurrent):
        assert 0.9 * 32**-0.5 < weight.abs().max() <= 32**-0.5
    assert GRU(width=32, reset="before").recurrent_bias is None


def test_an_unknown_reset_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"reset = 'both': must be one of after, before"):
        GRUConfig(reset="both")
