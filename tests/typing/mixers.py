"""What a user's type checker must accept and infer; checked by mypy, never run."""

from typing import assert_type

import torch
from torch import Tensor

import quatrain
from quatrain.mixers.attention import AttentionConfig, AttentionState
from quatrain.mixers.gru import GRUState
from quatrain.mixers.lstm import LSTMConfig, LSTMState
from quatrain.mixers.rnn import RNNState
from quatrain.mixers.s4d import S4DState
from quatrain.mixers.s6 import S6Config, S6State

x = torch.zeros(2, 5, 256)

layer = quatrain.LSTM(width=256)
assert_type(layer, quatrain.LSTM)
y, state = layer(x)
assert_type(y, Tensor)
assert_type(state, LSTMState)
assert_type(state.c, Tensor)
assert_type(layer.step(x[:, 0], state), tuple[Tensor, LSTMState])
assert_type(layer.initial_state(2), LSTMState)
assert_type(layer.state_bytes(2, 5), int)
assert_type(layer.config, LSTMConfig)
assert_type(layer(x, None, torch.tensor([5, 3]), keep_state=False), tuple[Tensor, LSTMState | None])
assert_type(layer(x, state, keep_state=True), tuple[Tensor, LSTMState])

assert_type(quatrain.RNN(width=256)(x), tuple[Tensor, RNNState])
assert_type(quatrain.GRU(width=256, reset="before")(x), tuple[Tensor, GRUState])
assert_type(quatrain.Attention(AttentionConfig(width=256, heads=8))(x), tuple[Tensor, AttentionState])
assert_type(quatrain.S6(S6Config(width=256)).forward(x), tuple[Tensor, S6State])
assert_type(quatrain.S4D(width=256, complex=True)(x), tuple[Tensor, S4DState])

model = torch.nn.Sequential(torch.nn.Linear(8, 256), torch.nn.ReLU())
model.append(quatrain.S6(width=256))

layer(x, quatrain.RNN(width=256).initial_state(2))  # type: ignore[call-overload]  # a state of another mixer
