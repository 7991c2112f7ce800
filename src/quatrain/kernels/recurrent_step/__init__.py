"""One step of a whole recurrent layer, input projection included, for generation."""

import torch
from torch import Tensor

from quatrain.errors import ShapeError
from quatrain.kernels import _recurrent_layer
from quatrain.kernels._autograd import recorded
from quatrain.kernels._check import Checker, check_choice
from quatrain.kernels._example import Draw
from quatrain.kernels._op import Arguments, Case, Impl, Op
from quatrain.kernels._recurrent import Kind
from quatrain.kernels.recurrent_step import cpu, cuda
from quatrain.kernels.recurrent_step.product import step as torch_step
from quatrain.kernels.recurrent_step.reference import recurrent_step_reference

_GATES = {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 4, "gru": 3, "gru_before": 3}


def recurrent_step(
    x: Tensor,
    in_weight: Tensor,
    weight: Tensor,
    h0: Tensor,
    c0: Tensor | None = None,
    in_bias: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    kind: str,
    impl: str = "auto",
) -> tuple[Tensor, ...]:
    """One step of an RNN, LSTM or GRU: z = in_weight x + in_bias + weight h0, the gates, the new states.

    What the gates do is defined by `rnn_scan`, `lstm_scan` and `gru_scan`, whose drive is in_weight x +
    in_bias. G is 1 for an RNN, 4 for an LSTM, 3 for a GRU.

    Args:
        x: (B, I).
        in_weight: (G D, I).
        weight: recurrent matrix, (G D, D).
        h0: (B, D), of x's dtype or float32; it is not changed.
        c0: the cell of an LSTM, as h0.
        in_bias: (G D,); None is zeros.
        bias: of the product inside the reset gate of a ``"gru"``, (D,); None is zeros.
        kind: ``"rnn_tanh"``, ``"rnn_relu"``, ``"lstm"``, ``"gru"`` (the reset gate acts after the product) or
            ``"gru_before"``.
        impl: ``"auto"``, an implementation's name, or ``"reference"``.

    Returns:
        y (B, D) in x's dtype, the new h (B, D), float32 or wider, and for an LSTM the new c.

    Raises:
        ShapeError, StateError: an argument's shape, dtype or device is wrong, missing, or of another kind.
        NoKernelError: ``impl`` cannot run these arguments.

    Cost: 2 G B D (I + D) operations; at small batches the time is that of reading the matrices. Where x is
    narrower than float32 an implementation may round h0 to x's dtype in the product.

    Source: those of the scans.
    """
    check_choice("recurrent_step", "kind", kind, tuple(_GATES))
    check = Checker("recurrent_step", "x", x, "B I")
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        check.data("weight", weight, "GD D")
    rows = f"{_GATES[kind]}D"
    check.sizes["D"] = weight.shape[1]
    check.sizes[rows] = _GATES[kind] * weight.shape[1]
    check.data("weight", weight, f"{rows} D")
    check.data("in_weight", in_weight, f"{rows} I")
    if in_bias is not None:
        check.data("in_bias", in_bias, rows)
    if bias is not None:
        check.data("bias", bias, "D")
        if kind != "gru":
            rule = "must be part of in_bias there"
            raise ShapeError(f"recurrent_step: bias: given with kind = {kind!r}: {rule}")
    check.state("h0", h0, "B D")
    if (c0 is None) == (kind == "lstm"):
        given = "absent" if c0 is None else "given"
        rule = "an LSTM has a cell, the others have none"
        raise ShapeError(f"recurrent_step: c0: {given} with kind = {kind!r}: {rule}")
    if c0 is not None:
        check.state("c0", c0, "B D")
    tensors = {"x": x, "in_weight": in_weight, "weight": weight, "h0": h0, "c0": c0}
    return OP.run({**tensors, "in_bias": in_bias, "bias": bias, "kind": kind}, impl)


def step(
    kind: Kind,
    x: Tensor,
    in_weight: Tensor,
    in_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    *,
    variant: int = 0,
    impl: str = "auto",
) -> tuple[Tensor, ...] | None:
    """What `recurrent_step` gives, for a mixer: arguments are taken as checked, no gradient.

    None where neither the core nor the GPU kernel does it, a gradient is wanted, or autocast asks for another
    dtype: then the projection and the scan are to be called.
    """
    if not x.is_cuda:
        return _recurrent_layer.step(
            kind, x, in_weight, in_bias, weight, bias, h0, c0, variant=variant, impl=impl
        )
    tensors = (x, in_weight, in_bias, weight, bias, h0, c0)
    if h0 is None or impl not in ("auto", "cuda") or recorded(*tensors) or torch.is_autocast_enabled("cuda"):
        return None
    fit = _recurrent_layer.fit(kind, x, in_weight, in_bias, weight, bias)
    if not fit or any(p is not None and p.dtype != x.dtype for p in tensors[1:5]):
        return None
    name = kind.key.replace(" ", "_") if kind.gates > 1 else ("rnn_tanh", "rnn_relu")[variant]
    if cuda.why_not({"x": x, "weight": weight, "kind": name}) is not None:
        return None
    return cuda.step(x, in_weight, weight, h0, c0, in_bias, bias, kind=name)


def _example(case: Case, rng: torch.Generator) -> Arguments:
    draw = Draw(case, rng)
    width, fed = case.dims["D"], case.dims.get("I", case.dims["D"])
    kind = case.flags.get("kind", "lstm")
    rows = _GATES[kind] * width
    return {
        "x": draw.normal("B", fed),
        "in_weight": draw.normal(rows, fed) * fed**-0.5,
        "weight": draw.normal(rows, width) * width**-0.5,
        "h0": draw.normal("B", "D").tanh(),
        "c0": draw.normal("B", "D") if kind == "lstm" else None,
        "in_bias": draw.maybe("in_bias", lambda: draw.normal(rows)),
        "bias": draw.maybe("bias", lambda: draw.normal("D")) if kind == "gru" else None,
        "kind": kind,
    }


OP = Op(
    name="recurrent_step",
    reference=recurrent_step_reference,
    impls=(
        Impl("cpp", cpu.step, cpu.why_not),
        Impl("cuda", cuda.step, cuda.why_not),
        Impl("torch", torch_step),
    ),
    example=_example,
    cases=(
        Case({"B": 1, "I": 1, "D": 1}),
        Case({"B": 2, "I": 7, "D": 5}, ("in_bias",)),
        Case({"B": 3, "I": 40, "D": 33}, ("in_bias",), {"kind": "rnn_tanh"}),
        Case({"B": 5, "I": 16, "D": 64}, (), {"kind": "rnn_relu"}),
        Case({"B": 4, "I": 24, "D": 33}, ("in_bias",), {"kind": "gru"}),
        Case({"B": 2, "I": 6, "D": 7}, ("in_bias",), {"kind": "gru_before"}),
        Case({"B": 1, "I": 64, "D": 72}, ("in_bias",)),
        Case({"B": 19, "I": 32, "D": 40}, ("in_bias", "bias"), {"kind": "gru"}),
        Case({"B": 8, "I": 8, "D": 16}, ("in_bias", "bias"), {"kind": "gru"}),
    ),
    outputs=("y", "h", "c"),
    operand_rounding=True,
)
