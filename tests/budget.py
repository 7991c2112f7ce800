"""The error budget: no further from the truth than twice what plain arithmetic of the same width is."""

import torch
from torch import Tensor

FLOOR = 8 * torch.finfo(torch.float32).eps  # of the result's own size, which rounding it costs anyway


def peak(x: Tensor) -> Tensor:
    return x.abs().max()


def rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


def check_errors(
    got: Tensor, plain: Tensor, exact: Tensor, name: str = "", slack: float = 2.0, floor: float = FLOOR
) -> None:
    """Assert it of one result in its largest number and in the mean; `plain` is given the dtype of `got`."""
    assert got.shape == exact.shape, name
    if exact.numel() == 0:
        return
    g, p = got.to(exact), plain.to(exact.device, got.dtype).to(exact)
    for norm in (peak, rms):
        allowed = slack * norm(p - exact) + floor * norm(exact)
        error = norm(g - exact)
        assert error <= allowed, f"{name}, {norm.__name__}: error {error:.3g} > allowed {allowed:.3g}"
