"""GRU: Cho et al., arXiv:1406.1078, and the variant of cuDNN and torch. See docs/gru.md."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from quatrain.kernels import gru_scan
from quatrain.mixers._check import one_of
from quatrain.mixers._init import uniform_
from quatrain.mixers._recurrent import Direction, Recurrent, RecurrentConfig, Starts


@dataclass(frozen=True, kw_only=True)
class GRUConfig(RecurrentConfig):
    """Settings of `GRU`. Raises ConfigError for a value outside its range."""

    reset: Annotated[
        Literal["after", "before"],
        "the reset gate acts after the recurrent product, as in torch and cuDNN, or before it (Cho et al.)",
    ] = "after"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("reset", self.reset, ("after", "before"))


class GRUState(NamedTuple):
    """The last output."""

    h: Tensor  # (B, D), float32 or wider


class GRU(Recurrent[GRUState]):
    """r, z, n' = in_proj(x_t); r = sigmoid(r + U_r h_{t-1}); z = sigmoid(z + U_z h_{t-1}); y_t = h_t =
    (1 - z) n + z h_{t-1}; n = tanh(n' + r (U_n h_{t-1} + recurrent_bias)), or with ``reset="before"``
    tanh(n' + U_n (r h_{t-1})).

    ``x (B, T, D) -> y (B, T, D)``. Cost: 12 D^2 operations per token, one step after the other; state D
    numbers. The gates are stacked in torch's order: reset, update, new. At first: matrices uniform in
    [-1/sqrt(D), 1/sqrt(D)], as torch's; biases 0. ``causal=False`` and ``recurrent_dropout``: see
    `Recurrent`.
    """

    Config: ClassVar[type[GRUConfig]] = GRUConfig
    State: ClassVar[type[GRUState]] = GRUState
    kind: ClassVar[str] = "gru"
    gates: ClassVar[int] = 3
    config: GRUConfig

    @property
    def _core(self) -> tuple[str, int]:
        before = self.config.reset == "before"
        return "gru before" if before else "gru", int(before)

    @property
    def _has_bias(self) -> bool:
        return self.config.reset == "after"

    def _draw(self, weights: Direction | Recurrent[GRUState]) -> None:
        uniform_(weights.in_proj.weight, self._hidden**-0.5)
        uniform_(weights.recurrent, self._hidden**-0.5)
        nn.init.zeros_(weights.in_proj.bias)

    def _scan(
        self,
        drive: Tensor,
        matrix: Tensor,
        bias: Tensor | None,
        starts: Starts,
        lengths: Tensor | None,
        cu_seqlens: Tensor | None,
    ) -> tuple[Tensor, ...]:
        return gru_scan(
            drive,
            matrix,
            bias,
            starts[0],
            reset=self.config.reset,
            lengths=lengths,
            cu_seqlens=cu_seqlens,
            impl=self.config.impl,
        )
