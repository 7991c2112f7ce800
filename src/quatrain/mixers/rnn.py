"""Elman RNN: Elman, Finding structure in time, Cognitive Science 14(2), 1990. See docs/rnn.md."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from quatrain.kernels import rnn_scan
from quatrain.mixers._check import one_of
from quatrain.mixers._init import orthogonal_, uniform_
from quatrain.mixers._recurrent import Direction, Recurrent, RecurrentConfig, Starts


@dataclass(frozen=True, kw_only=True)
class RNNConfig(RecurrentConfig):
    """Settings of `RNN`. Raises ConfigError for a value outside its range."""

    nonlinearity: Annotated[Literal["tanh", "relu"], "function of the pre-activation"] = "tanh"
    recurrent_init: Annotated[
        Literal["orthogonal", "identity"],
        "first recurrent matrix; identity goes with relu (arXiv:1504.00941)",
    ] = "orthogonal"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("nonlinearity", self.nonlinearity, ("tanh", "relu"))
        one_of("recurrent_init", self.recurrent_init, ("orthogonal", "identity"))


class RNNState(NamedTuple):
    """The last output."""

    h: Tensor  # (B, D), float32 or wider


class RNN(Recurrent[RNNState]):
    """h_t = f(in_proj(x_t) + recurrent h_{t-1}), y_t = h_t, with f = tanh or ReLU.

    ``x (B, T, D) -> y (B, T, D)``. Cost: 4 D^2 operations per token, one step after the other; state D
    numbers. At first: in_proj uniform in [-1/sqrt(D), 1/sqrt(D)] with bias 0; recurrent orthogonal or the
    identity. ``causal=False`` and ``recurrent_dropout``: see `Recurrent`.
    """

    Config: ClassVar[type[RNNConfig]] = RNNConfig
    State: ClassVar[type[RNNState]] = RNNState
    kind: ClassVar[str] = "rnn"
    gates: ClassVar[int] = 1
    config: RNNConfig

    @property
    def _core(self) -> tuple[str, int]:
        return "rnn", int(self.config.nonlinearity == "relu")

    def _draw(self, weights: Direction | Recurrent[RNNState]) -> None:
        uniform_(weights.in_proj.weight, self._hidden**-0.5)
        nn.init.zeros_(weights.in_proj.bias)
        if self.config.recurrent_init == "identity":
            nn.init.eye_(weights.recurrent)
        else:
            orthogonal_(weights.recurrent)

    def _scan(
        self,
        drive: Tensor,
        matrix: Tensor,
        bias: Tensor | None,
        starts: Starts,
        lengths: Tensor | None,
        cu_seqlens: Tensor | None,
    ) -> tuple[Tensor, ...]:
        return rnn_scan(
            drive,
            matrix,
            starts[0],
            nonlinearity=self.config.nonlinearity,
            lengths=lengths,
            cu_seqlens=cu_seqlens,
            impl=self.config.impl,
        )
