"""The block around a state-space model that S6 and S4D share: Gu and Dao, Mamba, arXiv:2312.00752, figure
3.
"""

from abc import abstractmethod
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from quatrain.config.check import check
from quatrain.kernels import causal_conv
from quatrain.kernels.linear_step import linear
from quatrain.mixers._base import Causal, Layout
from quatrain.mixers._check import positive, positive_int
from quatrain.mixers._init import uniform_
from quatrain.mixers._run import Run

# NamedTuple(h, conv): the state-space model's state (B, E, N), float32 or wider, and the convolution's last
# inputs (B, W - 1, E) in the dtype of the data. A class per mixer, so that neither takes the other's state.
S = TypeVar("S", bound=tuple[Tensor, Tensor])


class MambaBlock(Causal[S]):
    """u, z = in_proj(x); u = silu(conv(u)); y = out_proj(ssm(u) * silu(z)), where ``ssm`` is the subclass's.

    The convolution is causal, depthwise, of width W; E = expand * D is the inner width.
    """

    def __init__(self, config: Any = None, **fields: object) -> None:
        super().__init__(config, **fields)
        width, inner = self.config.width, self.inner
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(inner, self.config.conv))
        self.conv_bias = nn.Parameter(torch.empty(inner))
        self.skip = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)
        bound = self.config.conv**-0.5  # as torch.nn.Conv1d with one channel per group
        uniform_(self.conv_weight, bound)
        uniform_(self.conv_bias, bound)

    @property
    def inner(self) -> int:
        """E, the width between the projections."""
        return int(self.config.expand * self.config.width)

    def _forward(
        self, x: Tensor, state: S | None, lengths: Tensor | None, cu_seqlens: Tensor | None, keep_state: bool
    ) -> tuple[Tensor, S | None]:
        h, conv = (None, None) if state is None else state
        both = self.in_proj(x)  # (B, T, 2 E)
        if state is None and not keep_state and (y := self._trained(both, lengths, cu_seqlens)) is not None:
            return y, None
        u, gate = both.chunk(2, dim=-1)  # (B, T, E) each
        u, conv = self._convolve(u, conv, lengths, cu_seqlens)
        y, h = self._ssm(u, gate, h, lengths, cu_seqlens, keep_state)
        return self.out_proj(y), (self.State(h, conv) if keep_state else None)

    def _trained(self, both: Tensor, lengths: Tensor | None, cu_seqlens: Tensor | None) -> Tensor | None:
        """The result from in_proj's, by one op that keeps less for training, if there is one."""
        return None

    def _step(self, x: Tensor, state: S) -> tuple[Tensor, S]:
        return self._advance(x, state, self._system())

    def run(self, state: S) -> Run[S]:
        system = self._system()  # once for all steps
        return Run(lambda x, before: self._advance(x, before, system), state)

    def _advance(self, x: Tensor, state: S, system: Any) -> tuple[Tensor, S]:
        h, conv = state
        u, gate = linear(x, self.in_proj.weight).chunk(2, dim=-1)  # (B, E) each
        u, conv = self._convolve(u[:, None], conv)
        y, h = self._ssm_step(u[:, 0], gate, h, system)
        return linear(y, self.out_proj.weight), self.State(h, conv)

    def _convolve(
        self, u: Tensor, state: Tensor | None, lengths: Tensor | None = None, cu_seqlens: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return causal_conv(
            u,
            self.conv_weight,
            self.conv_bias,
            None if state is None else state.to(u.dtype),
            silu=True,
            lengths=lengths,
            cu_seqlens=cu_seqlens,
        )

    @abstractmethod
    def _ssm(
        self,
        u: Tensor,  # (B, T, E)
        gate: Tensor,  # (B, T, E)
        h0: Tensor | None,
        lengths: Tensor | None,
        cu_seqlens: Tensor | None,
        keep_state: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Gated output (B, T, E) and last state of the state-space model; it may be None without
        ``keep_state``.
        """

    @abstractmethod
    def _ssm_step(self, u: Tensor, gate: Tensor, h0: Tensor, system: Any) -> tuple[Tensor, Tensor]:
        """One step of `_ssm`: ``u``, ``gate`` (B, E); ``system`` is what `_system` gives."""

    @abstractmethod
    def _system(self) -> Any:
        """What every step needs and parameters alone decide."""

    def _layout(self, batch: int, time: int) -> Layout:
        return {
            "h": ((batch, self.inner, self.config.state), self._wide),
            "conv": ((batch, self.config.conv - 1, self.inner), self._like.dtype),
        }

    def _block_flops(self) -> int:
        """Operations per token of both projections and the convolution."""
        width, inner = self.config.width, self.inner
        return int(6 * width * inner + 2 * inner * self.config.conv)


def check_block(config: Any) -> None:
    """Raise ConfigError for a field that both blocks have and that is outside its range."""
    for name in ("width", "state", "expand"):
        positive_int(name, getattr(config, name))
    width = config.conv
    check(type(width) is int and 2 <= width <= 8, "conv", width, "must be an integer from 2 to 8")
    positive("dt_min", config.dt_min)
    positive("dt_max", config.dt_max)
    check(
        config.dt_min <= config.dt_max, "dt_min", config.dt_min, f"must be at most dt_max = {config.dt_max}"
    )
