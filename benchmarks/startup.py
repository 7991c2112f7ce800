"""Seconds until ``import quatrain`` and ``quatrain --help`` are done, as whole processes, median of 20."""

import statistics
import subprocess
import sys
import time

from _rows import row, save

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import quatrain": ["-c", "import quatrain"],
    "quatrain --help": ["-m", "quatrain", "--help"],
    "quatrain train --help": ["-m", "quatrain", "train", "--help"],
}


def main() -> None:
    """Time every command, alternating, and keep the medians."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(21):
        for name, arguments in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - began)
    rows = []
    for name, times in seconds.items():
        median = statistics.median(times[1:])
        sys.stdout.write(f"{name:24} {1000 * median:7.1f} ms\n")
        rows.append(row("startup", "quatrain", name, "", "start", ms=round(1000 * median, 1)))
    save("startup", rows)


if __name__ == "__main__":
    main()
