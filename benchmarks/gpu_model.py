"""Time what surrounds the scan on a GPU, whole models, and S6 beside attention; rows go to a JSON Lines file.

    python benchmarks/gpu_model.py --out benchmarks/results/gpu_model.jsonl --commit HASH [--parts ops ...]

Results are checked first (`gpu_s6.check`). Ops and blocks: medians of replayed CUDA graphs, several calls in
a graph where one is short. Models: whole training steps (forward, backward, fused AdamW), wall clock.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from _gpu_crossover import crossover
from _gpu_ops import block, ops
from _gpu_training import long, models, prefill
from gpu_s6 import check

PARTS = {
    "ops": ops,
    "block": block,
    "models": models,
    "long": long,
    "prefill": prefill,
    "crossover": crossover,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commit", required=True, help="of the code that runs")
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=tuple(PARTS))
    args = parser.parse_args()
    check()
    common = {
        "machine": torch.cuda.get_device_name(),
        "versions": f"torch {torch.__version__}, CUDA {torch.version.cuda}",
        "commit": args.commit,
        "command": " ".join(sys.argv),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for part in args.parts:
        rows = PARTS[part]()
        with args.out.open("a") as file:
            file.writelines(json.dumps({**one, **common}) + "\n" for one in rows)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
