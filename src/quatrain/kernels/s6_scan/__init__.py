"""Selective state-space scan: the S6 recurrence of Mamba."""

import torch
from torch import Tensor

from quatrain.kernels._batch import check_batch
from quatrain.kernels._check import Checker
from quatrain.kernels._example import Draw
from quatrain.kernels._op import Arguments, Case, Impl, Op
from quatrain.kernels._s6 import check_s6
from quatrain.kernels.s6_scan import cpu, cuda, triton
from quatrain.kernels.s6_scan.chunked import scan
from quatrain.kernels.s6_scan.reference import s6_scan_reference


def s6_scan(
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor | None = None,
    gate: Tensor | None = None,
    delta_bias: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    softplus: bool = False,
    zoh: bool = False,
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Run the selective state-space recurrence and return its gated output and its last state.

    dt = delta + delta_bias, through softplus if asked; then per channel and state number
    h_t = exp(dt a) h_{t-1} + dt u_t b_t;  y_t = (sum_n c_t h_t + skip u_t) silu(gate_t).

    Args:
        u: input, (B, T, E).
        delta: step size, (B, T, E), at least 0 after bias and softplus; no unit.
        a: rate, (E, N), below 0 so that the state stays bounded.
        b, c: input and output maps, (B, T, N), or (B, T, G, N): E / G consecutive channels share a group.
        skip: direct path, (E,).
        gate: (B, T, E), multiplied in after silu.
        delta_bias: (E,).
        h0: state before the first step, (B, E, N), of u's dtype or float32; None is zeros.
        softplus: dt = log(1 + exp(.)).
        zoh: zero-order hold for b, (exp(dt a) - 1) / a in the place of dt (which is Euler's rule).
        lengths: (B,) valid steps of each row, in [0, T]; outputs past them are 0.
        cu_seqlens: (S + 1,) bounds of packed sequences, B = 1; states are (S, E, N).
        impl: ``"auto"``, an implementation's name, or ``"reference"``.

    Returns:
        y (B, T, E) in u's dtype and the state after the last valid step, (B, E, N), float32 or wider.

    Raises:
        ShapeError, StateError: an argument's shape, dtype, device or content is wrong; T is 0.
        NoKernelError: ``impl`` cannot run these arguments.

    Cost: about 7 B T E N operations and B T E N exponentials; 3 times that with the backward pass, which
    recomputes the states. No implementation but the reference holds B T E N numbers at once.

    Source: Gu and Dao, Mamba, arXiv:2312.00752, algorithm 2; its B, C, D are b, c and skip.
    """
    check = Checker("s6_scan", "u", u, "B T E")
    check_s6(check, "B T", delta, a, b, c, skip, gate, delta_bias)
    check.sizes["B"] = check_batch(u, lengths=lengths, cu_seqlens=cu_seqlens, op="s6_scan")
    if h0 is not None:
        check.state("h0", h0, "B E N")
    y, h = OP.run(
        {
            "u": u,
            "delta": delta,
            "a": a,
            "b": b,
            "c": c,
            "skip": skip,
            "gate": gate,
            "delta_bias": delta_bias,
            "h0": h0,
            "softplus": softplus,
            "zoh": zoh,
            "lengths": lengths,
            "cu_seqlens": cu_seqlens,
        },
        impl,
    )
    return y, h


def _example(case: Case, rng: torch.Generator) -> Arguments:
    draw = Draw(case, rng)
    softplus = case.flags.get("softplus", False)
    delta = draw.normal("B", "T", "E") - 2
    maps = ("B", "T", *(("G",) if "G" in case.dims else ()), "N")
    return {
        "u": draw.normal("B", "T", "E"),
        "delta": delta if softplus else torch.nn.functional.softplus(delta),
        "a": -draw.normal("E", "N").exp(),
        "b": draw.normal(*maps),
        "c": draw.normal(*maps),
        "skip": draw.maybe("skip", lambda: draw.normal("E")),
        "gate": draw.maybe("gate", lambda: draw.normal("B", "T", "E")),
        "delta_bias": draw.maybe("delta_bias", lambda: draw.normal("E").abs() / 2),
        "h0": draw.maybe("h0", lambda: draw.normal(draw.sequences, "E", "N")),
        "softplus": softplus,
        "zoh": case.flags.get("zoh", False),
        **draw.batch_form(),
    }


_ALL = ("skip", "gate", "delta_bias", "h0")
_ODD = {"B": 2, "T": 63, "E": 5, "N": 3}
_GROUPS = {"B": 2, "T": 21, "E": 6, "G": 3, "N": 4}
_RAGGED = {"B": 5, "T": 19, "E": 3, "N": 4}
_ROW = {"B": 1, "T": 41, "E": 3, "N": 2}

OP = Op(
    name="s6_scan",
    reference=s6_scan_reference,
    impls=(
        Impl("cpp", cpu.scan, cpu.why_not),
        Impl("nvrtc", cuda.scan, cuda.why_not),
        Impl("triton", triton.scan, triton.why_not),
        Impl("torch", scan),
    ),
    example=_example,
    cases=(
        Case({"B": 1, "T": 1, "E": 1, "N": 1}),
        Case({"B": 2, "T": 1, "E": 3, "N": 16}, _ALL, {"softplus": True}),
        Case(_ODD),
        Case(_ODD, ("skip",)),
        Case(_ODD, ("gate",)),
        Case(_ODD, ("delta_bias",)),
        Case(_ODD, ("h0",)),
        Case(_ODD, (), {"softplus": True}),
        Case(_ODD, (), {"zoh": True}),
        Case(_ODD, _ALL, {"softplus": True, "zoh": True}),
        Case({"B": 1, "T": 200, "E": 8, "N": 16}, _ALL, {"softplus": True}),
        Case(_GROUPS, _ALL, {"softplus": True}),
        Case(_GROUPS, ("skip",), {"zoh": True}),
        Case(_RAGGED, ("lengths",)),
        Case(_RAGGED, (*_ALL, "lengths"), {"softplus": True}),
        Case(_RAGGED, ("h0", "lengths"), {"zoh": True}),
        Case(_ROW, ("cu_seqlens",)),
        Case(_ROW, (*_ALL, "cu_seqlens"), {"softplus": True}),
        Case({**_ROW, "G": 1}, ("h0", "cu_seqlens"), {"zoh": True}),
    ),
    outputs=("y", "h"),
)
