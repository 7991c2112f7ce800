"""Readable attention: the definition every other implementation is tested against."""

from math import inf

import torch
from torch import Tensor

from quatrain.kernels._check import wide_dtype


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
) -> tuple[Tensor]:
    """The whole score matrix, one mask; see `quatrain.kernels.attention`."""
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
    score = torch.einsum("bthk,bshk->bhts", q.to(wide), k) * width**-0.5
    score = score.masked_fill(~visible[:, None], -inf)
    top = score.amax(-1, keepdim=True).clamp(min=torch.finfo(wide).min)  # a row may see nothing
    weight = torch.exp(score - top.detach())
    total = weight.sum(-1, keepdim=True)
    weight = weight / total.masked_fill(total == 0, 1)
    return (torch.einsum("bhts,bshk->bthk", weight, v).to(q.dtype),)
