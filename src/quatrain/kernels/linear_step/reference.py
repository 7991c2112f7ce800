"""Readable linear map of one token: the definition every other implementation is tested against."""

from torch import Tensor

from quatrain.kernels._check import wide_dtype


def linear_step_reference(x: Tensor, weight: Tensor, add: Tensor | None = None) -> tuple[Tensor]:
    """Product and sum in float32 or wider, rounded once; see `quatrain.kernels.linear_step`."""
    wide = wide_dtype(x.dtype)
    y = x.to(wide) @ weight.to(wide).T
    if add is not None:
        y = y + add.to(wide)
    return (y.to(x.dtype),)
