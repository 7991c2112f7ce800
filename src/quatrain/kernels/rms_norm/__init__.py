"""Root-mean-square normalisation over the last dimension."""

import torch
from torch import Tensor

from quatrain.kernels._check import Checker
from quatrain.kernels._example import Draw
from quatrain.kernels._op import Arguments, Case, Impl, Op
from quatrain.kernels.rms_norm import cpu
from quatrain.kernels.rms_norm.reference import rms_norm_reference
from quatrain.kernels.rms_norm.torch_norm import normalise


def rms_norm(x: Tensor, weight: Tensor, *, eps: float = 1e-5, impl: str = "auto") -> Tensor:
    """y = weight * x / sqrt(mean(x^2) + eps) over the last dimension.

    Args:
        x: (..., D).
        weight: (D,), of x's dtype or float32.
        eps: added to the mean square.
        impl: ``"auto"``, an implementation's name, or ``"reference"``.

    Returns:
        (..., D) in x's dtype; computed in float32 or wider. Gradients of x and weight.

    Raises:
        ShapeError: an argument's shape, dtype or device is wrong.
        NoKernelError: ``impl`` cannot run these arguments.

    Cost: reads x once and writes y once. Source: Zhang and Sennrich, arXiv:1910.07467.
    """
    if impl == "auto" and (y := cpu.quick(x, weight, eps)) is not None:
        return y
    check = Checker("rms_norm", "x", x, " ".join(f"X{i}" for i in range(x.ndim - 1)) + " D")
    check.parameter("weight", weight, "D")
    (y,) = OP.run({"x": x, "weight": weight, "eps": eps}, impl)
    return y


def _example(case: Case, rng: torch.Generator) -> Arguments:
    draw = Draw(case, rng)
    lead = ("B", "T") if "T" in case.dims else ("B",)
    return {
        "x": draw.normal(*lead, "D"),
        "weight": 1 + draw.normal("D") / 4,
        "eps": case.flags.get("eps", 1e-5),
    }


OP = Op(
    name="rms_norm",
    reference=rms_norm_reference,
    impls=(Impl("cpp", cpu.run, cpu.why_not), Impl("torch", normalise)),
    example=_example,
    cases=(
        Case({"B": 1, "D": 1}),
        Case({"B": 1, "D": 67}),
        Case({"B": 2, "T": 5, "D": 48}),
        Case({"B": 3, "T": 7, "D": 33}, (), {"eps": 0.5}),
    ),
    outputs=("y",),
)
