"""GRU recurrence over time."""

from typing import Literal

import torch
from torch import Tensor

from quatrain.errors import ShapeError
from quatrain.kernels._batch import check_batch
from quatrain.kernels._check import Checker, check_choice
from quatrain.kernels._example import Draw
from quatrain.kernels._op import Arguments, Case, Impl, Op
from quatrain.kernels.gru_scan import cpu, cuda
from quatrain.kernels.gru_scan.reference import gru_scan_reference
from quatrain.kernels.gru_scan.steps import scan


def gru_scan(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    reset: Literal["after", "before"] = "after",
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Run a GRU over time and return every h_t and the last one.

    r = sigmoid(x_r + U_r h_{t-1}); z = sigmoid(x_z + U_z h_{t-1}); y_t = h_t = (1 - z) n + z h_{t-1}, where
    the reset gate r acts on h_{t-1} after the product or before it:

    - ``reset="after"``: n = tanh(x_n + r (U_n h_{t-1} + bias)), as torch.nn.GRU and cuDNN;
    - ``reset="before"``: n = tanh(x_n + U_n (r h_{t-1})), as in the paper.

    Args:
        x: drive of the three gates, the input projection with its bias, (B, T, 3D), stacked r, z, n.
        weight: recurrent matrices U_r, U_z, U_n, (3D, D).
        bias: of the product inside the reset gate, (D,), of x's dtype or float32; None is zeros. Only with
            ``reset="after"``: anywhere else a bias is part of x.
        h0: state before the first step, (B, D), of x's dtype or float32; None is zeros.
        reset: where the reset gate acts.
        lengths: (B,) valid steps of each row, in [0, T]; outputs past them are 0.
        cu_seqlens: (S + 1,) bounds of packed sequences, B = 1; states are (S, D).
        impl: ``"auto"``, an implementation's name, or ``"reference"``.

    Returns:
        y (B, T, D) in x's dtype and the state after the last valid step, (B, D), float32 or wider.

    Raises:
        ShapeError, StateError: an argument's shape, dtype, device or content is wrong; T is 0; a bias with
            ``reset="before"``.
        NoKernelError: ``impl`` cannot run these arguments.

    Cost: 6 B T D^2 operations in T dependent steps (2 T with ``reset="before"``, whose second product waits
    for the first), 3 times that with the backward pass. Where x is narrower than float32 an implementation
    may round h, r h and weight to x's dtype in the products.

    Source: Cho et al., Learning phrase representations using RNN encoder-decoder, arXiv:1406.1078, 2014.
    """
    check = Checker("gru_scan", "x", x, "B T 3D")
    if check.sizes["3D"] % 3:
        check.refuse("x", x, "must have a last size divisible by 3, one block per gate")
    check.sizes["D"] = check.sizes["3D"] // 3
    check.parameter("weight", weight, "3D D")
    check_choice("gru_scan", "reset", reset, ("after", "before"))
    if bias is not None:
        check.parameter("bias", bias, "D")
        if reset == "before":
            raise ShapeError("gru_scan: bias: given with reset = 'before': must be part of x there")
    check.sizes["B"] = check_batch(x, lengths=lengths, cu_seqlens=cu_seqlens, op="gru_scan")
    if h0 is not None:
        check.state("h0", h0, "B D")
    y, h = OP.run(
        {
            "x": x,
            "weight": weight,
            "bias": bias,
            "h0": h0,
            "reset": reset,
            "lengths": lengths,
            "cu_seqlens": cu_seqlens,
        },
        impl,
    )
    return y, h


def _example(case: Case, rng: torch.Generator) -> Arguments:
    draw = Draw(case, rng)
    width = case.dims["D"]
    after = case.flags.get("reset", "after") == "after"
    return {
        "x": draw.normal("B", "T", 3 * width) * 1.5,
        "weight": draw.normal(3 * width, width) * width**-0.5,
        "bias": draw.maybe("bias", lambda: draw.normal("D")) if after else None,
        "h0": draw.maybe("h0", lambda: draw.normal(draw.sequences, "D").tanh()),
        **draw.batch_form(),
        **case.flags,
    }


_ODD = {"B": 3, "T": 13, "D": 5}
_RAGGED = {"B": 5, "T": 12, "D": 6}
_ROW = {"B": 1, "T": 29, "D": 7}
_BEFORE = {"reset": "before"}

OP = Op(
    name="gru_scan",
    reference=gru_scan_reference,
    impls=(
        Impl("cpp", cpu.scan, cpu.why_not),
        Impl("cuda", cuda.scan, cuda.why_not),
        Impl("torch", scan),
    ),
    example=_example,
    cases=(
        Case({"B": 1, "T": 1, "D": 1}),
        Case({"B": 1, "T": 1, "D": 1}, (), _BEFORE),
        Case({"B": 2, "T": 1, "D": 4}, ("bias", "h0")),
        Case(_ODD),
        Case(_ODD, ("h0",), _BEFORE),
        Case({"B": 4, "T": 40, "D": 33}, ("bias", "h0")),
        Case({"B": 4, "T": 40, "D": 33}, ("h0",), _BEFORE),
        Case(_RAGGED, ("lengths",)),
        Case(_RAGGED, ("bias", "h0", "lengths")),
        Case(_RAGGED, ("h0", "lengths"), _BEFORE),
        Case(_ROW, ("cu_seqlens",)),
        Case(_ROW, ("h0", "cu_seqlens"), _BEFORE),
        Case(_ROW, ("bias", "h0", "cu_seqlens")),
    ),
    outputs=("y", "h"),
    operand_rounding=True,
)
