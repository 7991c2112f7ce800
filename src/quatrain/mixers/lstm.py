"""LSTM with forget gate: Hochreiter and Schmidhuber 1997; Gers, Schmidhuber and Cummins 2000. See
docs/lstm.md.
"""

from dataclasses import dataclass
from math import isfinite
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor

from quatrain.config.check import check
from quatrain.kernels import lstm_scan
from quatrain.mixers._init import uniform_
from quatrain.mixers._recurrent import Direction, Recurrent, RecurrentConfig, Starts


@dataclass(frozen=True, kw_only=True)
class LSTMConfig(RecurrentConfig):
    """Settings of `LSTM`. Raises ConfigError for a value outside its range."""

    forget_bias: Annotated[float, "bias of the forget gate at first; 1 remembers from the start"] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        number = isinstance(self.forget_bias, (int, float)) and not isinstance(self.forget_bias, bool)
        check(
            number and isfinite(self.forget_bias), "forget_bias", self.forget_bias, "must be a finite number"
        )


class LSTMState(NamedTuple):
    """The last output and the cell."""

    h: Tensor  # (B, D), float32 or wider
    c: Tensor  # (B, D), float32 or wider


class LSTM(Recurrent[LSTMState]):
    """i, f, g, o = in_proj(x_t) + recurrent h_{t-1}; c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g); y_t = h_t
    = sigmoid(o) tanh(c_t).

    ``x (B, T, D) -> y (B, T, D)``. Cost: 16 D^2 operations per token, one step after the other; state 2 D
    numbers. The gates are stacked in torch's order: input, forget, cell, output. At first: matrices uniform
    in [-1/sqrt(D), 1/sqrt(D)], as torch's; biases 0, that of the forget gate 1 (Jozefowicz et al., ICML
    2015). ``causal=False`` and ``recurrent_dropout``: see `Recurrent`.
    """

    Config: ClassVar[type[LSTMConfig]] = LSTMConfig
    State: ClassVar[type[LSTMState]] = LSTMState
    kind: ClassVar[str] = "lstm"
    gates: ClassVar[int] = 4
    config: LSTMConfig

    def _draw(self, weights: Direction | Recurrent[LSTMState]) -> None:
        hidden = self._hidden
        uniform_(weights.in_proj.weight, hidden**-0.5)
        uniform_(weights.recurrent, hidden**-0.5)
        with torch.no_grad():
            weights.in_proj.bias.zero_()
            weights.in_proj.bias[hidden : 2 * hidden] = self.config.forget_bias

    def _scan(
        self,
        drive: Tensor,
        matrix: Tensor,
        bias: Tensor | None,
        starts: Starts,
        lengths: Tensor | None,
        cu_seqlens: Tensor | None,
    ) -> tuple[Tensor, ...]:
        return lstm_scan(
            drive, matrix, *starts, lengths=lengths, cu_seqlens=cu_seqlens, impl=self.config.impl
        )
