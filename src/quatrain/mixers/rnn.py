"""Elman RNN: Elman, Finding structure in time, Cognitive Science 14(2), 1990. See docs/rnn.md."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from quatrain.kernels import rnn_scan
from quatrain.kernels._recurrent import KINDS
from quatrain.kernels._recurrent_layer import Run, layer
from quatrain.kernels.recurrent_step import step
from quatrain.mixers import _recurrent_run, _run
from quatrain.mixers._base import Causal, Layout
from quatrain.mixers._check import one_of, plain_state, positive_int
from quatrain.mixers._init import orthogonal_, uniform_
from quatrain.mixers._recorded import Step
from quatrain.mixers._recurrent_run import RecurrentRun


@dataclass(frozen=True, kw_only=True)
class RNNConfig:
    """Settings of `RNN`. Raises ConfigError for a value outside its range."""

    width: Annotated[int, "numbers per token, in and out"] = 256
    nonlinearity: Annotated[Literal["tanh", "relu"], "function of the pre-activation"] = "tanh"
    recurrent_init: Annotated[
        Literal["orthogonal", "identity"],
        "first recurrent matrix; identity goes with relu (arXiv:1504.00941)",
    ] = "orthogonal"
    impl: Annotated[str, "implementation of the scan"] = "auto"

    def __post_init__(self) -> None:
        positive_int("width", self.width)
        one_of("nonlinearity", self.nonlinearity, ("tanh", "relu"))
        one_of("recurrent_init", self.recurrent_init, ("orthogonal", "identity"))


class RNNState(NamedTuple):
    """The last output."""

    h: Tensor  # (B, D), float32 or wider


class RNN(Causal[RNNState]):
    """h_t = f(in_proj(x_t) + recurrent h_{t-1}), y_t = h_t, with f = tanh or ReLU.

    ``x (B, T, D) -> y (B, T, D)``. Cost: 4 D^2 operations per token, one step after the other; state D
    numbers. At first: in_proj uniform in [-1/sqrt(D), 1/sqrt(D)] with bias 0; recurrent orthogonal or the
    identity.
    """

    Config: ClassVar[type[RNNConfig]] = RNNConfig
    State: ClassVar[type[RNNState]] = RNNState
    kind: ClassVar[str] = "rnn"
    config: RNNConfig

    def __init__(self, config: RNNConfig | None = None, **fields: object) -> None:
        super().__init__(config, **fields)
        width = self.config.width
        self.in_proj = nn.Linear(width, width)
        self.recurrent = nn.Parameter(torch.empty(width, width))
        uniform_(self.in_proj.weight, width**-0.5)
        nn.init.zeros_(self.in_proj.bias)
        if self.config.recurrent_init == "identity":
            nn.init.eye_(self.recurrent)
        else:
            orthogonal_(self.recurrent)

    def run(self, state: RNNState) -> _run.Run[RNNState]:
        if not RecurrentRun.fits(self, state):
            return super().run(state)
        return RecurrentRun(self, state, KINDS["rnn"], int(self.config.nonlinearity == "relu"))

    def _recorded_step(self, batch: int, dtype: torch.dtype) -> Step[RNNState] | None:
        if not self._is_recordable(RNN, self.in_proj):
            return None
        return _recurrent_run.step(self, batch, KINDS["rnn"], int(self.config.nonlinearity == "relu"))

    def _forward(
        self,
        x: Tensor,
        state: RNNState | None,
        lengths: Tensor | None,
        cu_seqlens: Tensor | None,
        keep_state: bool,
    ) -> tuple[Tensor, RNNState]:
        if lengths is None and cu_seqlens is None:
            done = self._in_core(layer, x, state)
            if done is not None:
                return done
        drive = self.in_proj(
            x
        )  # (B, T, D); of low precision under autocast, and the recurrent matrix with it
        y, h = rnn_scan(
            drive,
            self.recurrent.to(drive.dtype),
            None if state is None else state.h,
            nonlinearity=self.config.nonlinearity,
            lengths=lengths,
            cu_seqlens=cu_seqlens,
            impl=self.config.impl,
        )
        return y, RNNState(h)

    def _step(self, x: Tensor, state: RNNState) -> tuple[Tensor, RNNState]:
        return self._in_core(step, x, state) or super()._step(x, state)

    def _in_core(self, run: Run, x: Tensor, state: RNNState | None) -> tuple[Tensor, RNNState] | None:
        """Projection and scan together, where the C++ core or a GPU kernel does it."""
        h0 = None if state is None else state.h
        done = run(
            KINDS["rnn"],
            x,
            self.in_proj.weight,
            self.in_proj.bias,
            self.recurrent,
            None,
            h0,
            None,
            variant=int(self.config.nonlinearity == "relu"),
            impl=self.config.impl,
        )
        return None if done is None else (done[0], RNNState(*done[1:]))

    def _check_state(self, state: RNNState, batch: int) -> None:
        if not plain_state(state, RNNState, (batch, self.config.width), self.recurrent):
            super()._check_state(state, batch)

    def _layout(self, batch: int, time: int) -> Layout:
        return {"h": ((batch, self.config.width), self._wide)}

    def flops_per_token(self, context: int) -> int:
        return 4 * self.config.width**2
