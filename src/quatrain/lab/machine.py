"""Where and with what a comparison was made."""

import os
import platform
import subprocess
from pathlib import Path

from quatrain.train import _machine


def machine(threads: int) -> dict[str, object]:
    """Processor, cores this process may use, threads, memory in bytes (0 where unknown), device, system."""
    return {
        "cpu": _machine.describe()["cpu"],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": threads,
        "memory_bytes": _memory(),
        "device": "cpu",
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def versions() -> dict[str, object]:
    """Versions that decide numbers and speed."""
    described = _machine.describe()
    return {name: described[name] for name in ("quatrain", "torch", "python")}


def commit() -> str:
    """The commit this code is of, with ``-dirty`` where the checkout has changes; empty outside a checkout.

    Asked only where git tracks this very file: a package installed inside somebody's repository is not of
    that repository's commit.
    """
    here = Path(__file__).resolve()
    if not _git(here.parent, "ls-files", "--error-unmatch", here.name):
        return ""
    changed = _git(here.parent, "status", "--porcelain", "--untracked-files=no")
    return _git(here.parent, "rev-parse", "HEAD") + ("-dirty" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ("git", "-C", str(folder), *arguments), capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0
