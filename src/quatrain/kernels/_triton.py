"""Where Triton kernels can run: on GPUs that NVRTC does not reach, such as another vendor's.

Triton comes with torch's wheels for GPUs. It is imported when a kernel is about to run, never
before.
"""

from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def why_not_for(x: Tensor) -> str | None:
    """Why Triton's kernels cannot run on data such as x; reads metadata only."""
    if x.device.type != "cuda":  # torch calls AMD's GPUs so too
        return f"runs on GPUs, not on {x.device.type}"
    if x.dtype not in DTYPES:
        return f"dtype {x.dtype}: must be float32, float16 or bfloat16"
    reason: str | None = missing()
    return reason


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def missing() -> str | None:
    """Why Triton cannot be imported here; None if it can."""
    return "Triton is not installed" if find_spec("triton") is None else None


def power_of_2(least: int) -> int:
    """The smallest power of two that is not below ``least``: sizes of Triton's blocks."""
    return 1 << (least - 1).bit_length()


def device_of(x: Tensor) -> AbstractContextManager[Any]:
    """A context in which kernels run on the GPU of x."""
    context: AbstractContextManager[Any] = torch.cuda.device_of(x)  # type: ignore[no-untyped-call]
    return context
