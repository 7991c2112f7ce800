"""Long causal convolution over time, one kernel per channel: a linear time-invariant system's response."""

import torch
from torch import Tensor

from quatrain.kernels._batch import check_batch
from quatrain.kernels._check import Checker
from quatrain.kernels._example import Draw
from quatrain.kernels._op import Arguments, Case, Impl, Op
from quatrain.kernels.lti_conv.fft import convolve
from quatrain.kernels.lti_conv.reference import lti_conv_reference


def lti_conv(
    u: Tensor,
    kernel: Tensor,
    *,
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """y_t = sum_{r < min(R, t + 1)} kernel_r u_{t - r} per channel.

    Args:
        u: (B, T, E).
        kernel: (E, R), R at least 1, newest input first, of u's dtype or float32; what lies past T is unused.
        lengths: (B,) valid steps of each row, in [0, T]; outputs past them are 0.
        cu_seqlens: (S + 1,) bounds of packed sequences, B = 1; none sees another.
        impl: ``"auto"``, an implementation's name, or ``"reference"``.

    Returns:
        y (B, T, E) in u's dtype.

    Raises:
        ShapeError: an argument's shape, dtype, device or content is wrong; T is 0.
        NoKernelError: ``impl`` cannot run these arguments.

    Cost: O(B E n log n) with n = T + min(R, T), and 8 B E n bytes of working memory.

    Source: Gu et al., arXiv:2111.00396 (convolutional form).
    """
    check = Checker("lti_conv", "u", u, "B T E")
    check.parameter("kernel", kernel, "E R")
    if check.sizes["R"] == 0:
        check.refuse("kernel", kernel, "R must be at least 1")
    check_batch(u, lengths=lengths, cu_seqlens=cu_seqlens, op="lti_conv")
    (y,) = OP.run({"u": u, "kernel": kernel, "lengths": lengths, "cu_seqlens": cu_seqlens}, impl)
    return y


def _example(case: Case, rng: torch.Generator) -> Arguments:
    draw = Draw(case, rng)
    fade = torch.exp(-torch.arange(case.dims["R"]) / 10.0)
    return {"u": draw.normal("B", "T", "E"), "kernel": draw.normal("E", "R") * fade, **draw.batch_form()}


OP = Op(
    name="lti_conv",
    reference=lti_conv_reference,
    impls=(Impl("torch", convolve),),
    example=_example,
    cases=(
        Case({"B": 1, "T": 1, "E": 1, "R": 1}),
        Case({"B": 2, "T": 37, "E": 3, "R": 37}),
        Case({"B": 2, "T": 37, "E": 3, "R": 5}),
        Case({"B": 1, "T": 20, "E": 4, "R": 50}),
        Case({"B": 5, "T": 12, "E": 2, "R": 12}, ("lengths",)),
        Case({"B": 1, "T": 31, "E": 2, "R": 31}, ("cu_seqlens",)),
    ),
    outputs=("y",),
)
