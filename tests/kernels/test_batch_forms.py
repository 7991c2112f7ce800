"""Padded, packed and separate sequences give the same numbers; so do whole sequences and their chunks."""

from itertools import pairwise

import pytest
import torch

from quatrain.kernels import OPS, Case, attention
from quatrain.kernels._batch import mask, pack, unpack

LENGTHS = [4, 0, 1, 9, 6, 0]
TIME = max(LENGTHS)
STATES = {
    "rnn_scan": ("h0",),
    "lstm_scan": ("h0", "c0"),
    "gru_scan": ("h0",),
    "s6_scan": ("h0",),
    "causal_conv": ("h0",),
}
DATA = {
    "rnn_scan": ("x",),
    "lstm_scan": ("x",),
    "gru_scan": ("x",),
    "s6_scan": ("u", "delta", "b", "c", "gate"),
    "causal_conv": ("x",),
    "lti_conv": ("u",),
}
DIMS = {"B": 6, "T": TIME, "D": 5, "E": 4, "N": 3, "W": 4, "R": TIME}
SCANS = [
    pytest.param(OPS[name], impl.name, id=f"{name}-{impl.name}") for name in DATA for impl in OPS[name].impls
]


def arguments_of(op, dims, seed=0):
    optional = ("h0", "c0", "skip", "gate", "delta_bias", "bias")
    drawn = op.example(Case(dims, optional), torch.Generator().manual_seed(seed))
    return {name: x for name, x in drawn.items() if x is not None}


def run(op, impl, arguments, **more):
    given = {**dict.fromkeys(("lengths", "cu_seqlens")), **arguments, **more}
    chosen = op.choose(given, "reference")
    candidates = [i for i in op.impls if i.name == impl]
    if candidates and (reason := candidates[0].why_not(given)) is not None:
        pytest.skip(reason)
    chosen = candidates[0] if candidates else chosen
    return chosen.fn(**given)


@pytest.mark.parametrize(("op", "impl"), SCANS)
def test_padded_packed_and_separate_agree(op, impl):
    arguments = arguments_of(op, DIMS)
    data, states = DATA[op.name], STATES.get(op.name, ())
    lengths = torch.tensor(LENGTHS)
    cu_seqlens = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)))
    valid = mask(lengths, TIME)

    garbage = {
        name: torch.where(valid.view(6, TIME, *(1,) * (x.ndim - 2)), x, float("nan")) if name in data else x
        for name, x in arguments.items()
    }
    padded = run(op, impl, garbage, lengths=lengths)
    packed = run(
        op,
        impl,
        {name: x[valid][None] if name in data else x for name, x in arguments.items()},
        cu_seqlens=cu_seqlens,
    )
    torch.testing.assert_close(padded[0][valid], packed[0][0])
    assert not padded[0][~valid].any()
    for row, length in enumerate(LENGTHS):
        if length == 0:
            for name, h in zip(states, padded[1:], strict=True):
                torch.testing.assert_close(h[row], arguments[name][row])
            continue
        alone = run(
            op,
            impl,
            {
                name: x[row : row + 1, :length] if name in data else x[row : row + 1] if name in states else x
                for name, x in arguments.items()
            },
        )
        torch.testing.assert_close(alone[0][0], padded[0][row, :length])
        for h_alone, h_padded in zip(alone[1:], padded[1:], strict=True):
            torch.testing.assert_close(h_alone[0], h_padded[row])
    for h_packed, h_padded in zip(packed[1:], padded[1:], strict=True):
        torch.testing.assert_close(h_packed, h_padded)


@pytest.mark.parametrize(("op", "impl"), SCANS)
def test_gradients_ignore_the_padding(op, impl):
    arguments = arguments_of(op, DIMS)
    data = DATA[op.name]
    lengths = torch.tensor(LENGTHS)
    past = ~mask(lengths, TIME)
    leaves = {
        name: torch.where(past.view(6, TIME, *(1,) * (x.ndim - 2)), torch.nan, x) if name in data else x
        for name, x in arguments.items()
    }
    floats = {n: x.requires_grad_() for n, x in leaves.items() if isinstance(x, torch.Tensor)}
    results = run(op, impl, leaves, lengths=lengths)
    grads = torch.autograd.grad(sum(r.sum() for r in results), list(floats.values()), allow_unused=True)
    for name, grad in zip(floats, grads, strict=True):
        assert grad is not None, name
        assert grad.isfinite().all(), name
        if name in data:
            assert not grad[past].any(), name


@pytest.mark.parametrize(("op", "impl"), SCANS)
def test_all_rows_empty(op, impl):
    arguments = arguments_of(op, DIMS)
    y, *after = run(op, impl, arguments, lengths=torch.zeros(6, dtype=torch.int32))
    assert not y.any()
    for name, h in zip(STATES.get(op.name, ()), after, strict=True):
        torch.testing.assert_close(h, arguments[name])


CHUNKED = [case for case in SCANS if case.values[0].name in STATES]


@pytest.mark.parametrize(("op", "impl"), CHUNKED)
@pytest.mark.parametrize("cuts", [(0, 1, 23), (0, 5, 6, 20, 23)])
def test_chunks_with_carried_state_are_the_whole(op, impl, cuts):
    arguments = arguments_of(op, {**DIMS, "B": 2, "T": 23})
    data, states = DATA[op.name], STATES[op.name]
    arguments = {
        name: x.requires_grad_() if isinstance(x, torch.Tensor) else x for name, x in arguments.items()
    }
    floats = [x for x in arguments.values() if isinstance(x, torch.Tensor)]
    whole = run(op, impl, arguments)

    parts, carried = [], {name: arguments[name] for name in states}
    for start, stop in pairwise(cuts):
        piece = {n: x[:, start:stop] if n in data else x for n, x in arguments.items()} | carried
        y, *after = run(op, impl, piece)
        parts.append(y)
        carried = dict(zip(states, after, strict=True))
    chunked = (torch.cat(parts, dim=1), *carried.values())

    cotangents = [torch.randn_like(r) for r in whole]
    for a, b in zip(whole, chunked, strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(
        torch.autograd.grad(whole, floats, cotangents),
        torch.autograd.grad(chunked, floats, cotangents),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_s6_steps_are_the_scan():
    scan, step = OPS["s6_scan"], OPS["s6_step"]
    arguments = arguments_of(scan, {**DIMS, "B": 2, "T": 7})
    y, h = run(scan, "torch", arguments, softplus=True)
    state = arguments["h0"]
    for t in range(7):
        now = {n: x[:, t] if n in DATA["s6_scan"] else x for n, x in arguments.items()} | {"h0": state}
        out, state = step.run(now | {"softplus": True}, "torch")
        torch.testing.assert_close(out, y[:, t])
    torch.testing.assert_close(state, h)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [float("inf"), 3])
def test_attention_packed_is_each_sequence_alone(causal, window):
    rng = torch.Generator().manual_seed(0)
    lengths = torch.tensor([*LENGTHS, 300, 2, 260, 1])
    cu_seqlens = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)))
    q, k, v = (torch.randn(1, int(lengths.sum()), n, 4, generator=rng).double() for n in (4, 2, 2))
    y = attention(q, k, v, causal=causal, window=window, cu_seqlens=cu_seqlens)
    for start, stop in pairwise(cu_seqlens.tolist()):
        if start < stop:
            cut = [x[:, start:stop] for x in (q, k, v)]
            torch.testing.assert_close(y[:, start:stop], attention(*cut, causal=causal, window=window))


def test_unpack_and_pack_undo_each_other():
    cu_seqlens = torch.tensor([0, 0, 3, 4, 4, 9])
    x = torch.randn(1, 9, 2, 3, dtype=torch.float64, requires_grad=True)
    padded, lengths = unpack(x, cu_seqlens)
    assert padded.shape == (5, 5, 2, 3)
    assert lengths.tolist() == [0, 3, 1, 0, 5]
    assert not padded[~mask(lengths, 5)].any()
    assert torch.equal(pack(padded, cu_seqlens), x)
    assert torch.autograd.gradcheck(lambda x: pack(unpack(x, cu_seqlens)[0], cu_seqlens), (x,))
