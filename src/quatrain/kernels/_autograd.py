"""What hand-written backward passes share."""

from typing import Any

import torch
from torch import Tensor


def call(function: type[torch.autograd.Function], *args: object) -> Any:
    """``function.apply(*args)``, for which torch has no types."""
    apply: Any = function.apply
    return apply(*args)


def recorded(*tensors: Tensor | None) -> bool:
    """Whether autograd will want a backward pass of an op on these tensors."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def no_autocast(x: Tensor) -> torch.autocast:
    """A context in which products keep their precision, also when backward is called under autocast."""
    return torch.autocast(x.device.type, enabled=False)
