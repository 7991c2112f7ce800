"""Run tasks of the papers one after the other on a GPU and take what is finished into the project.

    python benchmarks/paper_table.py parity mqar --data DIR [--minutes 8] [--runs DIR] [--ship]

Each task is a `quatrain reproduce TASK --reduced` with a limit; where it is reached, the run is saved and the
same call goes on with it later. Finished runs go through `benchmarks/paper.py`. ``--data``: a folder with
mnist/mnist_train.npz, text/ and audio/fsdd_train_10_per_pair.npz.
"""

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path

FILES = {
    "sequential_mnist": "mnist/mnist_train.npz",
    "wikitext2": "text",
    "raw_audio": "audio/fsdd_train_10_per_pair.npz",
}
GRACE = 30  # seconds to save in


def main() -> None:
    """Run them; exit status 1 where one did not end."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--minutes", type=float, default=8.0, help="for all of them")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--ship", action="store_true", help="also into the records that the package brings")
    args = parser.parse_args()
    until, left = time.monotonic() + 60 * args.minutes, []
    for task in args.tasks:
        seconds = until - time.monotonic()
        if seconds < 10 or not run(task, args, seconds):
            left.append(task)
    if left:
        sys.stdout.write(f"not finished: {', '.join(left)}\n")
        sys.exit(1)


def run(task: str, args: argparse.Namespace, seconds: float) -> bool:
    """Whether the task came to its end; then its rows are written."""
    out, began = args.runs / f"paper-{task}", time.monotonic()
    command = [sys.executable, "-m", "quatrain", "reproduce", task, "--reduced", "--device", args.device]
    command += ["--out", str(out)]
    if task in FILES:
        command += ["--data", str(args.data / FILES[task])]
    args.runs.mkdir(parents=True, exist_ok=True)
    with (args.runs / f"paper-{task}.log").open("a") as log:
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            status = child.wait(max(1.0, seconds - GRACE))
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(GRACE)
            except subprocess.TimeoutExpired:
                child.kill()
            status = None
    took = f"{task}: {time.monotonic() - began:.0f} s"
    sys.stdout.write(f"{took}{'' if status == 0 else f', not finished, status {status}'}\n")
    if status is None or not (out / "records.jsonl").exists():
        sys.stdout.write((args.runs / f"paper-{task}.log").read_text("utf-8")[-2000:])
        return False
    script = Path(__file__).with_name("paper.py")
    subprocess.run([sys.executable, str(script), str(out), *["--ship"] * args.ship], check=False)
    return status == 0


if __name__ == "__main__":
    main()
