"""What of the machine decides the last bits of a run, and how much memory the run takes."""

import os
import platform
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import quatrain
from quatrain.model.device import name_of


def describe(device: torch.device | None = None) -> dict[str, object]:
    """Versions, processor, device and threads: results are bit-identical only where these are equal."""
    return {
        "device": name_of(device or torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "cpu": _cpu(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "quatrain": quatrain.__version__,
    }


def differences(there: Mapping[str, object], here: Mapping[str, object]) -> list[str]:
    """How this machine differs from the one a run was started on, in words."""
    return [
        f"{key} {there[key]} then, {here[key]} now"
        for key in there
        if key in here and there[key] != here[key]
    ]


@contextmanager
def numerics(threads: int, device: torch.device) -> Iterator[None]:
    """Fixed thread count, deterministic kernels, and the caller's random state left as it was.

    On a GPU float32 means float32, convolutions included; kernels may add in any order: torch's rule for
    deterministic ones wants an environment variable, and it knows none for CTC.
    """
    before = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic  # torch makes its attribute at import, unseen by type checkers
    fill = memory.fill_uninitialized_memory
    random = torch.get_rng_state()
    gpu = device.type == "cuda"
    gpu_random = torch.cuda.get_rng_state(device) if gpu else None
    tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(not gpu)
    if gpu:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    memory.fill_uninitialized_memory = fill and deterministic  # costly, and for tests
    try:
        yield
    finally:
        torch.set_rng_state(random)
        if gpu_random is not None:
            torch.cuda.set_rng_state(gpu_random, device)
            torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = tf32
        memory.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.set_num_threads(before)


def memory_bytes() -> int:
    """Resident memory of this process now (its peak where the system doesn't tell)."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_memory_bytes()


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
