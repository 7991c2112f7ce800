"""The two ops that can be run with or without their large intermediate in memory."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from quatrain.kernels import attention, s6_scan
from quatrain.kernels.attention.reference import attention_reference

HEADS, HEAD = 4, 32  # of the attention op
INNER, STATE = 256, 16  # E and N of the scan


def attend(length: int, fused: bool, device: torch.device) -> Callable[[], object]:
    """Causal attention (1, T, 4, 32) without gradients: fused, or with the T x T weights in memory."""
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, length, HEADS, HEAD, generator=random).to(device) for _ in range(3))

    def work() -> object:
        with torch.no_grad():
            return attention(q, k, v) if fused else attention_reference(q, k, v)

    return work


def scan(length: int, fused: bool, device: torch.device) -> Callable[[], object]:
    """The S6 scan (1, T, 256) with 16 state numbers, without gradients: fused, or materialised."""
    arguments = scan_inputs(length, device)

    def work() -> object:
        with torch.no_grad():
            return s6_scan(*arguments)[0] if fused else materialised(*arguments)

    return work


def scan_inputs(length: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """u, delta, a, b and c of a scan."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random).to(device)

    u, delta = normal(1, length, INNER), F.softplus(normal(1, length, INNER) - 2)
    a = -torch.arange(1.0, STATE + 1).repeat(INNER, 1).to(device)
    return u, delta, a, normal(1, length, STATE), normal(1, length, STATE)


def materialised(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """h_t = exp(dt a) h_{t-1} + dt u_t b_t; y_t = h_t c_t, with decays, drives and states of all steps in
    memory, (B, T, E, N) each, as the recurrence is written without a fused kernel.
    """
    decay = torch.exp(delta[..., None] * a)
    states = (delta * u)[..., None] * b[:, :, None]
    for t in range(1, states.shape[1]):
        states[:, t].addcmul_(decay[:, t], states[:, t - 1])
    return (states @ c[..., None])[..., 0]


def scan_bytes(length: int, fused: bool) -> int:
    """Bytes that the scan has to move between memory and processor, counted from its definition.

    Fused: u, delta and y (T E each) and b, c (T N each), once. Materialised: decays and drives are written,
    read and the states written in the loop (its last state is still near), then the states are read again
    for the output: 5 tensors of T E N.
    """
    once = length * (3 * INNER + 2 * STATE)
    return 4 * (once if fused else once + 5 * length * INNER * STATE)
