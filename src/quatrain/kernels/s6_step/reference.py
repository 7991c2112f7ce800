"""One step of the S6 recurrence: the definition of the scan at T = 1."""

from torch import Tensor

from quatrain.kernels.s6_scan.reference import s6_scan_reference


def s6_step_reference(
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
) -> tuple[Tensor, Tensor]:
    """`s6_scan_reference` on a sequence of one step; see `quatrain.kernels.s6_step`."""
    y, h = s6_scan_reference(
        u[:, None],
        delta[:, None],
        a,
        b[:, None],
        c[:, None],
        skip,
        None if gate is None else gate[:, None],
        delta_bias,
        h0,
        softplus=softplus,
        zoh=zoh,
    )
    return y[:, 0], h
