"""The error budget (tests/budget.py) as a number, for what a benchmark checks before it measures."""

import torch
from torch import Tensor


def excess(got: Tensor, plain: Tensor, exact: Tensor, dtype: torch.dtype | None = None) -> float:
    """The error of ``got`` against ``exact`` (float64), as a multiple of what is allowed: twice that of
    ``plain`` in the result's dtype (that of ``got`` by default), and rounding.
    """
    error = (got.double() - exact).norm()
    allowed = 2 * (plain.to(dtype or got.dtype).double() - exact).norm()
    allowed = allowed + 8 * torch.finfo(torch.float32).eps * exact.norm()
    return float((error / allowed).nan_to_num(torch.inf)) if error > 0 or error.isnan() else 0.0
