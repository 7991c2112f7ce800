"""The recurrent matrix product of the definitions, with operands rounded as a matrix unit rounds them."""

from typing import Any

import torch
from torch import Tensor

from quatrain.kernels._autograd import call


class _RoundGradient(torch.autograd.Function):
    """Identity whose cotangent is rounded: it is an operand of both backward products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = dtype
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.to(ctx.dtype).to(grad.dtype), None


class _Round(torch.autograd.Function):
    """Rounding with the identity as its derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def recurrent_product(h: Tensor, weight: Tensor, operand_dtype: torch.dtype | None) -> Tensor:
    """``h (B, D) @ weight (M, D)^T``, operands rounded to ``operand_dtype`` forward and backward."""
    if operand_dtype is None:
        return h @ weight.T
    product = call(_Round, h, operand_dtype) @ call(_Round, weight, operand_dtype).T
    rounded: Tensor = call(_RoundGradient, product, operand_dtype)
    return rounded
