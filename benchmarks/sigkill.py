"""Kill a training run with SIGKILL at random moments until it is done; compare it with an uninterrupted one.

The run saves after every second step, so most kills hit a step, a checkpoint being written, or the start.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from _rows import row, save

from quatrain import checkpoint, records

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom. "
SETTINGS = (
    *("--mixer", "s6 lstm attention", "--model.width", "32", "--model.layers", "3", "--model.dropout", "0.1"),
    *("--train.sequence", "32", "--train.batch-tokens", "128", "--train.save-every", "2"),
    *("--train.eval-every", "10", "--train.eval-tokens", "512"),
)


def main() -> None:
    """Run until ``--kills`` kills have been survived, then to the end, and compare bit for bit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kills, same = _survive(Path(folder), asked.kills, asked.steps, random.Random(asked.seed))
    verdict = "bit for bit the uninterrupted run" if same else "NOT the uninterrupted run"
    sys.stdout.write(f"{kills} kills survived of {kills}, {asked.steps} steps; {verdict}\n")
    fact = {"value": kills if same else 0, "unit": f"SIGKILLs survived of {kills}"}
    save("sigkill", [row("train", "quatrain", "s6 lstm attention", "float32", "training", **fact)])
    sys.exit(0 if same else 1)


def _survive(folder: Path, wanted: int, steps: int, drawn: random.Random) -> tuple[int, bool]:
    text = folder / "text.txt"
    text.write_text(TEXT * 500)
    command = [sys.executable, "-m", "quatrain", "train", str(text), *SETTINGS, "--train.steps", str(steps)]
    command += ["--threads", "1", "--out"]
    seconds = []
    for _ in range(2):  # the second time the run is finished already: what is left is the start
        began = time.perf_counter()
        subprocess.run([*command, str(folder / "whole")], check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    whole, start = seconds
    longest = 2 * start + 2 * whole / wanted
    kills = 0
    while True:
        with subprocess.Popen(
            [*command, str(folder / "killed")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            if kills < wanted:
                try:
                    process.wait(timeout=drawn.uniform(0, longest))
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
        if process.returncode == 0:
            return kills, _numbers(folder / "killed") == _numbers(folder / "whole")
        assert process.returncode == -signal.SIGKILL, process.returncode
        kills += 1


def _numbers(out: Path) -> tuple[list[object], list[object]]:
    losses = [
        (row["kind"], row["step"], row.get("loss"), row.get("nats"))
        for row in records.read(out / "records.jsonl")
        if row["kind"] in ("step", "eval")
    ]
    newest = checkpoint.latest(out)
    assert newest is not None
    saved = checkpoint.read(newest)
    tensors = {**saved.tensors("model"), **saved.tensors("optimizer")}
    bits = [(name, value.view(torch.uint8).tolist()) for name, value in sorted(_flat(tensors).items())]
    return losses, list(bits)


def _flat(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.contiguous().reshape(-1) for name, value in tensors.items()}


if __name__ == "__main__":
    main()
