"""The peak memory of training steps or ops at several lengths, each in a process of its own.

``python -m quatrain.lab.claims._memory`` reads a JSON object on stdin (``work``, ``lengths``, ``device`` and
what the work needs) and writes one on stdout: for each length the bytes that it took beyond
what the process held before. Memory that was freed stays with a process and hides what the next length takes,
so each is measured in a copy made before anything ran; there the work is done once at a small length, which
sets everything up, and the peak is reset. A GPU's allocator gives its memory back, and needs no copy.
"""

import json
import os
import signal
import sys
import traceback
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

Work = Callable[[int], Callable[[], object]]  # length -> the work
_WARM = 32  # steps of a first call that sets everything up


def main() -> None:
    """Work as stdin says, and say on stdout what it took."""
    task = json.load(sys.stdin)
    torch.set_num_threads(1)  # a pool's threads do not come along into a copy, which would wait for them
    device = torch.device(task["device"])
    work = _work(task, device)
    measure = _here if device.type == "cuda" else _apart
    json.dump({str(length): measure(work, length, device) for length in task["lengths"]}, sys.stdout)


def _here(work: Work, length: int, device: torch.device) -> int:
    """Bytes that the work takes at its peak."""
    work(_WARM)()
    run = work(length)
    before = _reset(device)
    run()
    return max(0, _peak(device) - before)


def _apart(work: Work, length: int, device: torch.device) -> int:
    """`_here` in a copy of this process. No thread runs yet, so nothing is lost in the copy."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, str(_here(work, length, device)).encode())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit(f"length {length}: ended by {_ending(status)}")
    return int(told)


def _ending(status: int) -> str:
    if os.WIFSIGNALED(status):
        killed = os.WTERMSIG(status) == signal.SIGKILL
        return f"signal {os.WTERMSIG(status)}" + (", as where memory runs out" if killed else "")
    return f"exit code {os.WEXITSTATUS(status)}"


def _work(task: dict[str, Any], device: torch.device) -> Work:
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
