"""``quatrain eval``: score a trained model on data, beside what is trivial."""

import sys
from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING

from quatrain.cli._flags import DEVICE, Option, Surface, parse
from quatrain.cli.generate import set_threads

if TYPE_CHECKING:
    from quatrain.infer.judge import Evaluation

PARTS = ("all", "train", "valid", "test")

SURFACE = Surface(
    command="eval",
    help=(
        "Score a language model on a text of any length, with carried state: nats per token, bits per byte,\n"
        "perplexity. Attention, whose state grows, reads overlapping windows instead; the result says so.\n"
        "A model of another task is scored by its metrics, beside its trivial baselines."
    ),
    options=(
        Option(
            "checkpoint", "directory of a run (its newest checkpoint) or of one checkpoint", required=True
        ),
        Option("data", "a file, directory, glob, - for stdin, or python (default: the run's own text)"),
        Option("--part", "all, train, valid or test (default: all of DATA, test of the run's own text)"),
        Option("--chunk", "tokens read at a time; a window of attention (default: as in training)", "N", int),
        Option("--streams", "stretches of the text read side by side: faster (default: 1)", "N", int, 1),
        Option("--limit", "most tokens to score (default: inf)", "N", float, inf),
        Option("--threads", "CPU threads (default: all)", "N", int, 0),
        DEVICE,
    ),
    examples=(
        "quatrain eval runs/hybrid",
        "quatrain eval runs/hybrid other.txt --streams 8",
        "quatrain eval runs/hybrid/checkpoints/step-00001000 book.txt --part test",
        "quatrain eval runs/kinds held-out.jsonl",
    ),
)


def run(args: Sequence[str]) -> int:
    parsed = parse(SURFACE, args)
    if parsed["part"] and parsed["part"] not in PARTS:
        parsed.problems.append(f"--part = {parsed['part']!r}: must be one of {', '.join(PARTS)}")
    parsed.raise_problems()
    from quatrain.infer.judge import evaluate

    set_threads(parsed)
    found = evaluate(
        parsed["checkpoint"],
        parsed["data"] or None,
        part=parsed["part"] or None,
        chunk=parsed["chunk"] if "chunk" in parsed.given else None,
        streams=parsed["streams"],
        limit=parsed["limit"],
        device=parsed["device"],
    )
    sys.stdout.write(_text(found) if found.task == "lm" else _table(found))
    return 0


def _table(found: "Evaluation") -> str:
    from quatrain.data.task import TASKS

    task = TASKS[found.task]
    noun = "sequences" if task.labelled else "windows"
    lines = [
        f"data:       {found.data}; {found.scored:,} of {found.total:,} {noun} scored",
        f"loss:       {found.loss:.4f} {task.unit}",
        f"{'':<30}{found.pattern:>16}" + "".join(f"{name:>16}" for name in found.baselines),
    ]
    for metric in task.metrics:
        values = [found.metrics[metric.name], *(each[metric.name] for each in found.baselines.values())]
        shown = [f"{value:.2%}" if metric.percent else f"{value:.4f}" for value in values]
        lines.append(f"{metric.says:<30}" + "".join(f"{value:>16}" for value in shown))
    lines.append(f"speed:      {_rate(found)} steps/s")
    return "".join(f"{line}\n" for line in lines)


def _text(found: "Evaluation") -> str:
    metrics = found.metrics
    bits = [
        f"{metrics[key]:.4f} per {unit}"
        for key, unit in (("bits_per_byte", "byte"), ("bits_per_character", "character"))
        if key in metrics
    ]
    lines = [
        f"text:       {found.data}; {found.scored:,} of {found.total:,} tokens scored",
        f"context:    {found.context}",
        f"loss:       {found.loss:.4f} nats per token",
        f"bits:       {', '.join(bits)}" if bits else "",
        f"perplexity: {metrics['perplexity']:.4g} per token",
        f"speed:      {_rate(found)} tokens/s",
    ]
    return "".join(f"{line}\n" for line in lines if line)


def _rate(found: "Evaluation") -> str:
    return f"{found.steps / found.seconds if found.seconds > 0 else 0:,.0f}"
