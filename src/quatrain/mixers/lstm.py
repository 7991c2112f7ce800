"""LSTM with forget gate: Hochreiter and Schmidhuber 1997; Gers, Schmidhuber and Cummins 2000. See
docs/lstm.md.
"""

from dataclasses import dataclass
from math import isfinite
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from quatrain.config.check import check
from quatrain.kernels import lstm_scan
from quatrain.kernels._recurrent import KINDS
from quatrain.kernels._recurrent_layer import Run, layer
from quatrain.kernels.recurrent_step import step
from quatrain.mixers import _recurrent_run, _run
from quatrain.mixers._base import Causal, Layout
from quatrain.mixers._check import plain_state, positive_int
from quatrain.mixers._init import uniform_
from quatrain.mixers._recorded import Step
from quatrain.mixers._recurrent_run import RecurrentRun


@dataclass(frozen=True, kw_only=True)
class LSTMConfig:
    """Settings of `LSTM`. Raises ConfigError for a value outside its range."""

    width: Annotated[int, "numbers per token, in and out"] = 256
    forget_bias: Annotated[float, "bias of the forget gate at first; 1 remembers from the start"] = 1.0
    impl: Annotated[str, "implementation of the scan"] = "auto"

    def __post_init__(self) -> None:
        positive_int("width", self.width)
        number = isinstance(self.forget_bias, (int, float)) and not isinstance(self.forget_bias, bool)
        check(
            number and isfinite(self.forget_bias), "forget_bias", self.forget_bias, "must be a finite number"
        )


class LSTMState(NamedTuple):
    """The last output and the cell."""

    h: Tensor  # (B, D), float32 or wider
    c: Tensor  # (B, D), float32 or wider


class LSTM(Causal[LSTMState]):
    """i, f, g, o = in_proj(x_t) + recurrent h_{t-1}; c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g); y_t = h_t
    = sigmoid(o) tanh(c_t).

    ``x (B, T, D) -> y (B, T, D)``. Cost: 16 D^2 operations per token, one step after the other; state 2 D
    numbers. The gates are stacked in torch's order: input, forget, cell, output. At first: matrices uniform
    in [-1/sqrt(D), 1/sqrt(D)], as torch's; biases 0, that of the forget gate 1 (Jozefowicz et al., ICML
    2015).
    """

    Config: ClassVar[type[LSTMConfig]] = LSTMConfig
    State: ClassVar[type[LSTMState]] = LSTMState
    kind: ClassVar[str] = "lstm"
    config: LSTMConfig

    def __init__(self, config: LSTMConfig | None = None, **fields: object) -> None:
        super().__init__(config, **fields)
        width = self.config.width
        self.in_proj = nn.Linear(width, 4 * width)
        self.recurrent = nn.Parameter(torch.empty(4 * width, width))
        uniform_(self.in_proj.weight, width**-0.5)
        uniform_(self.recurrent, width**-0.5)
        with torch.no_grad():
            self.in_proj.bias.zero_()
            self.in_proj.bias[width : 2 * width] = self.config.forget_bias

    def run(self, state: LSTMState) -> _run.Run[LSTMState]:
        if not RecurrentRun.fits(self, state):
            return super().run(state)
        return RecurrentRun(self, state, KINDS["lstm"], 0)

    def _recorded_step(self, batch: int, dtype: torch.dtype) -> Step[LSTMState] | None:
        if not self._is_recordable(LSTM, self.in_proj):
            return None
        return _recurrent_run.step(self, batch, KINDS["lstm"], 0)

    def _forward(
        self,
        x: Tensor,
        state: LSTMState | None,
        lengths: Tensor | None,
        cu_seqlens: Tensor | None,
        keep_state: bool,
    ) -> tuple[Tensor, LSTMState]:
        if lengths is None and cu_seqlens is None:
            done = self._in_core(layer, x, state)
            if done is not None:
                return done
        drive = self.in_proj(
            x
        )  # (B, T, 4D); of low precision under autocast, and the recurrent matrix with it
        y, h, c = lstm_scan(
            drive,
            self.recurrent.to(drive.dtype),
            None if state is None else state.h,
            None if state is None else state.c,
            lengths=lengths,
            cu_seqlens=cu_seqlens,
            impl=self.config.impl,
        )
        return y, LSTMState(h, c)

    def _step(self, x: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        return self._in_core(step, x, state) or super()._step(x, state)

    def _in_core(self, run: Run, x: Tensor, state: LSTMState | None) -> tuple[Tensor, LSTMState] | None:
        """Projection and scan together, where the C++ core or a GPU kernel does it."""
        h0, c0 = (None, None) if state is None else state
        done = run(
            KINDS["lstm"],
            x,
            self.in_proj.weight,
            self.in_proj.bias,
            self.recurrent,
            None,
            h0,
            c0,
            impl=self.config.impl,
        )
        return None if done is None else (done[0], LSTMState(*done[1:]))

    def _check_state(self, state: LSTMState, batch: int) -> None:
        if not plain_state(state, LSTMState, (batch, self.config.width), self.recurrent):
            super()._check_state(state, batch)

    def _layout(self, batch: int, time: int) -> Layout:
        shape = (batch, self.config.width)
        return {"h": (shape, self._wide), "c": (shape, self._wide)}

    def flops_per_token(self, context: int) -> int:
        return 16 * self.config.width**2
