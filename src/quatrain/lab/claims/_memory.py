"""The peak memory of training steps, forward passes or ops at growing lengths, in a process of its own.

``python -m quatrain.lab.claims._memory`` reads a JSON object on stdin (``work``, ``lengths``, ``device``,
``threads`` and what the work needs) and writes one on stdout: for each length the bytes that it took beyond
what the process held before. A fresh process, because memory that was freed stays with the process; lengths
rise, so that each peak is its own. Linux resets the peak in between.
"""

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from quatrain.config.schema import from_dict
from quatrain.lab.claims import _ops
from quatrain.lab.claims.timing import bytes_of, fresh, training_step
from quatrain.model.config import ModelConfig
from quatrain.train import _machine

_WARM = 32  # steps of a first call that sets everything up


def main() -> None:
    """Work as stdin says, and say on stdout what it took."""
    task = json.load(sys.stdin)
    torch.set_num_threads(task["threads"])
    device = torch.device(task["device"])
    work = _work(task, device)
    work(_WARM)()
    found = {}
    for length in task["lengths"]:
        run = work(length)
        before = _reset(device)
        run()
        found[str(length)] = max(0, _peak(device) - before)
        del run
    json.dump(found, sys.stdout)


def _work(task: dict[str, Any], device: torch.device) -> Callable[[int], Callable[[], object]]:
    if task["work"] == "training":
        model = fresh(from_dict(ModelConfig, task["model"]), device)
        return lambda length: training_step(model, bytes_of(length + 1, device))
    op = {"attention": _ops.attend, "scan": _ops.scan}[task["work"]]
    return lambda length: op(length, task["fused"], device)


def _reset(device: torch.device) -> int:
    """Forget the peak so far; bytes held now."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _machine.memory_bytes()


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(line for line in lines if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024
    return _machine.peak_memory_bytes()


if __name__ == "__main__":
    main()
