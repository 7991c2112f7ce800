"""GRU scan in C++ on the CPU; README.md has the derivation and the measured share of the limit."""

from torch import Tensor

from quatrain.kernels._recurrent import GRU, GRU_BEFORE, why_not
from quatrain.kernels._recurrent_function import scan as _scan

__all__ = ["scan", "why_not"]


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
    """See `gru_scan_reference`; bfloat16 operands are rounded in the products, sums and the state are float32
    or wider.
    """
    before = reset == "before"
    kind = GRU_BEFORE if before else GRU
    y, h = _scan(kind, x, weight, bias, h0, None, int(before), lengths, cu_seqlens)
    return y, h
