"""GRU: Cho et al., arXiv:1406.1078, and the variant of cuDNN and torch. See docs/gru.md."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from quatrain.kernels import gru_scan
from quatrain.kernels._recurrent import KINDS
from quatrain.kernels._recurrent_layer import Run, layer
from quatrain.kernels.recurrent_step import step
from quatrain.mixers import _recurrent_run, _run
from quatrain.mixers._base import Causal, Layout
from quatrain.mixers._check import one_of, plain_state, positive_int
from quatrain.mixers._init import uniform_
from quatrain.mixers._recorded import Step
from quatrain.mixers._recurrent_run import RecurrentRun


@dataclass(frozen=True, kw_only=True)
class GRUConfig:
    """Settings of `GRU`. Raises ConfigError for a value outside its range."""

    width: Annotated[int, "numbers per token, in and out"] = 256
    reset: Annotated[
        Literal["after", "before"],
        "the reset gate acts after the recurrent product, as in torch and cuDNN, or before it (Cho et al.)",
    ] = "after"
    impl: Annotated[str, "implementation of the scan"] = "auto"

    def __post_init__(self) -> None:
        positive_int("width", self.width)
        one_of("reset", self.reset, ("after", "before"))


class GRUState(NamedTuple):
    """The last output."""

    h: Tensor  # (B, D), float32 or wider


class GRU(Causal[GRUState]):
    """r, z, n' = in_proj(x_t); r = sigmoid(r + U_r h_{t-1}); z = sigmoid(z + U_z h_{t-1}); y_t = h_t =
    (1 - z) n + z h_{t-1}; n = tanh(n' + r (U_n h_{t-1} + recurrent_bias)), or with ``reset="before"``
    tanh(n' + U_n (r h_{t-1})).

    ``x (B, T, D) -> y (B, T, D)``. Cost: 12 D^2 operations per token, one step after the other; state D
    numbers. The gates are stacked in torch's order: reset, update, new. At first: matrices uniform in
    [-1/sqrt(D), 1/sqrt(D)], as torch's; biases 0.
    """

    Config: ClassVar[type[GRUConfig]] = GRUConfig
    State: ClassVar[type[GRUState]] = GRUState
    kind: ClassVar[str] = "gru"
    config: GRUConfig

    def __init__(self, config: GRUConfig | None = None, **fields: object) -> None:
        super().__init__(config, **fields)
        width = self.config.width
        self.in_proj = nn.Linear(width, 3 * width)
        self.recurrent = nn.Parameter(torch.empty(3 * width, width))
        after = self.config.reset == "after"
        self.recurrent_bias = nn.Parameter(torch.zeros(width)) if after else None
        uniform_(self.in_proj.weight, width**-0.5)
        uniform_(self.recurrent, width**-0.5)
        nn.init.zeros_(self.in_proj.bias)

    def run(self, state: GRUState) -> _run.Run[GRUState]:
        if not RecurrentRun.fits(self, state):
            return super().run(state)
        before = self.config.reset == "before"
        return RecurrentRun(
            self, state, KINDS["gru before" if before else "gru"], int(before), self.recurrent_bias
        )

    def _recorded_step(self, batch: int, dtype: torch.dtype) -> Step[GRUState] | None:
        if not self._is_recordable(GRU, self.in_proj):
            return None
        before = self.config.reset == "before"
        kind = KINDS["gru before" if before else "gru"]
        return _recurrent_run.step(self, batch, kind, int(before), self.recurrent_bias)

    def _forward(
        self,
        x: Tensor,
        state: GRUState | None,
        lengths: Tensor | None,
        cu_seqlens: Tensor | None,
        keep_state: bool,
    ) -> tuple[Tensor, GRUState]:
        if lengths is None and cu_seqlens is None:
            done = self._in_core(layer, x, state)
            if done is not None:
                return done
        drive = self.in_proj(
            x
        )  # (B, T, 3D); of low precision under autocast, and the recurrent parameters with it
        y, h = gru_scan(
            drive,
            self.recurrent.to(drive.dtype),
            None if self.recurrent_bias is None else self.recurrent_bias.to(drive.dtype),
            None if state is None else state.h,
            reset=self.config.reset,
            lengths=lengths,
            cu_seqlens=cu_seqlens,
            impl=self.config.impl,
        )
        return y, GRUState(h)

    def _step(self, x: Tensor, state: GRUState) -> tuple[Tensor, GRUState]:
        return self._in_core(step, x, state) or super()._step(x, state)

    def _in_core(self, run: Run, x: Tensor, state: GRUState | None) -> tuple[Tensor, GRUState] | None:
        """Projection and scan together, where the C++ core or a GPU kernel does it."""
        h0 = None if state is None else state.h
        done = run(
            KINDS["gru" if self.config.reset == "after" else "gru before"],
            x,
            self.in_proj.weight,
            self.in_proj.bias,
            self.recurrent,
            self.recurrent_bias,
            h0,
            None,
            variant=int(self.config.reset == "before"),
            impl=self.config.impl,
        )
        return None if done is None else (done[0], GRUState(*done[1:]))

    def _check_state(self, state: GRUState, batch: int) -> None:
        if not plain_state(state, GRUState, (batch, self.config.width), self.recurrent):
            super()._check_state(state, batch)

    def _layout(self, batch: int, time: int) -> Layout:
        return {"h": ((batch, self.config.width), self._wide)}

    def flops_per_token(self, context: int) -> int:
        return 12 * self.config.width**2
