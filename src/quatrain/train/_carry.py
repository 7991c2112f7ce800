"""The state that truncated backpropagation carries from one batch to the next, as plain named tensors."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from quatrain.errors import CheckpointError


def flatten(state: Any, prefix: str = "") -> dict[str, Tensor]:
    """Leaves of nested tuples by path: ``{"0.1": tensor}`` is field 1 of layer 0."""
    if isinstance(state, Tensor):
        return {prefix: state}
    leaves: dict[str, Tensor] = {}
    for index, part in enumerate(state):
        leaves |= flatten(part, f"{prefix}.{index}" if prefix else str(index))
    return leaves


def rebuild(like: Any, tensors: Mapping[str, Tensor], prefix: str = "") -> Any:
    """A state with the structure of ``like`` and the tensors of `flatten`. Raises CheckpointError for a
    missing one."""
    if isinstance(like, Tensor):
        if prefix not in tensors:
            raise CheckpointError(f"carried state {prefix} is missing")
        return tensors[prefix]
    parts = [
        rebuild(part, tensors, f"{prefix}.{index}" if prefix else str(index))
        for index, part in enumerate(like)
    ]
    return _as(like, parts)


def detach(state: Any) -> Any:
    """The same values, cut off from the graph that made them."""
    if isinstance(state, Tensor):
        return state.detach()
    return _as(state, [detach(part) for part in state])


def reset(state: Any, initial: Any, fresh: Tensor) -> Any:
    """Rows where ``fresh`` (B,) is set go back to ``initial``; every leaf is batch first."""
    if isinstance(state, Tensor):
        return torch.where(fresh.view(-1, *[1] * (state.ndim - 1)), initial, state)
    return _as(state, [reset(part, first, fresh) for part, first in zip(state, initial, strict=True)])


def _as(like: Any, parts: list[Any]) -> Any:
    make = getattr(type(like), "_make", tuple)
    return make(parts)
