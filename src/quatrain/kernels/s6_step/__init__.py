"""One step of the selective state-space recurrence, for generation."""

import torch
from torch import Tensor

from quatrain.kernels._check import Checker
from quatrain.kernels._example import Draw
from quatrain.kernels._op import Arguments, Case, Impl, Op
from quatrain.kernels._s6 import check_s6
from quatrain.kernels.s6_step import cpu, cuda
from quatrain.kernels.s6_step.reference import s6_step_reference
from quatrain.kernels.s6_step.vector import step


def s6_step(
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor | None,
    gate: Tensor | None,
    delta_bias: Tensor | None,
    h0: Tensor,
    *,
    softplus: bool = False,
    zoh: bool = False,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """One step of `quatrain.kernels.s6_scan`: the same arguments without T, and a state that must be there.

    Args:
        u, delta, gate: (B, E).
        a: (E, N).
        b, c: (B, N), or (B, G, N).
        skip, delta_bias: (E,).
        h0: (B, E, N), of u's dtype or float32; it is not changed.

    Returns:
        y (B, E) in u's dtype and the new state (B, E, N), float32 or wider.

    Raises:
        ShapeError, StateError: an argument's shape, dtype or device is wrong.
        NoKernelError: ``impl`` cannot run these arguments.

    Cost: about 7 B E N operations and B E N exponentials; it reads and writes the state once.
    Source: Gu and Dao, Mamba, arXiv:2312.00752.
    """
    check = Checker("s6_step", "u", u, "B E")
    check_s6(check, "B", delta, a, b, c, skip, gate, delta_bias)
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
        },
        impl,
    )
    return y, h


def _example(case: Case, rng: torch.Generator) -> Arguments:
    draw = Draw(Case({**case.dims, "T": 1}, case.optional, case.flags), rng)
    softplus = case.flags.get("softplus", False)
    delta = draw.normal("B", "E") - 2
    maps = ("B", *(("G",) if "G" in case.dims else ()), "N")
    return {
        "u": draw.normal("B", "E"),
        "delta": delta if softplus else torch.nn.functional.softplus(delta),
        "a": -draw.normal("E", "N").exp(),
        "b": draw.normal(*maps),
        "c": draw.normal(*maps),
        "skip": draw.maybe("skip", lambda: draw.normal("E")),
        "gate": draw.maybe("gate", lambda: draw.normal("B", "E")),
        "delta_bias": draw.maybe("delta_bias", lambda: draw.normal("E").abs() / 2),
        "h0": draw.normal("B", "E", "N"),
        "softplus": softplus,
        "zoh": case.flags.get("zoh", False),
    }


_ALL = ("skip", "gate", "delta_bias")

OP = Op(
    name="s6_step",
    reference=s6_step_reference,
    impls=(
        Impl("cpp", cpu.step, cpu.why_not),
        Impl("nvrtc", cuda.step, cuda.why_not),
        Impl("torch", step),
    ),
    example=_example,
    cases=(
        Case({"B": 1, "E": 1, "N": 1}),
        Case({"B": 3, "E": 5, "N": 3}),
        Case({"B": 1, "E": 32, "N": 16}, _ALL, {"softplus": True}),
        Case({"B": 2, "E": 6, "G": 3, "N": 4}, _ALL, {"softplus": True}),
        Case({"B": 2, "E": 6, "N": 4}, _ALL, {"softplus": True, "zoh": True}),
        Case({"B": 2, "E": 6, "N": 4}, ("gate",), {"zoh": True}),
    ),
    outputs=("y", "h"),
)
