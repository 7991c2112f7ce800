"""Loss against position in the context: who uses the far past.

Windows several times as long as those of training are read from an empty state. Two things come out of it.
The mean loss by position tells how a model fares where it was never trained. And since the tokens at
different positions are different text, the last half a training length of each window is read a second time,
with no more before it than in training: the difference on the same tokens is what the far past brings.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
import torch

from quatrain.lab.config import CompareConfig, for_text
from quatrain.lab.losses import load, token_losses
from quatrain.lab.plan import SWEEP_SHARE, Plan
from quatrain.lab.windows import Tokens
from quatrain.model.config import ModelConfig
from quatrain.model.lm import LanguageModel

Row = dict[str, Any]
TIMES = 4  # the training length, unless --context says more
_MOST = 512  # windows: beyond, only the digits get finer
_Z95 = NormalDist().inv_cdf(0.975)


def window(config: CompareConfig, tokens: Tokens) -> int:
    """Length of the windows: what is asked for, or what the test part has if that is less."""
    config = for_text(config)
    return min(config.context or TIMES * config.sequence, len(tokens) - 1)


def missing(config: CompareConfig, tokens: Tokens) -> str:
    """Why the sweep is left out or shorter than asked; empty where it is neither."""
    config = for_text(config)
    length, asked = window(config, tokens), config.context or TIMES * config.sequence
    if length < 2 * config.sequence and asked > length:
        need = 2 * config.sequence + 1
        return f"no loss by position in long contexts: it needs {need} tokens of test text, not {len(tokens)}"
    if length < config.context:
        return f"contexts end at {length} tokens, not {config.context}: the test part has no more"
    return ""


def edges(length: int, sequence: int) -> list[int]:
    """Ends of the buckets of positions: 16, 32, 64, then each sqrt(2) times the last; ``sequence`` and
    ``length`` are among them, ends close to either are not. Starts with 0.
    """
    grown = [16, 32, *(round(64 * 2 ** (half / 2)) for half in range(2 * length.bit_length()))]
    fixed = (sequence, length)
    apart = [end for end in grown if end < length and all(abs(end - at) > 0.15 * at for at in fixed)]
    return sorted({0, *apart, min(sequence, length), length})


def count(config: CompareConfig, plan: Plan, models: Mapping[str, ModelConfig], tokens: Tokens) -> int:
    """How many windows all models can read in their share of the evaluation; the same for each.

    Time per token is the calibrated one times the growth of a token's operations with the context.
    """
    config = for_text(config)
    length = window(config, tokens)
    seconds = 0.0
    for mixer, model in models.items():
        with torch.device("meta"):
            shape = LanguageModel(model)
        growth = shape.flops_per_token(length) / shape.flops_per_token(config.sequence)
        seconds += plan.speed(mixer).forward_seconds * max(1.0, growth) * (length + config.sequence)
    allowed = SWEEP_SHARE * config.evaluation_seconds / seconds if seconds > 0 else _MOST
    return int(max(2, min(_MOST, allowed, len(tokens) - length)))


def sweep(
    model: LanguageModel, tokens: Tokens, length: int, sequence: int, windows: int
) -> list[tuple[str, Row]]:
    """Rows "position" (mean loss by bucket of positions) and "far" (what the far past brings).

    Args:
        model: trained on windows of ``sequence`` tokens.
        tokens: the text, at least ``length + 1`` tokens.
        length: of a window, at least ``2 * sequence``.
        windows: how many, at even distances; they overlap where the text is short.

    Cost: ``windows * (length + sequence)`` tokens forward.
    """
    starts = np.unique(np.linspace(0, len(tokens) - 1 - length, windows).astype(np.int64))
    tail = max(1, sequence // 2)
    sums, short, long = np.zeros(length), [], []
    rows = max(1, 2048 // length)
    for at in range(0, len(starts), rows):
        block = load(tokens, starts[at : at + rows], length)
        losses = token_losses(model, block).double()
        sums += losses.sum(0).numpy()
        long += losses[:, -tail:].mean(1).tolist()
    for at in range(0, len(starts), max(1, 2048 // sequence)):
        ends = starts[at : at + max(1, 2048 // sequence)] + length - sequence
        short += token_losses(model, load(tokens, ends, sequence)).double()[:, -tail:].mean(1).tolist()
    means = sums / len(starts)
    found: list[tuple[str, Row]] = [
        ("position", {"from": low, "to": high, "nats": float(means[low:high].mean()),
                      "tokens": (high - low) * len(starts)})
        for low, high in pairwise(edges(length, sequence))
    ]  # fmt: skip
    return [*found, ("far", _gain(short, long) | {"sequence": sequence, "length": length, "tail": tail})]


def _gain(short: Sequence[float], long: Sequence[float]) -> Row:
    """Mean loss after a training length and after a whole window, and their difference with its 95 %
    half-width over windows (absent for a single one).
    """
    gains = np.subtract(short, long)
    windows = len(gains)
    half = _Z95 * float(gains.std(ddof=1)) / sqrt(windows) if windows > 1 else None
    means = {"short_nats": float(np.mean(short)), "long_nats": float(np.mean(long))}
    return means | {"gain": float(gains.mean()), "half": half, "windows": windows}
