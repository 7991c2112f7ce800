"""Readable RMS normalisation: the definition every other implementation is tested against."""

from torch import Tensor

from quatrain.kernels._check import wide_dtype


def rms_norm_reference(x: Tensor, weight: Tensor, *, eps: float = 1e-5) -> tuple[Tensor]:
    """weight * x / sqrt(mean(x^2) + eps) in float32 or wider; see `quatrain.kernels.rms_norm`."""
    wide = wide_dtype(x.dtype)
    x_wide = x.to(wide)
    scale = (x_wide.square().mean(-1, keepdim=True) + eps).rsqrt()
    return ((x_wide * scale * weight.to(wide)).to(x.dtype),)
