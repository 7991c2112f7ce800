"""One step of a recurrent layer in the C++ core: one call."""

from typing import Any

import torch
from torch import Tensor

from quatrain.kernels import _core
from quatrain.kernels._autograd import recomputed
from quatrain.kernels._op import Arguments
from quatrain.kernels._recurrent import KINDS
from quatrain.kernels._recurrent_layer import STEP_ROWS
from quatrain.kernels._recurrent_layer import step as core_step
from quatrain.kernels.recurrent_step.product import step as torch_step

_KINDS = {"rnn_tanh": ("rnn", 0), "rnn_relu": ("rnn", 1), "lstm": ("lstm", 0), "gru": ("gru", 0)} | {
    "gru_before": ("gru before", 1)
}


def why_not(arguments: Arguments) -> str | None:
    """Why the core cannot run these arguments; reads metadata only."""
    x: Tensor = arguments["x"]
    if x.device.type != "cpu":
        return f"x is on {x.device.type}, the C++ core runs on the CPU"
    if x.dtype not in (torch.float32, torch.float64):
        return f"x is {x.dtype}, must be float32 or float64: the core rounds the drive to narrower ones"
    if len(x) > STEP_ROWS:
        return f"a batch of {len(x)}: the step reads weights for at most {STEP_ROWS} rows"
    if torch.compiler.is_compiling():
        return "torch is tracing: its own can be compiled"
    reason: str | None = _core.missing()
    return reason


def step(
    x: Tensor,
    in_weight: Tensor,
    weight: Tensor,
    h0: Tensor,
    c0: Tensor | None = None,
    in_bias: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    kind: str,
) -> tuple[Tensor, ...]:
    """See `recurrent_step_reference`; gradients by running torch's again."""
    name, variant = _KINDS[kind]

    def fast(*tensors: Any) -> tuple[Tensor, ...]:
        x, in_weight, weight, h0, c0, in_bias, bias = (None if v is None else v.contiguous() for v in tensors)
        given: Any = (x, in_weight, in_bias, weight, bias, h0, c0)
        found = core_step(KINDS[name], *given, variant=variant, impl="cpp")
        assert found is not None
        return found

    def slow(*tensors: Any) -> tuple[Tensor, ...]:
        return torch_step(*tensors, kind=kind)

    found: tuple[Tensor, ...] = recomputed(fast, slow, x, in_weight, weight, h0, c0, in_bias, bias)
    return found
