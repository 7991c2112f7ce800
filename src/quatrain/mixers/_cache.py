"""Keys and values of rows that have seen different numbers of tokens: merged with new ones, cut to a window.

A cache is right-padded: row b holds its last n_b = min(position_b, keep) tokens in columns 0 .. n_b - 1,
zeros after.
"""

import torch
from torch import Tensor


def held(position: Tensor, keep: int | None) -> Tensor:
    """n (B,): tokens that a row holds after ``position`` of them; ``keep`` is the most it holds, None no
    limit.
    """
    return position if keep is None else position.clamp(max=keep)


def merge(past: Tensor, new: Tensor, n: Tensor) -> Tensor:
    """Each row's ``new (B, T, ...)`` right after its own ``n`` columns of ``past (B, S, ...)``: (B, S + T,
    ...).

    Columns from n + T on hold copies that mean nothing.
    """
    size = past.shape[1]
    both = torch.cat((past, new), dim=1)
    column = torch.arange(both.shape[1], device=n.device)
    source = torch.where(column < n[:, None], column, column + size - n[:, None])  # (B, S + T)
    return _take(both, source.clamp(max=both.shape[1] - 1))


def cut(cache: Tensor, filled: Tensor, n: Tensor) -> Tensor:
    """The last ``n`` of each row's ``filled`` columns, moved to the front: (B, max n, ...), zeros after."""
    column = torch.arange(int(n.max()), device=n.device)
    source = (filled - n)[:, None] + column  # (B, S)
    taken = _take(cache, source.clamp(max=cache.shape[1] - 1))
    return taken.masked_fill((column >= n[:, None])[:, :, None, None], 0)


def _take(x: Tensor, source: Tensor) -> Tensor:
    return x[torch.arange(x.shape[0], device=x.device)[:, None], source]
