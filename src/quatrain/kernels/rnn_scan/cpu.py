"""Elman scan in C++ on the CPU; README.md has the derivation and the measured share of the limit."""

from torch import Tensor

from quatrain.kernels._recurrent import RNN, why_not
from quatrain.kernels._recurrent_function import scan as _scan

__all__ = ["scan", "why_not"]


def scan(
    x: Tensor,
    weight: Tensor,
    h0: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `rnn_scan_reference`; bfloat16 operands are rounded in the product, sums are float32 or wider."""
    y, h = _scan(RNN, x, weight, None, h0, None, int(nonlinearity == "relu"), lengths, cu_seqlens)
    return y, h
