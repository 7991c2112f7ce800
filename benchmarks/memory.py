"""Memory and time of preparing a generated file of any size: a table of readings, or a text.

    python benchmarks/memory.py csv|text MEBIBYTES FOLDER [--append FILE]

Prints a row as JSON: size, peak of resident memory before and after, seconds, MB/s; with --append it goes to
the end of a JSON Lines file as well. FOLDER needs room for the file and for what is made of it.
"""

import json
import os
import resource
import shutil
import sys
import tempfile
import time
from operator import add
from pathlib import Path

from quatrain.data.config import DataConfig
from quatrain.data.prepare import prepare

BLOCK = 100_000  # rows written at a time
TEXT = "".join(f"{k * 7919 % 1000} men and {k * 31 % 977} horses went up the hill. " for k in range(25_000))


def write_csv(path: Path, size: int) -> None:
    """A column of times that rises, and two of numbers."""
    tails = [f",{k * 7919 % 1000 / 10},{k * 31 % 977 / 7:.4f}\n" for k in range(BLOCK)]
    with open(path, "w") as file:
        file.write("time,a,b\n")
        at = 0
        while file.tell() < size:
            file.write("".join(map(add, map(str, range(at, at + BLOCK)), tails)))
            at += BLOCK


def write_text(path: Path, size: int) -> None:
    """Sentences without a line's end: the hard case for whoever reads by lines."""
    with open(path, "w") as file:
        while file.tell() < size:
            file.write(TEXT)


def main() -> int:
    """Write the file, prepare it, say what that took."""
    if len(sys.argv) not in (4, 6) or sys.argv[1] not in ("csv", "text"):
        sys.stderr.write(__doc__ or "")
        return 2
    kind, size, folder = sys.argv[1], int(sys.argv[2]) << 20, Path(tempfile.mkdtemp(dir=sys.argv[3]))
    try:
        path = folder / ("big.csv" if kind == "csv" else "big.txt")
        (write_csv if kind == "csv" else write_text)(path, size)
        found = measured(kind, path, folder / "out")
    finally:
        shutil.rmtree(folder)
    from _rows import row  # brings torch, which would count as memory before

    line = json.dumps(row("prepare", "quatrain", f"{kind} {sys.argv[2]} MiB", "", "", **found))
    sys.stdout.write(line + "\n")
    if len(sys.argv) == 6:
        with open(sys.argv[5], "a") as file:
            file.write(line + "\n")
    return 0


def measured(kind: str, path: Path, out: Path) -> dict[str, object]:
    """One preparation."""
    before, began, ran = peak(), time.perf_counter(), time.process_time()
    made = prepare(DataConfig(source=str(path)), out)
    took, busy = time.perf_counter() - began, time.process_time() - ran
    bytes_read = path.stat().st_size
    return {
        "value": round(bytes_read / took / 1e6, 1),
        "unit": "MB/s",
        "bytes": bytes_read,
        "steps": sum(made.splits.values()),
        "peak_before_mib": round(before, 1),
        "peak_after_mib": round(peak(), 1),
        "seconds": round(took, 1),
        "cpu_seconds": round(busy, 1),
        "load": round(os.getloadavg()[0], 1),
    }


def peak() -> float:
    """Largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(main())
