"""The linear map of one token, for generation: a matrix-vector product, bound by reading the matrix."""

import torch
from torch import Tensor
from torch.nn import functional as F

from quatrain.kernels._check import Checker
from quatrain.kernels._example import Draw
from quatrain.kernels._op import Arguments, Case, Impl, Op
from quatrain.kernels.linear_step import cpu
from quatrain.kernels.linear_step.product import multiply
from quatrain.kernels.linear_step.reference import linear_step_reference


def linear_step(x: Tensor, weight: Tensor, add: Tensor | None = None, *, impl: str = "auto") -> Tensor:
    """y = weight x + add for a few tokens at once, one per sequence.

    Args:
        x: (B, D).
        weight: (M, D).
        add: a bias (M,), or what a residual branch is added to (B, M).
        impl: ``"auto"``, an implementation's name, or ``"reference"``.

    Returns:
        (B, M) in x's dtype, summed in float32 or wider. Gradients of every argument.

    Raises:
        ShapeError: an argument's shape, dtype or device is wrong.
        NoKernelError: ``impl`` cannot run these arguments.

    Cost: 2 B D M operations; at small batches the time is that of reading the matrix, D M numbers.
    """
    if impl == "auto" and (y := cpu.quick(x, weight, add)) is not None:
        return y
    check = Checker("linear_step", "x", x, "B D")
    check.data("weight", weight, "M D")
    if add is not None:
        check.data("add", add, "M", "B M")
    (y,) = OP.run({"x": x, "weight": weight, "add": add}, impl)
    return y


def linear(x: Tensor, weight: Tensor, add: Tensor | None = None) -> Tensor:
    """What `linear_step` gives for ``x (B, D)``, by way of torch where that is right or as fast.

    That is where gradients are recorded, under autocast (whose dtype then counts), for larger batches and
    on other devices. Nothing is checked that torch does not check.
    """
    y = cpu.quick(x, weight, add)
    if y is not None:
        return y
    if add is None or add.ndim == 1:
        return F.linear(x, weight, add)
    return F.linear(x, weight) + add


def _example(case: Case, rng: torch.Generator) -> Arguments:
    draw = Draw(case, rng)
    bias = draw.maybe("bias", lambda: draw.normal("M"))
    residual = draw.maybe("residual", lambda: draw.normal("B", "M"))
    return {
        "x": draw.normal("B", "D"),
        "weight": draw.normal("M", "D"),
        "add": residual if bias is None else bias,
    }


OP = Op(
    name="linear_step",
    reference=linear_step_reference,
    impls=(Impl("cpp", cpu.run, cpu.why_not), Impl("torch", multiply)),
    example=_example,
    cases=(
        Case({"B": 1, "D": 1, "M": 1}),
        Case({"B": 1, "D": 67, "M": 101}),
        Case({"B": 1, "D": 128, "M": 260}, ("bias",)),
        Case({"B": 2, "D": 33, "M": 7}, ("residual",)),
        Case({"B": 3, "D": 15, "M": 64}, ("bias",)),
        Case({"B": 5, "D": 64, "M": 13}, ("residual",)),
        Case({"B": 7, "D": 100, "M": 31}),
        Case({"B": 8, "D": 31, "M": 33}, ("residual",)),
        Case({"B": 9, "D": 40, "M": 24}, ("bias",)),
    ),
    outputs=("y",),
)
