"""Memory of preparing a series, for a generated CSV of any size.

    python benchmarks/memory.py ROWS FOLDER

200 million rows are 4 GB. Prints the size, the peak of resident memory before and after, and the time.
"""

import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

from quatrain.data.config import DataConfig
from quatrain.data.prepare import prepare

BLOCK = 100_000


def main() -> int:
    """Write the table, prepare it, say what that took."""
    if len(sys.argv) != 3:
        sys.stderr.write(__doc__ or "")
        return 2
    rows, folder = int(sys.argv[1]), Path(tempfile.mkdtemp(dir=sys.argv[2]))
    try:
        with open(folder / "big.csv", "w") as file:
            file.write("time,a,b\n")
            for at in range(0, rows, BLOCK):
                numbers = range(at, min(rows, at + BLOCK))
                file.write("".join(f"{k},{k * 7919 % 1000 / 10},{k * 31 % 977 / 7:.4f}\n" for k in numbers))
        size = (folder / "big.csv").stat().st_size
        before, began = _peak(), time.perf_counter()
        prepare(DataConfig(source=str(folder / "big.csv")), folder / "out")
        took = time.perf_counter() - began
        sys.stdout.write(
            f"{size / 2**20:.0f} MiB, {rows} rows: {before:.0f} -> {_peak():.0f} MiB, {took:.0f} s\n"
        )
    finally:
        shutil.rmtree(folder)
    return 0


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    raise SystemExit(main())
