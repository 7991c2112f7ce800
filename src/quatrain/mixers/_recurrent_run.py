"""The steps of RNN, LSTM and GRU with their states kept in place, for generation on a CPU."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from quatrain.kernels import _core
from quatrain.kernels._core.tape import Tape
from quatrain.kernels._recurrent import Kind, packed
from quatrain.kernels.linear_step import cpu as linear_step
from quatrain.mixers._recorded import FixedStep
from quatrain.mixers._run import RecordedRun


class RecurrentRun(RecordedRun[Any]):
    """`Run` of a mixer with ``in_proj`` and ``recurrent``: one call of the core for both and the gates."""

    @staticmethod
    def fits(mixer: Any, state: tuple[Tensor, ...]) -> bool:
        """Whether the core can do it for this mixer and state."""
        weights = (mixer.in_proj.weight, mixer.in_proj.bias, mixer.recurrent)
        dense = all(weight.is_contiguous() for weight in weights)
        wide = all(x.dtype == torch.float32 for x in state)
        return dense and wide and linear_step.recordable(len(state[0]), *weights)

    def __init__(self, mixer: Any, state: Any, kind: Kind, variant: int, bias: Tensor | None = None) -> None:
        super().__init__()
        self._mixer, self._kind, self._core_kind, self._variant = mixer, type(state), kind, variant
        self._bias = None if bias is None else bias.detach().float()
        # What was and what is: the core may not write a state while one of its threads still reads it.
        self._before = tuple(x.detach().clone(memory_format=torch.contiguous_format) for x in state)
        self._after = tuple(torch.empty_like(x) for x in self._before)

    def record(self, tape: Tape, x: Tensor, y: Tensor, add: bool) -> None:
        """See `RecordedRun.record`."""
        record(
            tape,
            x,
            y,
            add,
            self._before,
            self._after,
            self._mixer,
            self._core_kind,
            self._variant,
            self._bias,
        )
        for new, old in zip(self._after, self._before, strict=True):
            tape.copy(new, old)

    def state(self) -> Any:
        """See `Run.state`."""
        return self._kind(*(x.clone() for x in self._before))


def step(mixer: Any, batch: int, kind: Kind, variant: int, bias: Tensor | None = None) -> FixedStep[Any]:
    """The recorded step of such a mixer."""

    def write(tape: Tape, x: Tensor, y: Tensor, add: bool, before: Any, after: Any) -> None:
        record(tape, x, y, add, before, after, mixer, kind, variant, bias)

    return FixedStep(mixer.State, mixer._layout(batch, 0), write)


def record(
    tape: Tape,
    x: Tensor,
    y: Tensor,
    add: bool,
    before: Sequence[Tensor],
    after: Sequence[Tensor],
    mixer: Any,
    kind: Kind,
    variant: int,
    bias: Tensor | None,
) -> None:
    """Record ``y = mixer(x)``, added to y with ``add``; the state ``before`` may not be that ``after``."""
    batch, width = before[0].shape
    target = tape.buffer("recurrent", batch, width, dtype=x.dtype) if add else y
    was, now = (dict(zip("hc", states, strict=False)) for states in (before, after))
    fields = {
        "dtype": _core.DTYPES[x.dtype],
        "threads": _core.threads(),
        "variant": variant,
        "batch": batch,
        "time": 1,
        "width": width,
        "sequences": batch,
        "x": x,
        "in_weight": mixer.in_proj.weight,
        "in_bias": mixer.in_proj.bias,
        "in_width": x.shape[1],
        "weight": mixer.recurrent,
        "bias": None if bias is None else tape.widened(bias, "bias"),
        "h0": was["h"],
        "c0": was.get("c"),
        "y": target,
        "h": now["h"],
        "c": now.get("c"),
    }
    tensors = [value for value in fields.values() if isinstance(value, Tensor)]
    tape.add(f"qt_{kind.name}_step", packed(fields), *tensors)
    if add:
        tape.sum(target, y)
