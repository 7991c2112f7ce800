"""One step of a Mamba block in torch's operations; autograd follows them."""

import torch
from torch import Tensor
from torch.nn import functional as F

from quatrain.kernels._autograd import linear
from quatrain.kernels._check import wide_dtype
from quatrain.kernels.s6_step.vector import step as s6_step


def step(
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
) -> tuple[Tensor, Tensor, Tensor]:
    """See `s6_block_step_reference`; operands and sums are float32 or wider."""
    wide, states, rank = wide_dtype(x.dtype), a_log.shape[1], dt_weight.shape[1]

    stream = x.to(wide)
    read = stream if norm_weight is None else F.rms_norm(stream, stream.shape[1:], norm_weight.to(wide), eps)
    u, z = linear(read, in_weight.to(wide)).chunk(2, -1)
    inputs = torch.cat((conv0.to(wide), u[:, None]), 1)
    u = (inputs * conv_weight.to(wide).T).sum(1)
    u = F.silu(u if conv_bias is None else u + conv_bias.to(wide))
    low, b, c = linear(u, x_weight.to(wide)).split_with_sizes((rank, states, states), -1)
    a = -a_log.to(wide).exp()
    delta = linear(low, dt_weight.to(wide))
    y, h = s6_step(u, delta, a, b, c, skip, z, dt_bias, h0, softplus=True, zoh=zoh)
    y = linear(y, out_weight.to(wide))
    return (y if norm_weight is None else y + stream).to(x.dtype), h, inputs[:, 1:].to(x.dtype)
