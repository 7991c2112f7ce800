"""RMS normalisation through torch's own."""

from torch import Tensor
from torch.nn import functional as F

from quatrain.kernels._check import wide_dtype
from quatrain.kernels.rms_norm.reference import rms_norm_reference

_FEW = 8  # numbers of a row, where what torch subtracts in its backward pass on a GPU nearly cancels


def normalise(x: Tensor, weight: Tensor, *, eps: float = 1e-5) -> tuple[Tensor]:
    """See `rms_norm_reference`."""
    if x.is_cuda and x.shape[-1] < _FEW:
        return rms_norm_reference(x, weight, eps=eps)
    if x.is_cuda and x.dtype == weight.dtype:  # torch's own sums wide there
        return (F.rms_norm(x, weight.shape, weight, eps),)
    wide = wide_dtype(x.dtype)
    return (F.rms_norm(x.to(wide), weight.shape, weight.to(wide), eps).to(x.dtype),)
