"""The steps of S6 and S4D as recorded calls, for generation on a CPU."""

from collections.abc import Sequence
from struct import Struct
from typing import Any

import torch
from torch import Tensor

from quatrain.kernels import _core
from quatrain.kernels._core.tape import Tape
from quatrain.kernels.linear_step import cpu as linear_step
from quatrain.mixers._run import RecordedRun

_pack_convolve = Struct("6P8q").pack
_pack_select = Struct("11P9q").pack
_pack_modes = Struct("9P7q").pack


class S6Run(RecordedRun[Any]):
    """S6's `Run`: the rates are computed once, the small parameters widened to float32."""

    @staticmethod
    def fits(mixer: Any, state: Any) -> bool:
        """Whether the core can do it for this mixer and state."""
        weights = (module.weight for module in (mixer.in_proj, mixer.x_proj, mixer.dt_proj, mixer.out_proj))
        states = state.h.dtype == torch.float32 and state.conv.dtype == mixer.in_proj.weight.dtype
        return not mixer.config.zoh and states and linear_step.recordable(len(state.h), *weights)

    def __init__(self, mixer: Any, state: Any) -> None:
        super().__init__()
        self._mixer, self._kind = mixer, type(state)
        self._tensors = tuple(x.detach().clone(memory_format=torch.contiguous_format) for x in state)
        with torch.no_grad():
            self._rates = mixer._system().contiguous()
            taps = mixer.conv_weight.float().T.contiguous().T  # (E, W), channels side by side
            others = (mixer.conv_bias, mixer.skip, mixer.dt_proj.bias)
            self._small = (taps, *(x.float().contiguous() for x in others))

    def record(self, tape: Tape, x: Tensor, y: Tensor, add: bool) -> None:
        """See `RecordedRun.record`."""
        record_s6(tape, x, y, add, self._tensors, self._tensors, self._mixer, self._small, self._rates)

    def state(self) -> Any:
        """See `Run.state`."""
        return self._kind(*(x.clone() for x in self._tensors))


def record_s6(
    tape: Tape,
    x: Tensor,
    y: Tensor,
    add: bool,
    before: Sequence[Tensor],  # h, conv
    after: Sequence[Tensor],
    mixer: Any,
    small: Sequence[Tensor],  # convolution's weight and bias, skip, bias of the step size; of one dtype
    rates: Tensor | None,  # None: computed from a_log at each step
) -> None:
    """Record ``y = mixer(x)``, added to y with ``add``; ``after`` may be ``before``."""
    batch, inner, state = before[0].shape
    taps, conv_bias, skip, bias = small
    both = _linear(tape, x, mixer.in_proj.weight, "in_proj")
    u = _convolve(tape, both, before[1], after[1], taps, conv_bias)
    low, b, c = _linear(tape, u, mixer.x_proj.weight, "x_proj").split_with_sizes(
        (mixer.dt_rank, state, state), 1
    )
    delta = _linear(tape, low, mixer.dt_proj.weight, "dt_proj")
    gate = both[:, inner:]
    mixed = tape.buffer("mixed", batch, inner, dtype=x.dtype)
    a = mixer.a_log if rates is None else rates
    tensors = (u, delta, b, c, gate, a, skip, bias, before[0], after[0], mixed)
    sizes = (rates is None, batch, inner, state, b.stride(0), gate.stride(0), _core.threads())
    row = _pack_select(*(t.data_ptr() for t in tensors), *_types(x, skip), *sizes)
    tape.add("qt_mamba_select", row, *tensors)
    linear_step.record(tape, mixed, mixer.out_proj.weight, y if add else None, y)


def record_s4d(
    tape: Tape, x: Tensor, y: Tensor, add: bool, before: Sequence[Tensor], after: Sequence[Tensor], mixer: Any
) -> None:
    """Record ``y = mixer(x)`` of an S4D with real modes, added to y with ``add``."""
    batch, inner, state = before[0].shape
    both = _linear(tape, x, mixer.in_proj.weight, "in_proj")
    u = _convolve(tape, both, before[1], after[1], mixer.conv_weight, mixer.conv_bias)
    gate = both[:, inner:]
    mixed = tape.buffer("mixed", batch, inner, dtype=x.dtype)
    tensors = (u, gate, mixer.a_log, mixer.c, mixer.skip, mixer.dt_bias, before[0], after[0], mixed)
    sizes = (batch, inner, state, gate.stride(0), _core.threads())
    tape.add(
        "qt_mamba_modes",
        _pack_modes(*(t.data_ptr() for t in tensors), *_types(x, mixer.skip), *sizes),
        *tensors,
    )
    linear_step.record(tape, mixed, mixer.out_proj.weight, y if add else None, y)


def _types(x: Tensor, small: Tensor) -> tuple[int, int]:
    return _core.DTYPES[x.dtype], _core.DTYPES[small.dtype]


def _linear(tape: Tape, x: Tensor, weight: Tensor, use: str) -> Tensor:
    return linear_step.record(tape, x, weight, None, tape.buffer(use, len(x), len(weight), dtype=x.dtype))


def _convolve(
    tape: Tape, both: Tensor, before: Tensor, after: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """silu(conv) of the first half of ``both (B, 2 E)``, whose last inputs are ``before``, then ``after``."""
    batch, inner, taps = len(both), *weight.shape
    u = tape.buffer("u", batch, inner, dtype=both.dtype)
    tensors = (both, before, after, u, weight, bias)
    sizes = (batch, inner, taps, both.stride(0), *weight.stride())
    row = _pack_convolve(*(t.data_ptr() for t in tensors), *_types(both, weight), *sizes)
    tape.add("qt_mamba_convolve", row, *tensors)
    return u
