"""Initial values of weights, drawn in float32 whatever the parameters' dtype."""

from math import log

import torch
from torch import Tensor, nn


def uniform_(weight: Tensor, bound: float) -> None:
    """Uniform in [-bound, bound]."""
    nn.init.uniform_(weight, -bound, bound)


def orthogonal_(weight: Tensor) -> None:
    """A random orthogonal matrix (Saxe et al., arXiv:1312.6120); low-precision weights get it rounded."""
    drawn = torch.empty_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
    nn.init.orthogonal_(drawn)
    with torch.no_grad():
        weight.copy_(drawn)


def step_sizes_(bias: Tensor, low: float, high: float) -> None:
    """Biases whose softplus is log-uniform in [low, high]: softplus^-1(s) = s + log(1 - exp(-s))."""
    drawn = torch.empty_like(bias, dtype=torch.promote_types(bias.dtype, torch.float32)).uniform_(
        log(low), log(high)
    )
    size = drawn.exp().clamp(min=low, max=high)
    with torch.no_grad():
        bias.copy_(size + torch.log(-torch.expm1(-size)))
