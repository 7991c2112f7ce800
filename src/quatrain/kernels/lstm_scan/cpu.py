"""LSTM scan in C++ on the CPU; README.md has the derivation and the measured share of the limit."""

from torch import Tensor

from quatrain.kernels._recurrent import LSTM, why_not
from quatrain.kernels._recurrent_function import scan as _scan

__all__ = ["scan", "why_not"]


def scan(
    x: Tensor,
    weight: Tensor,
    h0: Tensor | None = None,
    c0: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `lstm_scan_reference`; bfloat16 operands are rounded in the product, sums and the cell are float32
    or wider.
    """
    y, h, c = _scan(LSTM, x, weight, None, h0, c0, 0, lengths, cu_seqlens)
    return y, h, c
