"""The steps of S6 with its state changed in place, for generation on a CPU."""

from struct import Struct
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quatrain.kernels import _core
from quatrain.kernels._core.tape import Tape
from quatrain.kernels.linear_step import cpu as linear_step
from quatrain.mixers._run import RecordedRun

if TYPE_CHECKING:
    from quatrain.mixers.s6 import S6, S6State

_pack_convolve = Struct("5P5q").pack
_pack_select = Struct("10P7q").pack


class S6Run(RecordedRun["S6State"]):
    """S6's `Run`: the small parameters are widened to float32 once."""

    @staticmethod
    def fits(mixer: "S6", state: "S6State") -> bool:
        """Whether the core can do it for this mixer and state."""
        weights = (module.weight for module in (mixer.in_proj, mixer.x_proj, mixer.dt_proj, mixer.out_proj))
        states = state.h.dtype == torch.float32 and state.conv.dtype == mixer.in_proj.weight.dtype
        return not mixer.config.zoh and states and linear_step.recordable(len(state.h), *weights)

    def __init__(self, mixer: "S6", state: "S6State") -> None:
        super().__init__()
        self._mixer, self._kind = mixer, type(state)
        self._h, self._conv = (x.detach().clone(memory_format=torch.contiguous_format) for x in state)
        with torch.no_grad():
            self._a = mixer._system().contiguous()
            self._taps = mixer.conv_weight.float().T.contiguous()  # (W, E)
            self._conv_bias, self._skip, self._bias = (
                x.float().contiguous() for x in (mixer.conv_bias, mixer.skip, mixer.dt_proj.bias)
            )

    def record(self, tape: Tape, x: Tensor, add: Tensor | None) -> Tensor:
        """See `RecordedRun.record`."""
        mixer, dtype = self._mixer, x.dtype
        batch, inner, state = self._h.shape

        def linear(x: Tensor, weight: Tensor, use: str, add: Tensor | None = None) -> Tensor:
            y = tape.buffer(use, batch, len(weight), dtype=dtype) if add is None else add
            return linear_step.record(tape, x, weight, add, y)

        both = linear(x, mixer.in_proj.weight, "in_proj")
        u = self._record_convolve(tape, both)
        selected = linear(u, mixer.x_proj.weight, "x_proj")
        low, b, c = selected.split_with_sizes((mixer.dt_rank, state, state), 1)
        delta = linear(low, mixer.dt_proj.weight, "dt_proj")
        y = self._record_select(tape, u, delta, b, c, both[:, inner:])
        return linear(y, mixer.out_proj.weight, "mixed", add)

    def _record_convolve(self, tape: Tape, x: Tensor) -> Tensor:
        batch, inner, _ = self._h.shape
        u = tape.buffer("u", batch, inner, dtype=x.dtype)
        tensors = (x, self._conv, u, self._taps, self._conv_bias)
        sizes = (_core.DTYPES[x.dtype], batch, inner, len(self._taps), x.stride(0))
        tape.add("qt_mamba_convolve", _pack_convolve(*(t.data_ptr() for t in tensors), *sizes), *tensors)
        return u

    def _record_select(
        self, tape: Tape, u: Tensor, delta: Tensor, b: Tensor, c: Tensor, gate: Tensor
    ) -> Tensor:
        y = tape.buffer("y", *u.shape, dtype=u.dtype)
        tensors = (u, delta, b, c, gate, self._a, self._skip, self._bias, self._h, y)
        sizes = (_core.DTYPES[u.dtype], *self._h.shape, b.stride(0), gate.stride(0), torch.get_num_threads())
        tape.add("qt_mamba_select", _pack_select(*(t.data_ptr() for t in tensors), *sizes), *tensors)
        return y

    def state(self) -> "S6State":
        """See `Run.state`."""
        return self._kind(self._h.clone(), self._conv.clone())
