"""GRU scan in CUDA C++ for Hopper, one kernel for all steps; see ``_recurrent_cuda``."""

from torch import Tensor

from quatrain.kernels import _recurrent_cuda
from quatrain.kernels._op import Arguments


def why_not(arguments: Arguments) -> str | None:
    """Why the kernel cannot run these arguments; reads metadata only."""
    if arguments.get("reset") == "before":
        return "reset = 'before': its two products of a step wait for each other, the kernel has one a step"
    return _recurrent_cuda.why_not("gru", arguments)


def scan(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    reset: str = "after",
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `gru_scan_reference` with ``reset="after"``; operands of 16 bits are rounded in the product, sums
    and the state are float32.
    """
    y, h = _recurrent_cuda.scan("gru", x, weight, bias, h0, None, lengths, cu_seqlens)
    return y, h
