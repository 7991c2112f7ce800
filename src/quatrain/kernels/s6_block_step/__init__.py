"""One step of a whole Mamba block around S6, its norm and residual sum included, for generation."""

import torch
from torch import Tensor

from quatrain.kernels._autograd import recorded
from quatrain.kernels._check import Checker
from quatrain.kernels._example import Draw
from quatrain.kernels._op import Arguments, Case, Impl, Op
from quatrain.kernels.s6_block_step import cuda
from quatrain.kernels.s6_block_step.parts import step as torch_step
from quatrain.kernels.s6_block_step.reference import s6_block_step_reference


def s6_block_step(
    x: Tensor,
    in_weight: Tensor,
    conv_weight: Tensor,
    x_weight: Tensor,
    dt_weight: Tensor,
    a_log: Tensor,
    out_weight: Tensor,
    h0: Tensor,
    conv0: Tensor,
    norm_weight: Tensor | None = None,
    conv_bias: Tensor | None = None,
    dt_bias: Tensor | None = None,
    skip: Tensor | None = None,
    *,
    eps: float = 1e-5,
    zoh: bool = False,
    impl: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of a Mamba block: from a vector of each sequence and the block's states to the next ones.

    u, z = in_weight v, with v = x, or with ``norm_weight`` v = norm_weight x / sqrt(mean(x^2) + eps);
    u = silu(conv_bias + conv_weight_0 conv0_0 + .. + conv_weight_{W-1} u); s, b, c = x_weight u;
    h, r = `s6_step` of u, delta = dt_weight s, a = -exp(a_log), b, c, skip, gate z, dt_bias, h0 and softplus;
    y = out_weight r, with ``norm_weight`` + x.

    Args:
        x: (B, D).
        in_weight: (2E, D), first the rows of u.
        conv_weight: (E, W).
        x_weight: (R + 2N, E).
        dt_weight: (E, R).
        a_log: (E, N).
        out_weight: (D, E).
        h0: (B, E, N), of x's dtype or float32; it is not changed.
        conv0: the convolution's last inputs (B, W - 1, E), of x's dtype.
        norm_weight: (D,); None: neither norm nor residual sum.
        conv_bias, dt_bias, skip: (E,); None is zeros.
        eps: added to the mean square.
        zoh: zero-order hold for b.
        impl: ``"auto"``, an implementation's name, or ``"reference"``.

    Returns:
        y (B, D) in x's dtype, the new h (B, E, N), float32 or wider, and the convolution's new inputs.

    Raises:
        ShapeError, StateError: an argument's shape, dtype or device is wrong.
        NoKernelError: ``impl`` cannot run these arguments.

    Cost: per sequence 6 D E + 2 E (R + 2 N) + 2 R E + 7 E N operations; at small batches the time is that of
    reading the matrices. Where x is narrower than float32 an implementation may round the products' operands
    and the convolution's inputs to x's dtype. Source: Gu and Dao, Mamba, arXiv:2312.00752.
    """
    check = Checker("s6_block_step", "x", x, "B D")
    check.data("conv_weight", conv_weight, "E W")
    check.data("a_log", a_log, "E N")
    check.data("dt_weight", dt_weight, "E R")
    sizes = check.sizes
    sizes["2E"], sizes["R+2N"], sizes["W-1"] = 2 * sizes["E"], sizes["R"] + 2 * sizes["N"], sizes["W"] - 1
    if sizes["W"] < 2:
        check.refuse("conv_weight", conv_weight, "W must be at least 2")
    check.data("in_weight", in_weight, "2E D")
    check.data("x_weight", x_weight, "R+2N E")
    check.data("out_weight", out_weight, "D E")
    check.state("h0", h0, "B E N")
    check.state("conv0", conv0, "B W-1 E", wide=False)
    if norm_weight is not None:
        check.data("norm_weight", norm_weight, "D")
    for name, vector in (("conv_bias", conv_bias), ("dt_bias", dt_bias), ("skip", skip)):
        if vector is not None:
            check.data(name, vector, "E")
    weights = {
        "in_weight": in_weight,
        "conv_weight": conv_weight,
        "x_weight": x_weight,
        "dt_weight": dt_weight,
    }
    more = {"norm_weight": norm_weight, "conv_bias": conv_bias, "dt_bias": dt_bias, "skip": skip}
    states = {"a_log": a_log, "out_weight": out_weight, "h0": h0, "conv0": conv0}
    y, h, conv = OP.run({"x": x, **weights, **states, **more, "eps": eps, "zoh": zoh}, impl)
    return y, h, conv


def step(
    x: Tensor,
    in_weight: Tensor,
    conv_weight: Tensor,
    x_weight: Tensor,
    dt_weight: Tensor,
    a_log: Tensor,
    out_weight: Tensor,
    h0: Tensor,
    conv0: Tensor,
    norm_weight: Tensor | None,
    conv_bias: Tensor,
    dt_bias: Tensor,
    skip: Tensor,
    *,
    eps: float,
    zoh: bool,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """What `s6_block_step` gives, for a mixer: arguments are taken as checked, no gradient.

    None where the GPU kernel does not do it, a gradient is wanted, or autocast asks for another dtype: then
    the parts are to be called.
    """
    if not x.is_cuda or torch.is_autocast_enabled("cuda"):
        return None
    weights = (in_weight, conv_weight, x_weight, dt_weight, a_log, out_weight, conv_bias, dt_bias, skip)
    narrow = (*weights, conv0) if norm_weight is None else (*weights, conv0, norm_weight)
    if recorded(x, h0, *narrow) or any(w.dtype != x.dtype or w.device != x.device for w in narrow):
        return None
    sizes = {"conv_weight": conv_weight, "dt_weight": dt_weight, "a_log": a_log}
    if cuda.why_not({"x": x, **sizes}) is not None:
        return None
    small = (norm_weight, conv_bias, dt_bias, skip)
    return cuda.step(x, *weights[:6], h0, conv0, *small, eps=eps, zoh=zoh)


def _example(case: Case, rng: torch.Generator) -> Arguments:
    draw = Draw(case, rng)
    dims = case.dims
    width, inner, states, rank, conv = (dims[letter] for letter in "DENRW")
    return {
        "x": draw.normal("B", "D"),
        "in_weight": draw.normal(2 * inner, width) * width**-0.5,
        "conv_weight": draw.normal("E", "W") * conv**-0.5,
        "x_weight": draw.normal(rank + 2 * states, inner) * inner**-0.5,
        "dt_weight": draw.normal("E", "R") * rank**-0.5,
        "a_log": draw.normal("E", "N") / 2,
        "out_weight": draw.normal("D", "E") * inner**-0.5,
        "h0": draw.normal("B", "E", "N"),
        "conv0": draw.normal("B", conv - 1, "E"),
        "norm_weight": draw.maybe("norm_weight", lambda: 1 + draw.normal("D") / 4),
        "conv_bias": draw.maybe("conv_bias", lambda: draw.normal("E") / 2),
        "dt_bias": draw.maybe("dt_bias", lambda: draw.normal("E") - 2),
        "skip": draw.maybe("skip", lambda: draw.normal("E")),
        "eps": case.flags.get("eps", 1e-5),
        "zoh": case.flags.get("zoh", False),
    }


_ALL = ("norm_weight", "conv_bias", "dt_bias", "skip")


def _sizes(*sizes: int) -> dict[str, int]:
    return dict(zip("BDENRW", sizes, strict=True))


OP = Op(
    name="s6_block_step",
    reference=s6_block_step_reference,
    impls=(Impl("nvrtc", cuda.step, cuda.why_not), Impl("torch", torch_step)),
    example=_example,
    cases=(
        Case(_sizes(1, 1, 1, 1, 1, 2)),
        Case(_sizes(2, 6, 9, 3, 2, 3), ("norm_weight",), {"eps": 0.1}),
        Case(_sizes(1, 24, 48, 16, 2, 4), _ALL),
        Case(_sizes(3, 40, 80, 4, 5, 4), _ALL, {"zoh": True}),
        Case(_sizes(5, 16, 32, 8, 3, 2), ("conv_bias", "skip")),
        Case(_sizes(9, 32, 40, 20, 6, 4), ("norm_weight", "dt_bias"), {"zoh": True}),
    ),
    outputs=("y", "h", "conv"),
    operand_rounding=True,
)
