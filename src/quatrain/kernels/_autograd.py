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


def traced(x: Tensor) -> bool:
    """Whether torch has to see an op as its own: under compile, and for tensors that stand for others."""
    return torch.compiler.is_compiling() or type(x) not in (Tensor, torch.nn.Parameter)


def no_autocast(x: Tensor) -> torch.autocast:
    """A context in which products keep their precision, also when backward is called under autocast."""
    return torch.autocast(x.device.type, enabled=False)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        with no_autocast(x):
            return x @ weight.T

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        with no_autocast(x):
            return cotangent @ weight, cotangent.flatten(0, -2).T @ x.flatten(0, -2)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """``x (..., I) weight (O, I)^T``, whose gradients keep their precision under autocast, too."""
    y: Tensor = _Linear.apply(x, weight)  # type: ignore[no-untyped-call]
    return y


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


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fast: Any, slow: Any, *tensors: Tensor | None) -> Any:
        ctx.slow = slow
        ctx.save_for_backward(*tensors)
        return fast(*tensors)

    @staticmethod
    @first_order
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        wants = ctx.needs_input_grad[2:]
        with torch.enable_grad(), torch.autocast(cotangents[0].device.type, enabled=False):
            leaves = [
                None if x is None else x.detach().requires_grad_(want)
                for x, want in zip(ctx.saved_tensors, wants, strict=True)
            ]
            results = ctx.slow(*leaves)
            wanted = [x for x in leaves if x is not None and x.requires_grad]
            grads = iter(torch.autograd.grad(results, wanted, cotangents))
        return None, None, *(next(grads) if want else None for want in wants)


def recomputed(
    fast: Callable[..., tuple[Tensor, ...]],
    slow: Callable[..., tuple[Tensor, ...]],
    *tensors: Tensor | None,
) -> Any:
    """``fast(*tensors)``, differentiated by running ``slow`` on the same arguments in the backward pass."""
    return call(_Recomputed, fast, slow, *tensors) if recorded(*tensors) else fast(*tensors)
