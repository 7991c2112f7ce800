"""One step of a Mamba block: the definition of all its parts, one after the other."""

import torch
from torch import Tensor

from quatrain.kernels._check import wide_dtype
from quatrain.kernels._rounding import recurrent_product, round_operand
from quatrain.kernels.s6_step.reference import s6_step_reference


def s6_block_step_reference(
    x: Tensor,
    in_weight: Tensor,
    conv_weight: Tensor,
    x_weight: Tensor,
    dt_weight: Tensor,
    a_log: Tensor,
    out_weight: Tensor,
    h0: Tensor,
    conv0: Tensor,
    norm_weight: Tensor | None = None,
    conv_bias: Tensor | None = None,
    dt_bias: Tensor | None = None,
    skip: Tensor | None = None,
    *,
    eps: float = 1e-5,
    zoh: bool = False,
    operand_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `quatrain.kernels.s6_block_step`.

    With ``operand_dtype`` the operands of the products are rounded to it, as a matrix unit of that type does,
    and so are the convolution's inputs, which its state keeps in that type.
    """
    wide, states, rank = wide_dtype(x.dtype), a_log.shape[1], dt_weight.shape[1]

    def rounded(v: Tensor) -> Tensor:
        return v if operand_dtype is None else round_operand(v, operand_dtype)

    def product(v: Tensor, weight: Tensor) -> Tensor:
        return recurrent_product(v, weight.to(wide), operand_dtype)

    read = x.to(wide)
    if norm_weight is not None:
        read = read * (read.square().mean(-1, keepdim=True) + eps).rsqrt() * norm_weight.to(wide)
    u, z = product(read, in_weight).chunk(2, -1)  # (B, E) each
    inputs = torch.cat((conv0.to(wide), rounded(u)[:, None]), 1)  # (B, W, E)
    u = (inputs * conv_weight.to(wide).T).sum(1)
    if conv_bias is not None:
        u = u + conv_bias.to(wide)
    u = rounded(u * u.sigmoid())
    low, b, c = product(u, x_weight).split_with_sizes((rank, states, states), -1)
    delta = low @ dt_weight.to(wide).T
    a = -a_log.to(wide).exp()
    skip, dt_bias = (None if v is None else v.to(wide) for v in (skip, dt_bias))
    y, h = s6_step_reference(u, delta, a, b, c, skip, z, dt_bias, h0.to(wide), softplus=True, zoh=zoh)
    y = product(y, out_weight)
    if norm_weight is not None:
        y = y + x.to(wide)
    return y.to(x.dtype), h, inputs[:, 1:].to(x.dtype)
