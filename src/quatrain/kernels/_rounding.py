"""Matrix products of the definitions with operands rounded as a matrix unit rounds them."""

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


class _Divide(torch.autograd.Function):
    """x / total; the backward pass takes the result as it was rounded for the caller."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, total: Tensor, dtype: torch.dtype) -> Tensor:
        result = x / total
        ctx.save_for_backward(result.to(dtype).to(x.dtype), total)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        result, total = ctx.saved_tensors
        return grad / total, -(grad * result).sum(-1, keepdim=True) / total, None


def recurrent_product(h: Tensor, weight: Tensor, operand_dtype: torch.dtype | None) -> Tensor:
    """``h (B, D) @ weight (M, D)^T``, operands rounded to ``operand_dtype`` forward and backward."""
    if operand_dtype is None:
        return h @ weight.T
    product = round_operand(h, operand_dtype) @ round_operand(weight, operand_dtype).T
    return round_gradient(product, operand_dtype)


def round_operand(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x rounded to ``dtype``, kept in its own; the derivative is 1."""
    rounded: Tensor = call(_Round, x, dtype)
    return rounded


def round_gradient(product: Tensor, dtype: torch.dtype) -> Tensor:
    """``product`` as it is; its cotangent is rounded, for it is an operand of both backward products."""
    rounded: Tensor = call(_RoundGradient, product, dtype)
    return rounded


def divide(x: Tensor, total: Tensor, dtype: torch.dtype) -> Tensor:
    """``x (..., K) / total (..., 1)``, differentiated with the quotient rounded to ``dtype``."""
    quotient: Tensor = call(_Divide, x, total, dtype)
    return quotient
