"""Readable cross-entropy: the definition every other implementation is tested against."""

from torch import Tensor

from quatrain.kernels._check import wide_dtype

IGNORE = -100  # a target that is not scored, as in torch


def cross_entropy_reference(logits: Tensor, targets: Tensor) -> tuple[Tensor]:
    """log(sum_v exp(x_v)) - x_target of each row, float32 or wider; see `quatrain.kernels.cross_entropy`."""
    x = logits.to(wide_dtype(logits.dtype))
    scored = targets != IGNORE
    own = x.gather(1, targets.where(scored, targets.new_zeros(()))[:, None])[:, 0]
    return ((x.logsumexp(1) - own) * scored,)
