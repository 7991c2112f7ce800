"""Rows of ``benchmarks/results/*.jsonl``: what was measured, on which machine, by which command."""

import json
import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from quatrain.lab import machine

RESULTS = Path(__file__).parent / "results"


def row(op: str, impl: str, case: str, dtype: str, mode: str, **measured: object) -> dict[str, Any]:
    """One measurement; ``measured`` is ``ms``, or ``value`` and ``unit``, and whatever explains it."""
    about = machine.machine(torch.get_num_threads())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{about['cpu']}"
    return {
        "op": op,
        "impl": impl,
        "case": case,
        "dtype": dtype,
        "mode": mode,
        **measured,
        "machine": f"{device}, {about['cores']} cores, {about['threads']} threads",
        "versions": machine.versions(),
        "commit": machine.commit(),
        "command": published(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
    }


def published(words: Iterable[str]) -> str:
    """A command as rows tell it: where a file lies on one machine says nothing on another, so of an absolute
    path its name is left.
    """
    return shlex.join(Path(word).name if os.path.isabs(word) else word for word in words)


def save(name: str, rows: list[dict[str, Any]]) -> None:
    """Write rows as ``results/<name>.jsonl``, in place of those of an earlier run, and say so."""
    write(name, rows)
    sys.stdout.write(f"{len(rows)} rows in {RESULTS.name}/{name}.jsonl\n")


def write(name: str, rows: list[dict[str, Any]]) -> None:
    """Write rows as ``results/<name>.jsonl``."""
    RESULTS.mkdir(exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (RESULTS / f"{name}.jsonl").write_text(text, "utf-8")
