"""The linear map of one token through torch's matrix product, and its gradients."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from quatrain.kernels._autograd import call, first_order, no_autocast, recorded
from quatrain.kernels._check import wide_dtype

Forward = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def multiply(x: Tensor, weight: Tensor, add: Tensor | None = None) -> tuple[Tensor]:
    """See `linear_step_reference`."""
    return (differentiable(_product, x, weight, add),)


def differentiable(forward: Forward, x: Tensor, weight: Tensor, add: Tensor | None) -> Tensor:
    """``forward(x, weight, add)`` with gradients, which keep their precision under autocast."""
    if not recorded(x, weight, add):
        return forward(x, weight, add)
    y: Tensor = call(_Linear, forward, x, weight, add)
    return y


def _product(x: Tensor, weight: Tensor, add: Tensor | None) -> Tensor:
    return F.linear(x, weight) if add is None else torch.addmm(add, x, weight.T)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, forward: Forward, x: Tensor, weight: Tensor, add: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias = add is not None and add.ndim == 1
        return forward(x, weight, add)

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        _, of_x, of_weight, of_add = ctx.needs_input_grad
        with no_autocast(dy):
            dx = dy @ weight if of_x else None
            d_weight = dy.T @ x if of_weight else None
        if not of_add:
            return None, dx, d_weight, None
        return None, dx, d_weight, (dy.sum(0, dtype=wide_dtype(dy.dtype)).to(dy.dtype) if ctx.bias else dy)
