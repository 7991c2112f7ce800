"""Agreement with torch's own layers, with an S6 written independently, and with numerical differentiation."""

from math import inf

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from quatrain.kernels import (
    OPS,
    Case,
    attention,
    causal_conv,
    gru_scan,
    lstm_scan,
    lti_conv,
    rnn_scan,
    s6_scan,
)

RNG = torch.Generator()


@pytest.fixture(autouse=True)
def _seed():
    RNG.manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, generator=RNG, dtype=torch.float64)


def grads_agree(got, want, leaves):
    cotangents = [torch.randn(g.shape, generator=RNG, dtype=g.dtype) for g in got]
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(
        torch.autograd.grad(got, leaves, cotangents, retain_graph=True),
        torch.autograd.grad(want, leaves, cotangents),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_rnn_is_torch_rnn(nonlinearity):
    layer = torch.nn.RNN(6, 6, nonlinearity=nonlinearity, batch_first=True, dtype=torch.float64)
    x, h0 = normal(3, 11, 6).requires_grad_(), normal(3, 6).requires_grad_()
    y, h = layer(x, h0[None])
    drive = F.linear(x, layer.weight_ih_l0, layer.bias_ih_l0 + layer.bias_hh_l0)
    got = rnn_scan(drive, layer.weight_hh_l0, h0, nonlinearity=nonlinearity)
    grads_agree(got, (y, h[0]), [x, h0, *layer.parameters()])


def test_lstm_is_torch_lstm():
    layer = torch.nn.LSTM(6, 6, batch_first=True, dtype=torch.float64)
    x = normal(3, 11, 6).requires_grad_()
    h0, c0 = normal(3, 6).requires_grad_(), normal(3, 6).requires_grad_()
    y, (h, c) = layer(x, (h0[None], c0[None]))
    drive = F.linear(x, layer.weight_ih_l0, layer.bias_ih_l0 + layer.bias_hh_l0)
    got = lstm_scan(drive, layer.weight_hh_l0, h0, c0)
    grads_agree(got, (y, h[0], c[0]), [x, h0, c0, *layer.parameters()])


def test_lstm_with_lengths_is_torch_lstm_on_a_packed_sequence():
    layer = torch.nn.LSTM(5, 5, batch_first=True, dtype=torch.float64)
    x, lengths = normal(4, 9, 5), torch.tensor([2, 9, 5, 1])
    rows = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    y, (h, c) = layer(rows)
    y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=True, total_length=9)
    drive = F.linear(x, layer.weight_ih_l0, layer.bias_ih_l0 + layer.bias_hh_l0)
    got = lstm_scan(drive, layer.weight_hh_l0, lengths=lengths)
    for a, b in zip(got, (y, h[0], c[0]), strict=True):
        torch.testing.assert_close(a, b)


def test_gru_is_torch_gru():
    layer = torch.nn.GRU(6, 6, batch_first=True, dtype=torch.float64)
    x, h0 = normal(3, 11, 6).requires_grad_(), normal(3, 6).requires_grad_()
    y, h = layer(x, h0[None])
    of_gates, inside = layer.bias_hh_l0.split((12, 6))
    drive = F.linear(x, layer.weight_ih_l0, layer.bias_ih_l0 + F.pad(of_gates, (0, 6)))
    got = gru_scan(drive, layer.weight_hh_l0, inside, h0)
    grads_agree(got, (y, h[0]), [x, h0, *layer.parameters()])


@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_sdpa(causal):
    q, k, v = (normal(2, 33, 4, 8).requires_grad_() for _ in range(3))
    want = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=causal)
    grads_agree((attention(q, k, v, causal=causal),), (want.transpose(1, 2),), [q, k, v])


def test_attention_blocks_do_not_show(monkeypatch):
    """Masks are built for blocks of queries; here for very small ones."""
    from importlib import import_module

    module = import_module("quatrain.kernels.attention.sdpa")
    op = OPS["attention"]
    monkeypatch.setattr(module, "_MASK_NUMBERS", 40)
    monkeypatch.setattr(module, "_RUN", 8)
    for case in op.cases:
        arguments = op.example(case, torch.Generator().manual_seed(0))
        leaves = [arguments[n].requires_grad_() for n in ("q", "k", "v")]
        grads_agree(module.attend(**arguments), op.reference(**arguments), leaves)


def test_attention_with_a_window_of_one_is_the_value_itself():
    q, k, v = (normal(2, 9, 2, 4).requires_grad_() for _ in range(3))
    y = attention(q, k, v, window=1)
    torch.testing.assert_close(y, v)
    dq, dk, dv = torch.autograd.grad(y, (q, k, v), torch.ones_like(y))
    torch.testing.assert_close(dv, torch.ones_like(v))
    assert max(dq.abs().max(), dk.abs().max()) < 1e-14


@pytest.mark.parametrize("window", [inf, 70])
def test_attention_ignores_what_lies_past_the_keys(window):
    q, k, v = (normal(2, n, 2, 4) for n in (90, 200, 200))
    start, end = torch.tensor([40, 100]), torch.tensor([130, 190])
    y = attention(q, k, v, q_start=start, k_lengths=end, window=window)
    hole = torch.arange(200)[None, :, None, None] >= end[:, None, None, None]
    k, v = (x.masked_fill(hole, torch.nan).requires_grad_() for x in (k, v))
    again = attention(q, k, v, q_start=start, k_lengths=end, window=window)
    torch.testing.assert_close(again, y)
    for grad in torch.autograd.grad(again.sum(), (k, v)):
        assert grad.isfinite().all()


def test_causal_conv_is_torch_conv():
    x, weight, bias = (z.requires_grad_() for z in (normal(2, 15, 6), normal(6, 4), normal(6)))
    want = F.silu(F.conv1d(F.pad(x.transpose(1, 2), (3, 0)), weight[:, None], bias, groups=6)).transpose(1, 2)
    y, h = causal_conv(x, weight, bias, silu=True)
    grads_agree((y,), (want,), [x, weight, bias])
    assert torch.equal(h, x[:, -3:])


def test_lti_conv_is_numpy_convolution():
    u, kernel = normal(2, 40, 3), normal(3, 40)
    y = lti_conv(u, kernel)
    for b in range(2):
        for e in range(3):
            want = np.convolve(u[b, :, e].numpy(), kernel[e].numpy())[:40]
            np.testing.assert_allclose(y[b, :, e].numpy(), want, rtol=1e-10, atol=1e-10)


def numpy_s6(u, delta, a, b, c, skip, gate, bias, h0, zoh):
    """S6 in numpy through the closed form h_t = sum_s exp(a (S_t - S_s)) drive_s, S the summed step sizes."""
    u, delta, a, b, c, skip, gate, bias, h0 = (x.numpy() for x in (u, delta, a, b, c, skip, gate, bias, h0))
    batch, time, width = u.shape
    dt = np.logaddexp(0, delta + bias)
    clock = np.cumsum(dt, axis=1)
    y, h = np.zeros_like(u), np.zeros_like(h0)
    for i in range(batch):
        for e in range(width):
            group = e * b.shape[2] // width
            for t in range(time):
                h = np.exp(a[e] * clock[i, t, e]) * h0[i, e]
                for s in range(t + 1):
                    fresh = np.expm1(dt[i, s, e] * a[e]) / a[e] if zoh else dt[i, s, e]
                    age = clock[i, t, e] - clock[i, s, e]
                    h = h + np.exp(a[e] * age) * fresh * u[i, s, e] * b[i, s, group]
                z = gate[i, t, e]
                y[i, t, e] = (h @ c[i, t, group] + skip[e] * u[i, t, e]) * z / (1 + np.exp(-z))
    return y


@pytest.mark.parametrize("zoh", [False, True])
@pytest.mark.parametrize("impl", [impl.name for impl in OPS["s6_scan"].impls] + ["reference"])
def test_s6_is_an_independent_s6(zoh, impl):
    case = Case({"B": 2, "T": 17, "E": 4, "G": 2, "N": 3}, ("skip", "gate", "delta_bias", "h0"))
    drawn = OPS["s6_scan"].example(case, RNG)
    drawn |= {"softplus": True, "zoh": zoh, "impl": impl}
    if impl != "reference":
        chosen = {i.name: i for i in OPS["s6_scan"].impls}[impl]
        if (reason := chosen.why_not({k: v for k, v in drawn.items() if k != "impl"})) is not None:
            pytest.skip(reason)
    y, _ = s6_scan(**drawn)
    names = ("u", "delta", "a", "b", "c", "skip", "gate", "delta_bias", "h0")
    np.testing.assert_allclose(y.numpy(), numpy_s6(*(drawn[n] for n in names), zoh), rtol=1e-11, atol=1e-12)


SMALL = {
    "rnn_scan": ({"B": 2, "T": 4, "D": 3}, ("h0",), {}),
    "lstm_scan": ({"B": 2, "T": 4, "D": 2}, ("h0", "c0"), {}),
    "gru_scan": ({"B": 2, "T": 4, "D": 2}, ("bias", "h0"), {}),
    "s6_scan": (
        {"B": 2, "T": 5, "E": 2, "N": 2},
        ("skip", "gate", "delta_bias", "h0"),
        {"softplus": True, "zoh": True},
    ),
    "s6_step": ({"B": 2, "E": 2, "N": 2}, ("skip", "gate", "delta_bias"), {"softplus": True}),
    "causal_conv": ({"B": 2, "T": 4, "E": 2, "W": 3}, ("bias", "h0"), {"silu": True}),
    "attention": ({"B": 2, "T": 4, "H": 2, "G": 1, "K": 2}, (), {}),
    "lti_conv": ({"B": 2, "T": 4, "E": 2, "R": 3}, (), {}),
    "linear_step": ({"B": 2, "D": 3, "M": 4}, ("residual",), {}),
    "s6_block_step": (
        {"B": 2, "D": 3, "E": 2, "N": 2, "R": 1, "W": 2},
        ("norm_weight", "conv_bias", "dt_bias", "skip"),
        {"eps": 0.1},
    ),
    "recurrent_step": ({"B": 2, "I": 3, "D": 2}, ("in_bias",), {}),
    "rms_norm": ({"B": 2, "T": 2, "D": 3}, (), {"eps": 0.1}),
    "cross_entropy": ({"R": 3, "V": 5}, (), {"ignored": True}),
}


PACKED = [name for name, op in OPS.items() if any("cu_seqlens" in case.optional for case in op.cases)]


@pytest.mark.parametrize(
    ("name", "packed"), [(name, False) for name in OPS] + [(name, True) for name in PACKED]
)
def test_gradcheck(name, packed):
    """Numerical derivatives of every result, states included, by every floating-point argument."""
    op = OPS[name]
    dims, optional, flags = SMALL[name]
    if packed:
        dims, optional = {**dims, "B": 1, "T": 7}, (*optional, "cu_seqlens")
    drawn = op.example(Case(dims, optional, flags), RNG)
    leaves = {
        n: x.requires_grad_()
        for n, x in drawn.items()
        if isinstance(x, torch.Tensor) and x.is_floating_point()
    }
    for impl in op.impls:
        if impl.why_not(drawn) is None:
            assert torch.autograd.gradcheck(
                lambda *values, fn=impl.fn: fn(**(drawn | dict(zip(leaves, values, strict=True)))),
                tuple(leaves.values()),
            )
