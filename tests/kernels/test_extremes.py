"""Nothing becomes NaN at the ends of the range, and memory stays bounded."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from quatrain.kernels import OPS, attention, causal_conv, gru_scan, lstm_scan, rnn_scan, s6_scan, s6_step

RNG = torch.Generator()


@pytest.fixture(autouse=True)
def _seed():
    RNG.manual_seed(0)


def normal(*shape, scale=1.0):
    return (torch.randn(*shape, generator=RNG) * scale).requires_grad_()


def all_finite(results, leaves):
    grads = torch.autograd.grad(sum(r.float().sum() for r in results), leaves)
    return all(bool(x.isfinite().all()) for x in (*results, *grads))


@pytest.mark.parametrize("size", [-200.0, -30.0, 0.0, 30.0, 1e4])
@pytest.mark.parametrize("zoh", [False, True])
def test_s6_at_extreme_step_sizes(size, zoh):
    u, b, c, gate = normal(2, 40, 3), normal(2, 40, 4), normal(2, 40, 4), normal(2, 40, 3, scale=100)
    delta, h0 = torch.full((2, 40, 3), size).requires_grad_(), normal(2, 3, 4)
    a = (-torch.tensor([1e-6, 1.0, 16.0, 1e4])).repeat(3, 1).requires_grad_()
    results = s6_scan(u, delta, a, b, c, None, gate, None, h0, softplus=True, zoh=zoh)
    assert all_finite(results, [u, delta, a, b, c, gate, h0])
    now = [x[:, 0] for x in (u, delta, b, c, gate)]
    y, h = s6_step(now[0], now[1], a, now[2], now[3], None, now[4], None, h0, softplus=True, zoh=zoh)
    assert all_finite((y, h), [u, delta, a, b, c, gate, h0])


def test_s6_zero_order_hold_at_tiny_step_sizes_keeps_its_gradient():
    """d/da of (e^(dt a) - 1) / a is near dt^2 / 2, a difference of numbers that are 1 / (dt a)^2 as large."""
    ones = torch.ones(1, 1, 1)
    a = torch.tensor([[-1.0]], requires_grad=True)
    for dt in (1e-2, 1e-4, 1e-6):
        y, _ = s6_scan(ones, ones * dt, a, ones, ones, zoh=True)
        (da,) = torch.autograd.grad(y.sum(), a)
        torch.testing.assert_close(da.item(), dt**2 / 2 * (1 - 2 * dt / 3), rtol=1e-4, atol=0)


@pytest.mark.parametrize("scale", [1e3, 1e30])
def test_saturated_gates(scale):
    x, h0, c0 = normal(2, 12, 20, scale=scale), normal(2, 5), normal(2, 5)
    weight = normal(20, 5)
    assert all_finite(lstm_scan(x, weight, h0, c0), [x, weight, h0, c0])
    for reset in ("after", "before"):
        drive, rows = normal(2, 12, 15, scale=scale), normal(15, 5)
        assert all_finite(gru_scan(drive, rows, None, h0, reset=reset), [drive, rows, h0])
    drive, square = normal(2, 12, 5, scale=scale), normal(5, 5)
    assert all_finite(rnn_scan(drive, square, h0), [drive, square, h0])
    conv = normal(5, 4)
    assert all_finite(causal_conv(drive, conv, silu=True), [drive, conv])


def test_attention_with_huge_scores():
    q, k, v = (normal(1, 8, 2, 4, scale=1e4) for _ in range(3))
    assert all_finite((attention(q, k, v),), [q, k, v])


@pytest.mark.parametrize("window", [float("inf"), 2])
def test_rows_that_see_nothing_are_zero_and_take_no_gradient(window):
    q, k, v = (normal(2, n, 2, 4) for n in (4, 6, 6))
    y = attention(q, k, v, q_start=torch.tensor([-3, 0]), k_lengths=torch.tensor([6, 0]), window=window)
    assert not y[0, :3].any()
    assert y[0, 3].any()
    assert not y[1].any()
    dq, dk, dv = torch.autograd.grad(y.sum(), (q, k, v))
    assert not dq[0, :3].any()
    assert all(bool(g.isfinite().all()) for g in (dq, dk, dv))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", OPS)
def test_states_are_wide_and_outputs_are_not(name, dtype):
    op = OPS[name]
    drawn = op.example(op.cases[1], RNG)
    drawn = {
        n: x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for n, x in drawn.items()
    }
    y, *states = op.run(drawn)
    assert y.dtype == (torch.float32 if name == "cross_entropy" else dtype)  # a loss is wide
    of_inputs = {"causal_conv": 0, "s6_block_step": 1}.get(name)  # what a convolution keeps are inputs
    for i, state in enumerate(states):
        assert state.dtype == (dtype if i == of_inputs else torch.float32)


@pytest.mark.parametrize("name", OPS)
def test_autocast_does_not_reach_into_an_op(name):
    op = OPS[name]
    case = op.cases[2]
    drawn = op.example(case, RNG)
    drawn = {
        n: x.float().requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for n, x in drawn.items()
    }
    leaves = [x for x in drawn.values() if isinstance(x, torch.Tensor) and x.is_floating_point()]

    def results():
        out = op.run(drawn)
        return (*out, *torch.autograd.grad(sum(r.sum() for r in out), leaves))

    plain = results()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = results()
    for a, b in zip(inside, plain, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0, atol=0)


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that an operation gave back, backward passes included."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                self.numbers = max(self.numbers, x.untyped_storage().nbytes() // x.element_size())
        return out


@pytest.mark.parametrize("packed", [False, True])
def test_s6_never_holds_all_states(packed):
    batch, time, width, state = 1, 4000, 16, 16
    u, delta = normal(batch, time, width), normal(batch, time, width)
    b, c = normal(batch, time, state), normal(batch, time, state)
    a = (-torch.ones(width, state)).requires_grad_()
    cu_seqlens = torch.tensor([0, 7, 7, 3000, 4000]) if packed else None
    with Largest() as largest:
        y, _ = s6_scan(u, delta, a, b, c, softplus=True, cu_seqlens=cu_seqlens)
        y.sum().backward()
    assert largest.numbers < 0.6 * batch * time * width * state


def test_attention_holds_no_square_of_a_long_sequence():
    q, k, v = (normal(1, 6000, 1, 4) for _ in range(3))
    with torch.no_grad(), Largest() as largest:
        attention(q, k, v, k_lengths=torch.tensor([5000]))
        attention(q, k, v, window=64)
        attention(q[:, :3000], k, v)
    assert largest.numbers < 6000 * 6000 / 6
