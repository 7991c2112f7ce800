"""S4D, the diagonal time-invariant state-space model: Gu, Gupta, Goel and Re, arXiv:2206.11893. See
docs/s4d.md.
"""

from dataclasses import dataclass
from functools import partial
from math import pi
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.config.check import check
from quatrain.kernels import lti_conv
from quatrain.kernels._batch import pack, unpack
from quatrain.mixers import _lti
from quatrain.mixers._check import boolean
from quatrain.mixers._init import step_sizes_
from quatrain.mixers._mamba_block import MambaBlock, check_block
from quatrain.mixers._mamba_run import record_s4d
from quatrain.mixers._recorded import FixedStep, Step


@dataclass(frozen=True, kw_only=True)
class S4DConfig:
    """Settings of `S4D`. Raises ConfigError for a value outside its range."""

    width: Annotated[int, "numbers per token, in and out"] = 256
    state: Annotated[int, "state numbers per inner channel (N); a complex one counts as two"] = 16
    expand: Annotated[int, "inner width as a multiple of width"] = 2
    conv: Annotated[int, "steps that the convolution sees, 2 to 8"] = 4
    dt_min: Annotated[float, "smallest step size at first"] = 0.001
    dt_max: Annotated[float, "largest step size at first"] = 0.1
    complex: Annotated[
        bool, "N/2 pairs of complex modes (S4D-Lin) in the place of N real ones (S4D-Real)"
    ] = False
    impl: Annotated[str, "implementation of the long convolution"] = "auto"

    def __post_init__(self) -> None:
        check_block(self)
        boolean("complex", self.complex)
        even = not self.complex or self.state % 2 == 0
        check(even, "state", self.state, "must be even with complex = true: modes come in conjugate pairs")


class S4DState(NamedTuple):
    """The modes' state and the convolution's last inputs."""

    h: Tensor  # (B, E, N), float32 or wider; complex modes as N/2 pairs (real, imaginary)
    conv: Tensor  # (B, W - 1, E)


class S4D(MambaBlock[S4DState]):
    """The block of S6 around a linear system that does not depend on the input.

    u, z = in_proj(x); u = silu(conv(u)); dt = softplus(dt_bias); a = -exp(a_log) [+ i a_imag]
    h_t = exp(dt a) h_{t-1} + (exp(dt a) - 1) / a u_t;  y = out_proj((Re(c h_t) + skip u_t) silu(z_t))

    Zero-order hold; B is 1, since only its product with C matters here. Trained as a convolution with the
    kernel k_t = Re(c (exp(dt a) - 1) / a exp(dt a t)) through FFTs, run as a recurrence.
    ``x (B, T, D) -> y (B, T, D)``.
    Cost: per token 6 D E + 5 E N operations as a recurrence; the convolution instead costs E log T per token,
    and E N once per step of the kernel. State E (N + W - 1) numbers.
    At first: S4D-Real a = -(1..N), or S4D-Lin a = -1/2 + i pi n, n = 0..N/2-1, standing for conjugate pairs,
    so that c counts twice; c normal with variance 1, step sizes log-uniform in [dt_min, dt_max], skip 1.
    """

    Config: ClassVar[type[S4DConfig]] = S4DConfig
    State: ClassVar[type[S4DState]] = S4DState
    kind: ClassVar[str] = "s4d"
    config: S4DConfig

    def __init__(self, config: S4DConfig | None = None, **fields: object) -> None:
        super().__init__(config, **fields)
        inner, state = self.inner, self.config.state
        if self.config.complex:
            modes = state // 2
            self.a_log = nn.Parameter(torch.full((inner, modes), 0.5).log())
            self.a_imag = nn.Parameter((pi * torch.arange(0.0, modes)).repeat(inner, 1))  # (E, M)
            self.c = nn.Parameter(torch.randn(inner, modes, 2) * 0.5**0.5)
        else:
            self.a_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(inner, 1))  # (E, N)
            self.c = nn.Parameter(torch.randn(inner, state))
        self.dt_bias = nn.Parameter(torch.empty(inner))
        step_sizes_(self.dt_bias, self.config.dt_min, self.config.dt_max)

    def _recorded_step(self, batch: int, dtype: torch.dtype) -> Step[S4DState] | None:
        if self.config.complex or not self._is_recordable(S4D, self.in_proj, self.out_proj):
            return None
        return FixedStep(S4DState, self._layout(batch, 0), partial(record_s4d, mixer=self))

    def _ssm(
        self,
        u: Tensor,
        gate: Tensor,
        h0: Tensor | None,
        lengths: Tensor | None,
        cu_seqlens: Tensor | None,
        keep_state: bool,
    ) -> tuple[Tensor, Tensor | None]:
        with torch.autocast(u.device.type, enabled=False):  # powers and sums over time need float32
            wide = u.to(self._wide)
            if cu_seqlens is None:
                y, h = self._convolve_modes(wide, h0, lengths, keep_state)
            else:
                padded, lengths = unpack(wide, cu_seqlens)
                y, h = self._convolve_modes(padded, h0, lengths, keep_state)
                y = pack(y, cu_seqlens)
            y = (y + self.skip.to(wide.dtype) * wide) * F.silu(gate.to(wide.dtype))
            if lengths is not None and cu_seqlens is None:
                y = y * (torch.arange(y.shape[1], device=y.device) < lengths[:, None])[..., None]
            return y.to(u.dtype), h

    def _convolve_modes(
        self, u: Tensor, h0: Tensor | None, lengths: Tensor | None, keep_state: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Re(c h_t) for all steps (B, T, E), and the last state; ``u`` past a length is 0."""
        time = u.shape[1]
        rate, drive, c = self._system()
        modes = None if h0 is None else self._to_modes(h0)
        coarse, fine = _lti.powers(rate, time)
        y = lti_conv(u, _lti.impulse_response(coarse, fine, c, drive, time), impl=self.config.impl)
        if modes is not None:
            y = y + _lti.free_response(coarse, fine, c, rate, modes, time)
        if not keep_state:
            return y, None
        return y, self._from_modes(_lti.last_state(coarse, fine, rate, drive, u, modes, lengths))

    def _ssm_step(
        self, u: Tensor, gate: Tensor, h0: Tensor, system: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        wide = u.to(self._wide)
        rate, drive, c = system
        h = torch.exp(rate) * self._to_modes(h0) + drive * wide[..., None]  # (B, E, M)
        y = (c * h).sum(-1)
        y = (y.real if y.is_complex() else y) + self.skip.to(wide.dtype) * wide
        return (y * F.silu(gate.to(wide.dtype))).to(u.dtype), self._from_modes(h)

    def _system(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rate dt a, drive (exp(dt a) - 1) / a and output map c, each (E, M); real, or complex with c
        doubled.
        """
        a = -self.a_log.to(self._wide).exp()
        c = self.c.to(self._wide)
        if self.config.complex:
            a = torch.complex(a, self.a_imag.to(self._wide))
            c = 2 * torch.view_as_complex(c)  # a mode and its conjugate
        rate = F.softplus(self.dt_bias.to(self._wide))[:, None] * a
        return rate, torch.expm1(rate) / a, c

    def _to_modes(self, h: Tensor) -> Tensor:
        h = h.to(self._wide)
        return torch.view_as_complex(h.reshape(*h.shape[:2], -1, 2)) if self.config.complex else h

    def _from_modes(self, h: Tensor) -> Tensor:
        return torch.view_as_real(h).flatten(2) if self.config.complex else h

    def flops_per_token(self, context: int) -> int:
        return self._block_flops() + 5 * self.inner * self.config.state
