"""Wrong arguments: one line that names the argument, its value and the rule."""

import pytest
import torch

from quatrain import kernels
from quatrain.errors import NoKernelError, ShapeError, StateError
from quatrain.kernels import OPS, Case
from quatrain.kernels._batch import check_batch, check_contents

f32 = torch.float32


def good(name):
    """Right arguments of an op, every optional tensor but lengths and cu_seqlens present."""
    op = OPS[name]
    dims = {"B": 2, "T": 6, "S": 9, "D": 4, "E": 4, "N": 3, "W": 4, "R": 6, "H": 4, "K": 2, "M": 5, "V": 7}
    if name == "attention":
        dims["G"] = 2
    optional = ("h0", "c0", "skip", "gate", "delta_bias", "bias")
    drawn = op.example(Case(dims, optional), torch.Generator().manual_seed(0))
    given = {n: x for n, x in drawn.items() if x is not None}
    return {n: x.float() if getattr(x, "is_floating_point", bool)() else x for n, x in given.items()}


def public(name):
    return getattr(kernels, name)


WRONG = [
    (
        "cross_entropy",
        "logits",
        torch.zeros(6, 0),
        ShapeError,
        "logits: shape (6, 0): V = 0 must be at least",
    ),
    (
        "cross_entropy",
        "targets",
        torch.zeros(5, dtype=torch.int64),
        ShapeError,
        "targets: shape (5,) of torch",
    ),
    ("cross_entropy", "targets", torch.zeros(6), ShapeError, "targets: shape (6,) of torch.float32 on cpu"),
    (
        "cross_entropy",
        "targets",
        torch.full((6,), 7),
        ShapeError,
        "targets: 7: must lie in [0, 7) or be -100",
    ),
    ("cross_entropy", "targets", [1], ShapeError, "targets: a list: must be a tensor"),
    ("rnn_scan", "x", torch.zeros(2, 0, 4), ShapeError, "x: shape (2, 0, 4): T = 0 must be at least 1"),
    ("rnn_scan", "x", torch.zeros(0, 3, 4), ShapeError, "x: shape (0, 3, 4): B = 0 must be at least 1"),
    ("rnn_scan", "x", torch.zeros(2, 4), ShapeError, "x: shape (2, 4): must be (B, T, D)"),
    ("rnn_scan", "x", [1.0], ShapeError, "x: a list: must be a tensor"),
    ("rnn_scan", "x", torch.zeros(2, 6, 4, dtype=torch.int64), ShapeError, "x: dtype torch.int64: must be a"),
    ("rnn_scan", "weight", torch.zeros(4, 5), ShapeError, "weight: shape (4, 5): must be (D = 4, D = 4)"),
    ("rnn_scan", "weight", torch.zeros(4, 4).double(), ShapeError, "weight: dtype torch.float64: must be"),
    ("rnn_scan", "weight", torch.zeros(4, 4, device="meta"), ShapeError, "weight: device meta: must be cpu"),
    ("rnn_scan", "h0", torch.zeros(3, 4), StateError, "h0: shape (3, 4): must be (B = 2, D = 4)"),
    ("rnn_scan", "h0", torch.zeros(2, 4).double(), StateError, "h0: dtype torch.float64"),
    ("rnn_scan", "h0", 0.0, StateError, "h0: a float: must be a tensor"),
    ("rnn_scan", "nonlinearity", "gelu", ShapeError, "nonlinearity = 'gelu': must be one of tanh, relu"),
    (
        "rnn_scan",
        "lengths",
        torch.tensor([1, 7]),
        ShapeError,
        "lengths = [1, 7]: must lie in [0, T] = [0, 6]",
    ),
    ("rnn_scan", "lengths", torch.tensor([1, -1]), ShapeError, "lengths = [1, -1]: must lie in [0, T]"),
    ("rnn_scan", "lengths", torch.tensor([1, 2, 3]), ShapeError, "lengths: shape (3,): must be (B,) = (2,)"),
    ("rnn_scan", "lengths", torch.tensor([1.0, 2.0]), ShapeError, "lengths: dtype torch.float32: must be an"),
    ("rnn_scan", "lengths", torch.tensor([True, False]), ShapeError, "lengths: dtype torch.bool: must be an"),
    ("rnn_scan", "lengths", [1, 2], ShapeError, "lengths: a list: must be a tensor"),
    (
        "rnn_scan",
        "cu_seqlens",
        torch.tensor([0, 6]),
        ShapeError,
        "cu_seqlens: given with a batch of 2: packed",
    ),
    ("lstm_scan", "x", torch.zeros(2, 6, 15), ShapeError, "x: shape (2, 6, 15): must have a last size"),
    (
        "lstm_scan",
        "weight",
        torch.zeros(16, 3),
        ShapeError,
        "weight: shape (16, 3): must be (4D = 16, D = 4)",
    ),
    ("lstm_scan", "c0", torch.zeros(2, 5), StateError, "c0: shape (2, 5): must be (B = 2, D = 4)"),
    ("gru_scan", "x", torch.zeros(2, 6, 16), ShapeError, "x: shape (2, 6, 16): must have a last size"),
    ("gru_scan", "weight", torch.zeros(12, 3), ShapeError, "weight: shape (12, 3): must be (3D = 12, D = 4)"),
    ("gru_scan", "bias", torch.zeros(12), ShapeError, "bias: shape (12,): must be (D = 4)"),
    ("gru_scan", "h0", torch.zeros(2, 5), StateError, "h0: shape (2, 5): must be (B = 2, D = 4)"),
    ("gru_scan", "reset", "both", ShapeError, "reset = 'both': must be one of after, before"),
    ("gru_scan", "reset", "before", ShapeError, "bias: given with reset = 'before': must be part of x there"),
    ("s6_scan", "u", torch.zeros(2, 0, 4), ShapeError, "u: shape (2, 0, 4): T = 0"),
    (
        "s6_scan",
        "delta",
        torch.zeros(2, 5, 4),
        ShapeError,
        "delta: shape (2, 5, 4): must be (B = 2, T = 6, E",
    ),
    ("s6_scan", "a", torch.zeros(3, 3), ShapeError, "a: shape (3, 3): must be (E = 4, N)"),
    ("s6_scan", "b", torch.zeros(2, 6, 2), ShapeError, "b: shape (2, 6, 2): must be (B = 2, T = 6, N = 3)"),
    ("s6_scan", "b", torch.zeros(2, 6, 3, 3), ShapeError, "G = 3 groups must divide E = 4"),
    (
        "s6_scan",
        "c",
        torch.zeros(2, 6, 3, dtype=torch.float64),
        ShapeError,
        "c: dtype torch.float64: must be",
    ),
    ("s6_scan", "skip", torch.zeros(5), ShapeError, "skip: shape (5,): must be (E = 4)"),
    ("s6_scan", "gate", torch.zeros(2, 6), ShapeError, "gate: shape (2, 6): must be (B = 2, T = 6, E = 4)"),
    ("s6_scan", "delta_bias", torch.zeros(4, 1), ShapeError, "delta_bias: shape (4, 1): must be (E = 4)"),
    ("s6_scan", "h0", torch.zeros(1, 4, 3), StateError, "h0: shape (1, 4, 3): must be (B = 2, E = 4, N = 3)"),
    ("s6_step", "delta", torch.zeros(3, 4), ShapeError, "delta: shape (3, 4): must be (B = 2, E = 4)"),
    ("s6_step", "h0", torch.zeros(3, 4, 3), StateError, "h0: shape (3, 4, 3)"),
    ("s6_step", "h0", None, StateError, "h0: a NoneType: must be a tensor"),
    (
        "causal_conv",
        "weight",
        torch.zeros(4, 9),
        ShapeError,
        "weight: shape (4, 9): W = 9 must be from 2 to 8",
    ),
    ("causal_conv", "weight", torch.zeros(4, 1), ShapeError, "W = 1 must be from 2 to 8"),
    ("causal_conv", "bias", torch.zeros(5), ShapeError, "bias: shape (5,): must be (E = 4)"),
    (
        "causal_conv",
        "h0",
        torch.zeros(2, 4, 4),
        StateError,
        "h0: shape (2, 4, 4): must be (B = 2, W-1 = 3, E",
    ),
    ("attention", "k", torch.zeros(2, 9, 3, 2), ShapeError, "k: shape (2, 9, 3, 2): G = 3 must divide H = 4"),
    ("attention", "k", torch.zeros(2, 0, 2, 2), ShapeError, "k: shape (2, 0, 2, 2)"),
    ("attention", "v", torch.zeros(2, 8, 2, 2), ShapeError, "v: shape (2, 8, 2, 2): must be (B = 2, S = 9"),
    ("attention", "window", 0, ShapeError, "window = 0: must be a whole number of at least 1, or inf"),
    ("attention", "window", 2.5, ShapeError, "window = 2.5: must be a whole number"),
    ("attention", "window", float("nan"), ShapeError, "window = nan: must be a whole number"),
    ("attention", "q_start", torch.tensor([1]), ShapeError, "q_start: shape (1,): must be (B,) = (2,)"),
    ("attention", "k_lengths", torch.tensor([1, 10]), ShapeError, "k_lengths = [1, 10]: must lie in [0, S]"),
    ("lti_conv", "kernel", torch.zeros(4, 0), ShapeError, "kernel: shape (4, 0): R must be at least 1"),
    ("lti_conv", "kernel", torch.zeros(3, 6), ShapeError, "kernel: shape (3, 6): must be (E = 4, R)"),
    ("linear_step", "x", torch.zeros(0, 4), ShapeError, "x: shape (0, 4): B = 0 must be at least 1"),
    ("linear_step", "x", torch.zeros(2, 3, 4), ShapeError, "x: shape (2, 3, 4): must be (B, D)"),
    ("linear_step", "weight", torch.zeros(5, 3), ShapeError, "weight: shape (5, 3): must be (M = 5, D = 4)"),
    ("linear_step", "weight", torch.zeros(5, 4).double(), ShapeError, "weight: dtype torch.float64: must be"),
    ("linear_step", "add", torch.zeros(4), ShapeError, "add: shape (4,): must be (M = 5)"),
    ("linear_step", "add", torch.zeros(3, 5), ShapeError, "add: shape (3, 5): must be (B = 2, M = 5)"),
    ("rms_norm", "weight", torch.zeros(3), ShapeError, "weight: shape (3,): must be (D = 4)"),
    ("rms_norm", "x", torch.zeros(2, 4, dtype=torch.int64), ShapeError, "x: dtype torch.int64: must be a"),
]


@pytest.mark.parametrize(("op", "name", "value", "error", "message"), WRONG)
def test_wrong_arguments(op, name, value, error, message):
    more = {"c": value} if op == "s6_scan" and name == "b" and value.ndim == 4 else {}
    with pytest.raises(error) as caught:
        public(op)(**good(op) | more | {name: value})
    assert str(caught.value).startswith(f"{op}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", OPS)
def test_right_arguments_pass_and_the_reference_runs_only_by_name(name):
    arguments = good(name)
    got, want = public(name)(**arguments), public(name)(**arguments, impl="reference")
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
    assert OPS[name].choose(OPS[name].example(OPS[name].cases[0], torch.Generator())).name != "reference"
    assert all(impl.name != "reference" for impl in OPS[name].impls)


@pytest.mark.parametrize("name", OPS)
def test_an_unknown_implementation_is_refused_with_the_known_ones(name):
    with pytest.raises(NoKernelError, match=rf"{name}: impl = 'warp': .*must be one of auto, .*reference"):
        public(name)(**good(name), impl="warp")


@pytest.mark.parametrize(
    ("cu_seqlens", "rule"),
    [
        ([0, 4], r"cu_seqlens = \[0, 4\]: must rise from 0 to the total length 6"),
        ([1, 6], "must rise from 0"),
        ([0, 5, 3, 6], "must rise from 0"),
        ([6], r"shape \(1,\): must be \(S \+ 1,\) with S at least 1"),
        ([[0, 6]], r"shape \(1, 2\)"),
    ],
)
def test_wrong_cu_seqlens(cu_seqlens, rule):
    for name in ("rnn_scan", "lstm_scan", "gru_scan", "s6_scan", "causal_conv", "lti_conv"):
        arguments = {
            n: x[:1] if isinstance(x, torch.Tensor) and x.ndim == 3 and len(x) == 2 else x
            for n, x in good(name).items()
            if n not in ("h0", "c0")
        }
        with pytest.raises(ShapeError, match=rule):
            public(name)(**arguments, cu_seqlens=torch.tensor(cu_seqlens))


def test_lengths_and_cu_seqlens_exclude_each_other():
    x = torch.zeros(1, 3, 2)
    with pytest.raises(ShapeError, match="cu_seqlens: given together with lengths"):
        check_batch(x, lengths=torch.tensor([3]), cu_seqlens=torch.tensor([0, 3]))
    with pytest.raises(ShapeError, match="q_start: given together with cu_seqlens"):
        kernels.attention(
            *(torch.zeros(1, 3, 1, 2),) * 3, q_start=torch.tensor([0]), cu_seqlens=torch.tensor([0, 3])
        )


def test_check_batch_counts_sequences_and_takes_empty_ones():
    x = torch.zeros(1, 3, 2)
    assert check_batch(torch.zeros(4, 3, 2)) == 4
    assert check_batch(x, lengths=torch.tensor([0], dtype=torch.int32)) == 1
    assert check_batch(x, cu_seqlens=torch.tensor([0, 0, 1, 3, 3])) == 4
    with pytest.raises(ShapeError, match="at least one row and one step"):
        check_batch(x[:, :0])
    long = torch.full((20,), 9)
    with pytest.raises(ShapeError, match=r"lengths = \[9, .*\.\.\.\]"):
        check_contents(3, lengths=long)
