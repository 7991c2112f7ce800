"""Short causal depthwise convolution over time."""

import torch
from torch import Tensor

from quatrain.kernels._batch import check_batch
from quatrain.kernels._check import Checker
from quatrain.kernels._example import Draw
from quatrain.kernels._op import Arguments, Case, Impl, Op
from quatrain.kernels.causal_conv import cpu, cuda, triton
from quatrain.kernels.causal_conv.reference import causal_conv_reference
from quatrain.kernels.causal_conv.shifted import convolve


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    silu: bool = False,
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """y_t = silu(bias + sum_j weight_j x_{t - W + 1 + j}) per channel, and the last W - 1 inputs.

    Args:
        x: (B, T, E).
        weight: (E, W), W from 2 to 8, oldest input first.
        bias: (E,).
        h0: the W - 1 inputs before x, oldest first, (B, W - 1, E) in x's dtype; None is zeros.
        silu: whether silu is applied.
        lengths: (B,) valid steps of each row, in [0, T]; outputs past them are 0.
        cu_seqlens: (S + 1,) bounds of packed sequences, B = 1; states are (S, W - 1, E).
        impl: ``"auto"``, an implementation's name, or ``"reference"``.

    Returns:
        y (B, T, E) and the last W - 1 inputs of each row (of h0 too, where the row is shorter), in x's dtype.

    Raises:
        ShapeError, StateError: an argument's shape, dtype, device or content is wrong; T is 0.
        NoKernelError: ``impl`` cannot run these arguments.

    Cost: 2 B T E W operations, 3 times that with the backward pass; bound by memory.

    Source: Gu and Dao, Mamba, arXiv:2312.00752, figure 3.
    """
    check = Checker("causal_conv", "x", x, "B T E")
    check.parameter("weight", weight, "E W")
    taps = check.sizes["W"]
    if not 2 <= taps <= 8:
        check.refuse("weight", weight, f"W = {taps} must be from 2 to 8")
    check.sizes["W-1"] = taps - 1
    if bias is not None:
        check.parameter("bias", bias, "E")
    check.sizes["B"] = check_batch(x, lengths=lengths, cu_seqlens=cu_seqlens, op="causal_conv")
    if h0 is not None:
        check.state("h0", h0, "B W-1 E", wide=False)
    y, h = OP.run(
        {
            "x": x,
            "weight": weight,
            "bias": bias,
            "h0": h0,
            "silu": silu,
            "lengths": lengths,
            "cu_seqlens": cu_seqlens,
        },
        impl,
    )
    return y, h


def _example(case: Case, rng: torch.Generator) -> Arguments:
    draw = Draw(case, rng)
    return {
        "x": draw.normal("B", "T", "E"),
        "weight": draw.normal("E", "W"),
        "bias": draw.maybe("bias", lambda: draw.normal("E")),
        "h0": draw.maybe("h0", lambda: draw.normal(draw.sequences, case.dims["W"] - 1, "E")),
        "silu": case.flags.get("silu", False),
        **draw.batch_form(),
    }


_ODD = {"B": 2, "T": 17, "E": 5, "W": 4}
_RAGGED = {"B": 5, "T": 9, "E": 3, "W": 4}
_ROW = {"B": 1, "T": 23, "E": 3, "W": 4}
_SILU = {"silu": True}

OP = Op(
    name="causal_conv",
    reference=causal_conv_reference,
    impls=(
        Impl("cpp", cpu.convolve, cpu.why_not),
        Impl("nvrtc", cuda.convolve, cuda.why_not),
        Impl("triton", triton.convolve, triton.why_not),
        Impl("torch", convolve),
    ),
    example=_example,
    cases=(
        Case({"B": 1, "T": 1, "E": 1, "W": 2}),
        Case({"B": 2, "T": 2, "E": 3, "W": 8}, ("bias", "h0"), _SILU),
        Case(_ODD),
        Case(_ODD, ("bias",)),
        Case(_ODD, ("h0",)),
        Case(_ODD, (), _SILU),
        Case({"B": 2, "T": 65, "E": 16, "W": 3}, ("bias", "h0"), _SILU),
        Case(_RAGGED, ("lengths",)),
        Case(_RAGGED, ("bias", "h0", "lengths"), _SILU),
        Case(_ROW, ("cu_seqlens",)),
        Case(_ROW, ("bias", "h0", "cu_seqlens"), _SILU),
    ),
    outputs=("y", "h"),
)
