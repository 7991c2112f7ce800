"""Positions of tokens as angles: rotary and sinusoidal."""

from typing import Any

import torch
from torch import Tensor

from quatrain.kernels._core._register import register


def angles(position: Tensor, pairs: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin of position * base^(-i / pairs), i < pairs: position (..., T) -> (..., T, pairs), in
    float64.

    The product is taken in float64: in float32 the angle at position 10^6 would be wrong by 0.06.
    """
    if torch.compiler.is_compiling():  # as one op: a compiler would compute it again in every head
        cos, sin = torch.ops.quatrain.angles(position, pairs, base)
        return cos, sin
    return _angles(position, pairs, base)


def _angles(position: Tensor, pairs: int, base: float) -> tuple[Tensor, Tensor]:
    exponent = torch.arange(pairs, dtype=torch.float64, device=position.device) / pairs
    angle = position[..., None].to(torch.float64) * base**-exponent
    return angle.cos(), angle.sin()


def _fake_angles(position: Tensor, pairs: int, base: float) -> tuple[Tensor, Tensor]:
    shape: Any = (*position.shape, pairs)
    return position.new_empty(shape, dtype=torch.float64), position.new_empty(shape, dtype=torch.float64)


register(
    "angles(Tensor position, int pairs, float base) -> (Tensor, Tensor)",
    _angles,
    _fake_angles,
    device="CompositeExplicitAutograd",
)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: pair (x_i, x_{i + K/2}) of each head turned by its angle; x (B, T, H, K), cos (B or
    1, T, K/2).

    Source: Su et al., arXiv:2104.09864, with the pairs of Llama's code (first half with second half).
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    cos, sin = cos[:, :, None, :].to(wide), sin[:, :, None, :].to(wide)
    first, second = x.to(wide).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1).to(x.dtype)


def sinusoid(position: Tensor, width: int) -> Tensor:
    """sin in the first half, cos in the second (Vaswani et al., arXiv:1706.03762): (..., T) -> (..., T,
    width).
    """
    cos, sin = angles(position, -(-width // 2), 10000.0)
    return torch.cat((sin, cos), dim=-1)[..., :width]
