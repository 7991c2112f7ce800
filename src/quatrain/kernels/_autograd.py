"""What hand-written backward passes share."""

from collections.abc import Callable
from functools import wraps
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


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of a backward pass that is written by hand and has no derivative itself.

    Under ``create_graph=True`` it raises RuntimeError. torch's ``once_differentiable`` gives constants there,
    which complain only when they are reached: a second derivative with respect to chosen tensors, or after a
    linear loss such as a sum, would lack this op's part without a word.
    """

    @wraps(backward)
    def wrapped(ctx: Any, *cotangents: Tensor) -> Any:
        if torch.is_grad_enabled():  # in a backward pass, only where a graph of it is made
            raise RuntimeError("create_graph = True: second derivatives of this op are not implemented")
        return backward(ctx, *cotangents)

    return wrapped
