"""What the GPU benchmarks share: timing, random tensors, rows."""

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from gpu_s6 import milliseconds
from torch import Tensor

VOCAB = 50280  # 50,277 padded to a multiple of 8
BF16 = torch.bfloat16
Row = dict[str, Any]


def once(run: Callable[[], object]) -> float:
    """Time of one call, for what takes seconds."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def normal(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=dtype)


def row(op: str, impl: str, case: str, mode: str, ms: float, **more: object) -> Row:
    sys.stdout.write(f"{op:18} {impl:22} {case:28} {mode:9} {ms:10.4f} ms  {more or ''}\n")
    sys.stdout.flush()
    return {
        "op": op,
        "impl": impl,
        "case": case,
        "dtype": "bfloat16",
        "mode": mode,
        "ms": round(ms, 4),
        **more,
    }


def both_ways(
    op: str, impl: str, case: str, run: Callable[[], Tensor], leaves: list[Tensor], calls: int = 10
) -> list[Row]:
    """Forward alone, and with the backward pass."""
    with torch.no_grad():
        rows = [row(op, impl, case, "forward", milliseconds(run, calls))]
    for leaf in leaves:
        leaf.requires_grad_()
    cotangent = torch.randn_like(run())
    rows.append(
        row(
            op,
            impl,
            case,
            "training",
            milliseconds(lambda: torch.autograd.grad(run(), leaves, cotangent), calls),
        )
    )
    return rows
