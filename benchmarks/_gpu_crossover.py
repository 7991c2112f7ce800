"""The S6 scan beside attention, from 512 to a million steps; crossover.py draws the rows."""

from collections.abc import Callable
from functools import partial

import torch
from _gpu import BF16, Row, normal, once, row
from gpu_s6 import draw, milliseconds
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from quatrain.kernels import s6_scan


def crossover() -> list[Row]:
    """S6's scan beside attention (16 heads x 64, cuDNN) at equal width and equal tokens."""
    rows = []
    for power in range(9, 21):
        batch, steps = max(1, (1 << 15) >> power), 1 << power
        timer = (lambda run: milliseconds(run, 1, 5)) if power <= 16 else once
        for one in (_scan, _attention):
            run, leaves, cotangent = one(batch, steps)
            case = f"B{batch} T{steps} width 1024"
            with torch.no_grad():
                if one is _scan:
                    run()
                rows.append(row("crossover", one.__name__[1:], case, "forward", timer(run)))
            train = partial(_train, run, leaves, cotangent)
            rows.append(row("crossover", one.__name__[1:], case, "training", timer(train)))
            run = leaves = cotangent = train = None
            torch.cuda.empty_cache()
    return rows


def _train(run: Callable[[], Tensor], leaves: list[Tensor], cotangent: Tensor) -> object:
    return torch.autograd.grad(run(), leaves, cotangent)


def _scan(batch: int, steps: int) -> tuple[Callable[[], Tensor], list[Tensor], Tensor]:
    given = draw(batch, 1024, steps, BF16)
    leaves = [x.requires_grad_() for x in given.values() if isinstance(x, Tensor)]
    return lambda: s6_scan(**given)[0], leaves, torch.randn_like(given["u"])


def _attention(batch: int, steps: int) -> tuple[Callable[[], Tensor], list[Tensor], Tensor]:
    q = [normal(batch, 16, steps, 64).requires_grad_() for _ in range(3)]

    def attend() -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(*q, is_causal=True)

    return attend, q, torch.randn_like(q[0])
