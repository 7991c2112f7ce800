"""LSTM recurrence over time."""

import torch
from torch import Tensor

from quatrain.kernels._batch import check_batch
from quatrain.kernels._check import Checker
from quatrain.kernels._example import Draw
from quatrain.kernels._op import Arguments, Case, Impl, Op
from quatrain.kernels.lstm_scan import cpu, cuda
from quatrain.kernels.lstm_scan.reference import lstm_scan_reference
from quatrain.kernels.lstm_scan.steps import scan


def lstm_scan(
    x: Tensor,
    weight: Tensor,
    h0: Tensor | None = None,
    c0: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Run an LSTM over time and return every h_t, the last h and the last cell.

    (i, f, g, o) = x_t + weight h_{t-1}; c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g);
    y_t = h_t = sigmoid(o) tanh(c_t).

    Args:
        x: drive of the four gates, the input projection with its bias, (B, T, 4D), stacked i, f, g, o.
        weight: recurrent matrix, (4D, D).
        h0, c0: states before the first step, (B, D), of x's dtype or float32; None is zeros.
        lengths: (B,) valid steps of each row, in [0, T]; outputs past them are 0.
        cu_seqlens: (S + 1,) bounds of packed sequences, B = 1; states are (S, D).
        impl: ``"auto"``, an implementation's name, or ``"reference"``.

    Returns:
        y (B, T, D) in x's dtype; h and c after the last valid step, (B, D) each, float32 or wider.

    Raises:
        ShapeError, StateError: an argument's shape, dtype, device or content is wrong; T is 0.
        NoKernelError: ``impl`` cannot run these arguments.

    Cost: 8 B T D^2 operations in T dependent steps, 3 times that with the backward pass.
    Where x is narrower than float32 an implementation may round h and weight to x's dtype in the product.

    Source: Hochreiter and Schmidhuber, Neural Computation 9(8), 1997; Gers, Schmidhuber and Cummins, 2000.
    """
    check = Checker("lstm_scan", "x", x, "B T 4D")
    if check.sizes["4D"] % 4:
        check.refuse("x", x, "must have a last size divisible by 4, one block per gate")
    check.sizes["D"] = check.sizes["4D"] // 4
    check.parameter("weight", weight, "4D D")
    check.sizes["B"] = check_batch(x, lengths=lengths, cu_seqlens=cu_seqlens, op="lstm_scan")
    for name, state in (("h0", h0), ("c0", c0)):
        if state is not None:
            check.state(name, state, "B D")
    y, h, c = OP.run(
        {"x": x, "weight": weight, "h0": h0, "c0": c0, "lengths": lengths, "cu_seqlens": cu_seqlens}, impl
    )
    return y, h, c


def _example(case: Case, rng: torch.Generator) -> Arguments:
    draw = Draw(case, rng)
    width = case.dims["D"]
    return {
        "x": draw.normal("B", "T", 4 * width) * 1.5,
        "weight": draw.normal(4 * width, width) * width**-0.5,
        "h0": draw.maybe("h0", lambda: draw.normal(draw.sequences, "D").tanh()),
        "c0": draw.maybe("c0", lambda: draw.normal(draw.sequences, "D")),
        **draw.batch_form(),
    }


_ODD = {"B": 3, "T": 13, "D": 5}
_RAGGED = {"B": 5, "T": 12, "D": 6}
_ROW = {"B": 1, "T": 29, "D": 7}

OP = Op(
    name="lstm_scan",
    reference=lstm_scan_reference,
    impls=(
        Impl("cpp", cpu.scan, cpu.why_not),
        Impl("cuda", cuda.scan, cuda.why_not),
        Impl("torch", scan),
    ),
    example=_example,
    cases=(
        Case({"B": 1, "T": 1, "D": 1}),
        Case({"B": 2, "T": 1, "D": 4}, ("h0", "c0")),
        Case(_ODD),
        Case(_ODD, ("h0",)),
        Case(_ODD, ("c0",)),
        Case({"B": 4, "T": 40, "D": 33}, ("h0", "c0")),
        Case(_RAGGED, ("lengths",)),
        Case(_RAGGED, ("h0", "c0", "lengths")),
        Case(_ROW, ("cu_seqlens",)),
        Case(_ROW, ("h0", "c0", "cu_seqlens")),
    ),
    outputs=("y", "h", "c"),
    operand_rounding=True,
)
