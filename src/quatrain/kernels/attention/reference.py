"""Readable attention: the definition every other implementation is tested against."""

from math import inf

import torch
from torch import Tensor

from quatrain.kernels._check import wide_dtype
from quatrain.kernels._rounding import divide, round_gradient, round_operand


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    window: float = inf,
    q_start: Tensor | None = None,
    k_lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    operand_dtype: torch.dtype | None = None,
) -> tuple[Tensor]:
    """The whole score matrix, one mask; see `quatrain.kernels.attention`.

    With ``operand_dtype`` what goes into a matrix product is rounded to it: the weights, and in the backward
    pass the cotangent of the scores. That is what a matrix unit of that type does; sums stay wide. The
    backward pass meets the output as it was returned, rounded (Dao et al., arXiv:2205.14135, algorithm 4).
    """
    wide = wide_dtype(q.dtype)
    batch, time, heads, width = q.shape
    size, groups = k.shape[1:3]
    key = torch.arange(size, device=q.device)  # (S,)
    first = torch.full((batch,), size - time, device=q.device) if q_start is None else q_start
    position = first[:, None, None] + torch.arange(time, device=q.device)[:, None]  # (B, T, 1)
    visible = (position - key < window).expand(batch, time, size)
    if causal:
        visible = visible & (key <= position)
    if k_lengths is not None:
        visible = visible & (key < k_lengths[:, None, None])
    if cu_seqlens is not None:
        sequence = torch.searchsorted(cu_seqlens, key.to(cu_seqlens.dtype), right=True)
        visible = visible & (sequence[:, None] == sequence)
    k, v = (x.to(wide).repeat_interleave(heads // groups, dim=2) for x in (k, v))
    score = q.to(wide).transpose(1, 2) @ k.permute(0, 2, 3, 1)  # (B, H, T, S)
    if operand_dtype is not None:
        score = round_gradient(score, operand_dtype)
    score = score * width**-0.5
    score = score.masked_fill(~visible[:, None], -inf)
    top = score.amax(-1, keepdim=True).clamp(min=torch.finfo(wide).min)  # a row may see nothing
    weight = torch.exp(score - top.detach())
    total = weight.sum(-1, keepdim=True)
    total = total.masked_fill(total == 0, 1)
    if operand_dtype is None:
        return ((weight @ v.transpose(1, 2) / total).transpose(1, 2).to(q.dtype),)
    sums = round_operand(weight, operand_dtype) @ v.transpose(1, 2)
    return (divide(sums, total, operand_dtype).transpose(1, 2).to(q.dtype),)
