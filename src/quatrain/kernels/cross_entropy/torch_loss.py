"""Cross-entropy through torch's own."""

from torch import Tensor
from torch.nn import functional as F

from quatrain.kernels._check import wide_dtype
from quatrain.kernels.cross_entropy.reference import IGNORE


def run(logits: Tensor, targets: Tensor) -> tuple[Tensor]:
    """See `cross_entropy_reference`."""
    wide = logits.to(wide_dtype(logits.dtype))
    return (F.cross_entropy(wide, targets, reduction="none", ignore_index=IGNORE),)
