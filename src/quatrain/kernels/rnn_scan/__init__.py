"""Elman recurrence over time."""

from typing import Literal

import torch
from torch import Tensor

from quatrain.kernels._batch import check_batch
from quatrain.kernels._check import Checker, check_choice
from quatrain.kernels._example import Draw
from quatrain.kernels._op import Arguments, Case, Impl, Op
from quatrain.kernels.rnn_scan import cpu, cuda
from quatrain.kernels.rnn_scan.reference import rnn_scan_reference
from quatrain.kernels.rnn_scan.steps import scan


def rnn_scan(
    x: Tensor,
    weight: Tensor,
    h0: Tensor | None = None,
    *,
    nonlinearity: Literal["tanh", "relu"] = "tanh",
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Run h_t = f(x_t + weight h_{t-1}) and return every h_t and the last one.

    Args:
        x: drive, the input projection with its bias, (B, T, D).
        weight: recurrent matrix, (D, D).
        h0: state before the first step, (B, D), of x's dtype or float32; None is zeros.
        nonlinearity: f.
        lengths: (B,) valid steps of each row, in [0, T]; outputs past them are 0.
        cu_seqlens: (S + 1,) bounds of packed sequences, B = 1; states are (S, D).
        impl: ``"auto"``, an implementation's name, or ``"reference"``.

    Returns:
        y (B, T, D) in x's dtype and the state after the last valid step, (B, D), float32 or wider.

    Raises:
        ShapeError, StateError: an argument's shape, dtype, device or content is wrong; T is 0.
        NoKernelError: ``impl`` cannot run these arguments.

    Cost: 2 B T D^2 operations in T dependent steps, 3 times that with the backward pass.
    Where x is narrower than float32 an implementation may round h and weight to x's dtype in the product.

    Source: Elman, Finding structure in time, Cognitive Science 14(2), 1990.
    """
    check = Checker("rnn_scan", "x", x, "B T D")
    check.parameter("weight", weight, "D D")
    check.sizes["B"] = check_batch(x, lengths=lengths, cu_seqlens=cu_seqlens, op="rnn_scan")
    if h0 is not None:
        check.state("h0", h0, "B D")
    check_choice("rnn_scan", "nonlinearity", nonlinearity, ("tanh", "relu"))
    y, h = OP.run(
        {
            "x": x,
            "weight": weight,
            "h0": h0,
            "nonlinearity": nonlinearity,
            "lengths": lengths,
            "cu_seqlens": cu_seqlens,
        },
        impl,
    )
    return y, h


def _example(case: Case, rng: torch.Generator) -> Arguments:
    draw = Draw(case, rng)
    width = case.dims["D"]
    return {
        "x": draw.normal("B", "T", "D"),
        "weight": torch.linalg.qr(draw.normal("D", "D"))[0] if width > 1 else draw.normal(1, 1).tanh(),
        "h0": draw.maybe("h0", lambda: draw.normal(draw.sequences, "D")),
        **draw.batch_form(),
        **case.flags,
    }


_ODD = {"B": 3, "T": 13, "D": 5}
_ROW = {"B": 1, "T": 29, "D": 7}

OP = Op(
    name="rnn_scan",
    reference=rnn_scan_reference,
    impls=(
        Impl("cpp", cpu.scan, cpu.why_not),
        Impl("cuda", cuda.scan, cuda.why_not),
        Impl("torch", scan),
    ),
    example=_example,
    cases=(
        Case({"B": 1, "T": 1, "D": 1}),
        Case({"B": 2, "T": 1, "D": 4}, ("h0",)),
        Case(_ODD, ("h0",)),
        Case(_ODD, (), {"nonlinearity": "relu"}),
        Case({"B": 4, "T": 40, "D": 33}, ("h0",)),
        Case({"B": 5, "T": 12, "D": 6}, ("lengths",)),
        Case({"B": 5, "T": 12, "D": 6}, ("h0", "lengths"), {"nonlinearity": "relu"}),
        Case(_ROW, ("cu_seqlens",)),
        Case(_ROW, ("h0", "cu_seqlens")),
    ),
    outputs=("y", "h"),
    operand_rounding=True,
)
