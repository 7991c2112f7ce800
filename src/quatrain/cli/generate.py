"""``quatrain generate``: let a trained model continue a text."""

import os
import sys
from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING

from quatrain.cli._display import size
from quatrain.cli._flags import DEVICE, Option, Parsed, Surface, parse
from quatrain.config.check import check

if TYPE_CHECKING:
    from quatrain.infer.generate import Stats

SURFACE = Surface(
    command="generate",
    help=(
        "Continue a text. The text streams to stdout; speed and state size go to stderr. A long prompt is\n"
        "read in chunks, so that the memory of recurrent models doesn't grow with it."
    ),
    options=(
        Option(
            "checkpoint", "directory of a run (its newest checkpoint) or of one checkpoint", required=True
        ),
        Option("--prompt", "text to continue; - reads it from stdin", "TEXT", required=True),
        Option("--max-tokens", "tokens to write (default: 256)", "N", int, 256),
        Option(
            "--temperature", "above 1 bolder, below 1 safer, 0 the likeliest (default: 1)", "X", float, 1.0
        ),
        Option("--top-k", "draw among the K likeliest tokens (default: inf)", "K", float, inf),
        Option("--top-p", "draw among the likeliest that hold a share P (default: 1)", "P", float, 1.0),
        Option(
            "--min-p", "draw among those P times as likely as the likeliest (default: 0)", "P", float, 0.0
        ),
        Option("--seed", "of the draw; the same seed gives the same text (default: 0)", "N", int, 0),
        Option("--stop", "end before this text; may be given several times", "TEXT", many=True),
        Option("--threads", "CPU threads (default: all)", "N", int, 0),
        DEVICE,
    ),
    examples=(
        "quatrain generate runs/hybrid --prompt 'To be' --max-tokens 400 --temperature 0.8",
        "quatrain generate runs/hybrid --prompt - --stop THE --seed 7 < book.txt",
    ),
)


def run(args: Sequence[str]) -> int:
    parsed = parse(SURFACE, args)
    parsed.raise_problems()
    from quatrain.checkpoint import load_language_model
    from quatrain.infer.generate import generate
    from quatrain.infer.sample import Sampling
    from quatrain.model.device import choose
    from quatrain.tasks.spelling import tokenizer_of

    sampling = Sampling(
        temperature=parsed["temperature"],
        top_k=parsed["top_k"],
        top_p=parsed["top_p"],
        min_p=parsed["min_p"],
        seed=parsed["seed"],
    )
    set_threads(parsed)
    model = load_language_model(parsed["checkpoint"], choose(parsed["device"]))
    prompt = sys.stdin.buffer.read() if parsed["prompt"] == "-" else os.fsencode(parsed["prompt"])
    stats = None
    for piece in generate(
        model,
        prompt,
        max_tokens=parsed["max_tokens"],
        sampling=sampling,
        stop=parsed["stop"],
        tokenizer=tokenizer_of(parsed["checkpoint"]),
    ):
        sys.stdout.write(piece.text)
        sys.stdout.flush()
        stats = piece.stats
    sys.stdout.write("\n")
    sys.stdout.flush()
    if stats:
        sys.stderr.write(_summary(stats))
    return 0


def set_threads(parsed: Parsed) -> None:
    """Give torch ``--threads``, where it was given."""
    import torch

    if "threads" in parsed.given:
        check(parsed["threads"] >= 1, "--threads", parsed["threads"], "must be at least 1")
        torch.set_num_threads(parsed["threads"])


def _summary(stats: "Stats") -> str:
    ended = {"length": "as many as asked for", "stop": "up to a stop text"}[stats.reason]
    return (
        f"prompt: {stats.prompt_tokens:,} tokens, {stats.prefill_tokens_per_second:,.0f} tokens/s\n"
        f"text:   {stats.new_tokens:,} tokens ({ended}), {stats.tokens_per_second:,.0f} tokens/s\n"
        f"state:  {size(stats.state_bytes)}\n"
    )
