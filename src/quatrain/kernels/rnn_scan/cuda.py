"""Elman scan in CUDA C++ for Hopper, one kernel for all steps; see ``_recurrent_cuda``."""

from torch import Tensor

from quatrain.kernels import _recurrent_cuda
from quatrain.kernels._op import Arguments


def why_not(arguments: Arguments) -> str | None:
    """Why the kernel cannot run these arguments; reads metadata only."""
    return _recurrent_cuda.why_not(f"rnn_{arguments.get('nonlinearity', 'tanh')}", arguments)


def scan(
    x: Tensor,
    weight: Tensor,
    h0: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `rnn_scan_reference`; operands of 16 bits are rounded in the product, sums are float32."""
    y, h = _recurrent_cuda.scan(f"rnn_{nonlinearity}", x, weight, None, h0, None, lengths, cu_seqlens)
    return y, h
