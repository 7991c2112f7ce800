"""S6, the selective state-space model of Mamba: Gu and Dao, arXiv:2312.00752. See docs/s6.md."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.kernels import s6_scan, s6_step
from quatrain.kernels.linear_step import linear
from quatrain.kernels.s6_block_step import step as block_step
from quatrain.mixers import _s6_train
from quatrain.mixers._check import boolean, check_input, one_of, positive_int
from quatrain.mixers._init import step_sizes_, uniform_
from quatrain.mixers._mamba_block import MambaBlock, check_block
from quatrain.mixers._mamba_run import S6Run, record_s6
from quatrain.mixers._recorded import FixedStep, Step, plain
from quatrain.mixers._run import Run


@dataclass(frozen=True, kw_only=True)
class S6Config:
    """Settings of `S6`. Raises ConfigError for a value outside its range."""

    width: Annotated[int, "numbers per token, in and out"] = 256
    state: Annotated[int, "state numbers per inner channel (N)"] = 16
    expand: Annotated[int, "inner width as a multiple of width"] = 2
    conv: Annotated[int, "steps that the convolution sees, 2 to 8"] = 4
    dt_rank: Annotated[
        int | Literal["auto"], "rank of the step size's projection; auto: width / 16, rounded up"
    ] = "auto"
    dt_min: Annotated[float, "smallest step size at first"] = 0.001
    dt_max: Annotated[float, "largest step size at first"] = 0.1
    zoh: Annotated[bool, "zero-order hold for B in the place of Euler's rule"] = False
    impl: Annotated[str, "implementation of the scan"] = "auto"

    def __post_init__(self) -> None:
        check_block(self)
        if isinstance(self.dt_rank, str):
            one_of("dt_rank", self.dt_rank, ("auto",))
        else:
            positive_int("dt_rank", self.dt_rank)
        boolean("zoh", self.zoh)


class S6State(NamedTuple):
    """The scan's state and the convolution's last inputs."""

    h: Tensor  # (B, E, N), float32 or wider
    conv: Tensor  # (B, W - 1, E)


class S6(MambaBlock[S6State]):
    """The whole Mamba block: a linear recurrence whose step size, input and output maps depend on the input.

    u, z = in_proj(x); u = silu(conv(u)); s, b, c = x_proj(u); dt = softplus(dt_proj(s)); a = -exp(a_log)
    h_t = exp(dt_t a) h_{t-1} + dt_t u_t b_t;  y = out_proj((c_t h_t + skip u_t) silu(z_t))

    That is zero-order hold for A and Euler's rule for B, as in Mamba's code; ``zoh=True`` takes zero-order
    hold for
    both: (exp(dt a) - 1) / a in the place of dt. ``x (B, T, D) -> y (B, T, D)``. Cost: per token
    6 D E + 2 E (R + 2 N) + 2 R E + 7 E N operations, parallel over time in training; state E (N + W - 1)
    numbers. At first (the paper): a = -(1..N) in every channel, step sizes log-uniform in [dt_min, dt_max],
    skip 1.
    """

    Config: ClassVar[type[S6Config]] = S6Config
    State: ClassVar[type[S6State]] = S6State
    kind: ClassVar[str] = "s6"
    config: S6Config

    def __init__(self, config: S6Config | None = None, **fields: object) -> None:
        super().__init__(config, **fields)
        inner, state, rank = self.inner, self.config.state, self.dt_rank
        self.x_proj = nn.Linear(inner, rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.a_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(inner, 1))  # (E, N)
        uniform_(self.dt_proj.weight, rank**-0.5)
        step_sizes_(self.dt_proj.bias, self.config.dt_min, self.config.dt_max)

    @property
    def dt_rank(self) -> int:
        """R, the rank of the step size's projection."""
        rank = self.config.dt_rank
        return -(-self.config.width // 16) if isinstance(rank, str) else rank

    def run(self, state: S6State) -> Run[S6State]:
        if state.h.is_cuda:
            return _BlockRun(self, state)
        return S6Run(self, state) if S6Run.fits(self, state) else super().run(state)

    def step_residual(
        self, x: Tensor, state: S6State, norm_weight: Tensor, eps: float
    ) -> tuple[Tensor, S6State] | None:
        if not x.is_cuda:
            return None
        check_input(x, self.config.width, 2, self._like)
        self._check_state(state, x.shape[0])
        return self._fused_step(x, state, norm_weight, eps)

    def _step(self, x: Tensor, state: S6State) -> tuple[Tensor, S6State]:
        done = self._fused_step(x, state, None, 0.0) if x.is_cuda else None
        return super()._step(x, state) if done is None else done

    def _fused_step(
        self, x: Tensor, state: S6State, norm_weight: Tensor | None, eps: float
    ) -> tuple[Tensor, S6State] | None:
        """A step by one op, between norm and residual sum if there is a norm; None where it is not taken."""
        maps = (self.in_proj, self.x_proj, self.dt_proj, self.out_proj)
        if type(self) is not S6 or self.config.impl != "auto" or not plain(*maps):
            return None
        done = block_step(
            x,
            self.in_proj.weight,
            self.conv_weight,
            self.x_proj.weight,
            self.dt_proj.weight,
            self.a_log,
            self.out_proj.weight,
            state.h,
            state.conv,
            norm_weight,
            self.conv_bias,
            self.dt_proj.bias,
            self.skip,
            eps=eps,
            zoh=self.config.zoh,
        )
        return None if done is None else (done[0], S6State(*done[1:]))

    def _recorded_step(self, batch: int, dtype: torch.dtype) -> Step[S6State] | None:
        if self.config.zoh or not self._is_recordable(
            S6, self.in_proj, self.x_proj, self.dt_proj, self.out_proj
        ):
            return None
        small = (self.conv_weight, self.conv_bias, self.skip, self.dt_proj.bias)
        write = partial(record_s6, mixer=self, small=small, rates=None)
        return FixedStep(S6State, self._layout(batch, 0), write)

    def _trained(self, both: Tensor, lengths: Tensor | None, cu_seqlens: Tensor | None) -> Tensor | None:
        return _s6_train.run(self, both, lengths, cu_seqlens) if _s6_train.fits(self, both) else None

    def _ssm(
        self,
        u: Tensor,
        gate: Tensor,
        h0: Tensor | None,
        lengths: Tensor | None,
        cu_seqlens: Tensor | None,
        keep_state: bool,
    ) -> tuple[Tensor, Tensor]:
        delta, b, c = self._select(u)
        return s6_scan(
            u,
            delta,
            self._system(),
            b,
            c,
            self.skip,
            gate,
            self.dt_proj.bias,
            h0,
            softplus=True,
            zoh=self.config.zoh,
            lengths=lengths,
            cu_seqlens=cu_seqlens,
            impl=self.config.impl,
        )

    def _ssm_step(self, u: Tensor, gate: Tensor, h0: Tensor, system: Tensor) -> tuple[Tensor, Tensor]:
        delta, b, c = self._select(u, linear)
        return s6_step(
            u,
            delta,
            system,
            b,
            c,
            self.skip,
            gate,
            self.dt_proj.bias,
            h0,
            softplus=True,
            zoh=self.config.zoh,
        )

    def _select(
        self, u: Tensor, product: Callable[[Tensor, Tensor], Tensor] = F.linear
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Step size before bias and softplus (..., E), b and c (..., N): all of them from the input."""
        state = self.config.state
        low, b, c = product(u, self.x_proj.weight).split_with_sizes((self.dt_rank, state, state), -1)
        return product(low, self.dt_proj.weight), b, c

    def _system(self) -> Tensor:
        return -self.a_log.to(self._wide).exp()

    def flops_per_token(self, context: int) -> int:
        inner, state, rank = self.inner, self.config.state, self.dt_rank
        return self._block_flops() + 2 * inner * (rank + 2 * state) + 2 * rank * inner + 7 * inner * state


class _BlockRun(Run[S6State]):
    """S6's run on a GPU: a step is one op where that takes the arguments, else its parts."""

    def __init__(self, mixer: S6, state: S6State) -> None:
        system = mixer._system()
        super().__init__(lambda x, before: mixer._advance(x, before, system), state)
        self._mixer = mixer

    def __call__(self, x: Tensor) -> Tensor:
        y = self._fused(x, None, 0.0)
        return super().__call__(x) if y is None else y

    def residual(self, x: Tensor, norm_weight: Tensor, eps: float) -> Tensor | None:
        return self._fused(x, norm_weight, eps)

    def _fused(self, x: Tensor, norm_weight: Tensor | None, eps: float) -> Tensor | None:
        done = self._mixer._fused_step(x, self._state, norm_weight, eps)
        if done is None:
            return None
        y, self._state = done
        return y
