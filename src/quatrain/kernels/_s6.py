"""What s6_scan and s6_step share: the checks of their common arguments."""

from torch import Tensor

from quatrain.kernels._check import Checker


def check_s6(
    check: Checker,
    lead: str,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor | None,
    gate: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    """Check everything but u, which made ``check``, and the state; ``lead`` is ``"B T"`` or ``"B"``."""
    check.data("delta", delta, f"{lead} E")
    check.parameter("a", a, "E N")
    maps = f"{lead} N" if isinstance(b, Tensor) and b.ndim == len(lead.split()) + 1 else f"{lead} G N"
    check.data("b", b, maps)
    check.data("c", c, maps)
    groups = check.sizes.get("G", 1)
    if groups < 1 or check.sizes["E"] % groups:
        check.refuse("b", b, f"G = {groups} groups must divide E = {check.sizes['E']}")
    if check.sizes["N"] == 0:
        check.refuse("a", a, "N must be at least 1")
    if skip is not None:
        check.parameter("skip", skip, "E")
    if gate is not None:
        check.data("gate", gate, f"{lead} E")
    if delta_bias is not None:
        check.parameter("delta_bias", delta_bias, "E")
