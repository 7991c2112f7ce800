"""torch.nn's recurrent modules as stacks and back: the same bits, outputs, gradients and settings."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quatrain.errors import ConfigError, ShapeError, StateError
from quatrain.interop.torch_rnn import Stack, from_torch, to_torch

CASES: dict[str, tuple[type[nn.RNNBase], dict[str, Any]]] = {
    "rnn": (nn.RNN, {}),
    "rnn relu": (nn.RNN, {"nonlinearity": "relu", "num_layers": 2}),
    "lstm": (nn.LSTM, {}),
    "lstm deep": (nn.LSTM, {"num_layers": 3, "batch_first": True}),
    "lstm plain": (nn.LSTM, {"num_layers": 2, "bias": False}),
    "gru": (nn.GRU, {"batch_first": True}),
    "gru deep": (nn.GRU, {"num_layers": 2}),
    "gru plain": (nn.GRU, {"bias": False, "num_layers": 2, "batch_first": True}),
    "rnn both ways": (nn.RNN, {"bidirectional": True, "num_layers": 2, "batch_first": True}),
    "lstm both ways": (nn.LSTM, {"bidirectional": True, "num_layers": 2}),
    "gru both ways": (nn.GRU, {"bidirectional": True, "num_layers": 2, "bias": False}),
}
EVERY = pytest.mark.parametrize("name", CASES)


def make(name: str, dtype: torch.dtype = torch.float64, **more: Any) -> nn.RNNBase:
    torch.manual_seed(0)
    cls, settings = CASES[name]
    return cls(5, 7, dtype=dtype, **{**settings, **more})


def run(module: nn.RNNBase, x: Tensor, state: Any) -> tuple[Tensor, list[Tensor]]:
    """y (B, T, D), and for each layer its states, from a module of either order."""
    y, after = module(x if module.batch_first else x.transpose(0, 1), state)
    after = after if isinstance(after, tuple) else (after,)
    return y if module.batch_first else y.transpose(0, 1), [
        s for layer in zip(*after, strict=True) for s in layer
    ]


def states(module: nn.RNNBase, batch: int) -> tuple[Any, list[Tensor]]:
    """Random states in torch's form, and each layer's."""
    layers = module.num_layers * (1 + module.bidirectional)
    drawn = tuple(
        torch.randn(layers, batch, 7, dtype=torch.float64, requires_grad=True)
        for _ in range(2 if isinstance(module, nn.LSTM) else 1)
    )
    return (drawn if len(drawn) == 2 else drawn[0]), list(drawn)


def as_ours(stack: Stack, drawn: list[Tensor]) -> Any:
    return tuple(
        type(empty)(*(s[index] for s in drawn)) for index, empty in enumerate(stack.initial_state(1))
    )


@EVERY
def test_outputs_states_and_gradients_are_the_same(name: str) -> None:
    module = make(name)
    stack = from_torch(module)
    x = torch.randn(3, 6, 5, dtype=torch.float64, requires_grad=True)
    given, drawn = states(module, 3)
    wanted, last = run(module, x, given)
    y, after = stack(x, as_ours(stack, drawn))
    got = [s for layer in after for s in layer]
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(got, last)
    cotangents = [torch.randn_like(r) for r in (wanted, *last)]
    known = torch.autograd.grad([wanted, *last], [x, *drawn, *module.parameters()], cotangents)
    ours = torch.autograd.grad([y, *got], [x, *drawn, *stack.parameters()], cotangents)
    torch.testing.assert_close(ours, known)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_way_back_gives_the_same_bits_and_settings(name: str, dtype: torch.dtype) -> None:
    module = make(name, dtype).eval()
    module.weight_hh_l0.requires_grad_(False)  # type: ignore[union-attr]  # a Tensor, whatever the stubs say
    back = to_torch(from_torch(module))
    assert type(back) is type(module)
    assert repr(back) == repr(module)
    assert back.training is False
    for (key, parameter), (other, known) in zip(
        back.named_parameters(), module.named_parameters(), strict=True
    ):
        assert key == other
        assert parameter.dtype == known.dtype
        assert torch.equal(parameter, known)
        assert parameter.requires_grad == known.requires_grad
        assert parameter.data_ptr() != known.data_ptr()
    x = torch.randn(2, 3, 5, dtype=dtype)
    torch.testing.assert_close(run(back, x, None)[0], run(module, x, None)[0], rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in CASES if "both ways" not in name])
def test_steps_and_chunks_are_the_whole(name: str) -> None:
    stack, x = from_torch(make(name)), torch.randn(2, 6, 5, dtype=torch.float64)
    wanted, last = stack(x)
    y, state = stack(x[:, :4])
    parts = [y]
    for t in (4, 5):
        y, state = stack.step(x[:, t], state)
        parts.append(y[:, None])
    torch.testing.assert_close(torch.cat(parts, dim=1), wanted)
    torch.testing.assert_close(state, last)


@EVERY
def test_lengths_and_packing_are_torch_packed_sequences(name: str) -> None:
    module = make(name)
    stack, lengths = from_torch(module), torch.tensor([4, 6, 1])
    x = torch.randn(3, 6, 5, dtype=torch.float64)
    rows = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    found, last = module(rows)
    wanted, _ = nn.utils.rnn.pad_packed_sequence(found, batch_first=True)
    valid = torch.arange(6) < lengths[:, None]
    y, after = stack(x.masked_fill(~valid[..., None], float("nan")), None, lengths)
    torch.testing.assert_close(y, wanted)
    packed, after_packed = stack(x[valid][None], None, None, torch.tensor([0, 4, 10, 11]))
    torch.testing.assert_close(packed[0], wanted[valid])
    torch.testing.assert_close(after_packed, after)
    for got, known in zip(zip(*after, strict=True), last if len(after[0]) == 2 else (last,), strict=True):
        torch.testing.assert_close(torch.stack(got), known)


def test_dropout_acts_between_layers_in_training_only() -> None:
    module = make("lstm deep", dropout=0.5)
    stack, x = from_torch(module), torch.randn(2, 6, 5, dtype=torch.float64)
    assert not torch.equal(stack(x)[0], stack(x)[0])
    assert to_torch(stack).dropout == 0.5
    torch.testing.assert_close(stack.eval()(x)[0], module.eval()(x)[0])


def test_what_a_stack_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"module: a Linear: must be a torch\.nn\.RNN, LSTM or GRU"):
        from_torch(nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"module\.proj_size = 3: must be 0"):
        from_torch(nn.LSTM(5, 7, proj_size=3))
    with pytest.raises(ConfigError, match=r"stack: a LSTM: must be a quatrain\.interop\.torch_rnn\.Stack"):
        to_torch(nn.LSTM(5, 7))  # type: ignore[arg-type]
    stack = from_torch(nn.LSTM(5, 7, 2))
    with pytest.raises(ShapeError, match=r"x: shape \(2, 3, 7\): must be \(B, T, 5\)"):
        stack(torch.zeros(2, 3, 7))
    with pytest.raises(StateError, match=r"state: 1 layers: must be a tuple with the states of 2 layers"):
        stack.step(torch.zeros(2, 5), stack.initial_state(2)[:1])
    with pytest.raises(StateError, match=r"state\.h: shape \(3, 7\): must hold a batch of 2"):
        stack.step(torch.zeros(2, 5), stack.initial_state(3))
    stack = from_torch(nn.GRU(5, 7, 2, bidirectional=True))
    with pytest.raises(StateError, match=r"bidirectional = True: a bidirectional stack has no steps"):
        stack.step(torch.zeros(2, 5), stack.initial_state(2))
    rule = r"state: 2 layers: must be a tuple with the states of 2 layers x 2 directions"
    with pytest.raises(StateError, match=rule):
        stack(torch.zeros(2, 3, 5), stack.initial_state(2)[:2])
