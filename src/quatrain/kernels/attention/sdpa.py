"""Attention through torch's scaled_dot_product_attention, without a mask wherever there is another way."""

from math import inf

import torch
from torch import Tensor
from torch.nn import functional as F

from quatrain.kernels._check import wide_dtype

_MASK_NUMBERS = 1 << 22  # of one block's mask, (B, block of T, S): bounds memory for long sequences
_RUN = 256  # packed sequences are gathered up to this many tokens, longer ones go alone


def attend(
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
    """See `attention_reference`. ``cu_seqlens`` is read on the host once.

    Whatever lies past ``k_lengths`` is replaced by 0 first: a mask alone lets NaN through. On a CPU bfloat16
    is widened: torch sums gradients over blocks and grouped heads in bfloat16 there, and saves little time.
    """
    dtype = q.dtype
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H or G, T or S, K)
    if q.device.type == "cpu":
        q, k, v = (x.to(wide_dtype(dtype)) for x in (q, k, v))
    y = _dispatch(q, k, v, causal, window, q_start, k_lengths, cu_seqlens)
    return (y.transpose(1, 2).to(dtype),)


def _dispatch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    window: float,
    q_start: Tensor | None,
    k_lengths: Tensor | None,
    cu_seqlens: Tensor | None,
) -> Tensor:
    if cu_seqlens is not None:
        return _packed(q, k, v, causal, window, cu_seqlens)
    if q_start is None and k_lengths is None:
        return _plain(q, k, v, causal, window)
    batch, size = k.shape[0], k.shape[2]
    first = torch.full((batch,), size - q.shape[2], device=q.device) if q_start is None else q_start
    end = torch.full((batch,), size, device=q.device) if k_lengths is None else k_lengths
    if k_lengths is not None:
        past = (torch.arange(size, device=k.device) >= k_lengths[:, None])[:, None, :, None]
        k, v = k.masked_fill(past, 0), v.masked_fill(past, 0)
    return _ragged(q, k, v, causal, window, first, end)


def _plain(q: Tensor, k: Tensor, v: Tensor, causal: bool, window: float) -> Tensor:
    """All rows alike, queries at the end of the keys."""
    time, size = q.shape[2], k.shape[2]
    if window >= size or (time == 1 and causal):
        if window < size:
            k, v = k[:, :, size - int(window) :], v[:, :, size - int(window) :]
        if not causal or time == 1:
            return _sdpa(q, k, v)
        if time == size:
            return _sdpa(q, k, v, causal=True)
    start, width = size - time, int(min(window, size + time))
    rows = _block(time, size * q.shape[1] // k.shape[1])
    if window < size and causal:  # a block sees window + its own rows of keys: best when about as many
        rows = min(rows, max(width, 128))
    parts = []
    for t in range(0, time, rows):
        stop = min(t + rows, time)
        keys = _span(start + t - width + 1, start + stop if causal else size, size)
        position = torch.arange(start + t, start + stop, device=q.device)
        visible = _visible(position, torch.arange(keys.start, keys.stop, device=q.device), causal, window)
        parts.append(_sdpa(q[:, :, t:stop], k[:, :, keys], v[:, :, keys], visible))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _ragged(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, window: float, first: Tensor, end: Tensor
) -> Tensor:
    """Rows with their own positions and lengths: a mask for each block of queries."""
    batch, time, size = q.shape[0], q.shape[2], k.shape[2]
    rows = _block(time, batch * size * q.shape[1] // k.shape[1])
    parts = []
    for t in range(0, time, rows):
        stop = min(t + rows, time)
        keys = slice(0, size)
        if q.device.type == "cpu":  # leave out keys that no row sees; on a GPU asking would stop the stream
            low = 0 if window == inf else int(first.min()) + t - int(window) + 1
            high = min(int(end.max()), int(first.max()) + stop if causal else size)
            keys = _span(low, high, size)
        key = torch.arange(keys.start, keys.stop, device=q.device)
        position = first[:, None] + torch.arange(t, stop, device=q.device)  # (B, block)
        visible = _visible(position, key, causal, window) & (key < end[:, None, None])
        parts.append(_sdpa(q[:, :, t:stop], k[:, :, keys], v[:, :, keys], visible[:, None]))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _packed(q: Tensor, k: Tensor, v: Tensor, causal: bool, window: float, cu_seqlens: Tensor) -> Tensor:
    """Long sequences one by one, short ones together under a mask of blocks."""
    parts = []
    for bounds in _runs(cu_seqlens.tolist()):
        cut = slice(bounds[0], bounds[-1])
        if len(bounds) == 2:
            parts.append(_plain(q[:, :, cut], k[:, :, cut], v[:, :, cut], causal, window))
            continue
        step = torch.arange(bounds[0], bounds[-1], device=q.device)
        number = torch.bucketize(step, torch.tensor(bounds, device=q.device), right=True)
        visible = _visible(step, step, causal, window) & (number[:, None] == number)
        parts.append(_sdpa(q[:, :, cut], k[:, :, cut], v[:, :, cut], visible))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _runs(bounds: list[int]) -> list[list[int]]:
    """Neighbouring sequences that are handled together, each run as its bounds; empty ones are left out."""
    bounds = sorted(set(bounds))
    runs = [bounds[:2]]
    for bound in bounds[2:]:
        run = runs[-1]
        if bound - run[0] <= _RUN:
            run.append(bound)
        else:
            runs.append([run[-1], bound])
    return runs


def _span(low: int, high: int, size: int) -> slice:
    """``low`` to ``high`` cut to [0, size), with at least one key in it."""
    low = min(max(low, 0), size - 1)
    return slice(low, min(max(high, low + 1), size))


def _block(rows: int, size: int) -> int:
    """Rows of queries whose mask against ``size`` keys stays within bounds."""
    return max(1, min(rows, _MASK_NUMBERS // size))


def _visible(position: Tensor, key: Tensor, causal: bool, window: float) -> Tensor:
    """(..., T, S) bool from positions (..., T) and keys (S,)."""
    back = position[..., None] - key
    visible = back < window
    return visible & (back >= 0) if causal else visible


def _sdpa(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None, causal: bool = False) -> Tensor:
    """softmax(q k / sqrt(K)) v; ``visible`` is (..., T, S) bool, and rows that see nothing give 0.

    Heads that share a key go side by side as rows of one head, so that their gradients meet in one wide sum;
    torch's own causal mask knows no such rows.
    """
    heads, groups = q.shape[1], k.shape[1]
    if causal:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=groups < heads)
    if groups < heads:
        q = q.reshape(q.shape[0], groups, -1, q.shape[3])  # (B, G, H / G * T, K)
    blind = None
    if visible is not None:
        visible = visible.repeat(*(1,) * (visible.ndim - 2), heads // groups, 1)
        blind = ~visible.any(-1, keepdim=True)
        visible = visible | blind
    y = F.scaled_dot_product_attention(q, k, v, visible)
    y = y if blind is None else y.masked_fill(blind, 0)
    return y if groups == heads else y.reshape(y.shape[0], heads, -1, y.shape[3])
