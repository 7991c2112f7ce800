"""Losses of a language model token by token, and what is kept of them: enough for a paired test, no more."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from quatrain.lab.windows import Pieces, Tokens
from quatrain.model.lm import LanguageModel
from quatrain.model.mode import evaluating

STRETCHES = 256  # of a test text at most, whose mean losses are kept
_LOGITS = 2**20  # numbers that exist at a time

Floats = npt.NDArray[np.floating[Any]]


def token_losses(model: LanguageModel, tokens: Tensor) -> Tensor:
    """Nats of every token but the first of windows read from an empty state, ``(B, T + 1) -> (B, T)``.

    Cost: one forward pass; the logits of 2^20 / V tokens exist at a time.
    """
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    with torch.no_grad(), evaluating(model):
        hidden, _ = model.hidden(inputs, keep_state=False)
        flat, wanted = hidden.flatten(0, 1), targets.flatten()
        rows = max(1, _LOGITS // model.config.vocab)
        parts = [
            F.cross_entropy(F.linear(part, model.head_weight).float(), target, reduction="none")
            for part, target in zip(torch.split(flat, rows), torch.split(wanted, rows), strict=True)
        ]
    return torch.cat(parts).view(targets.shape)


def load(tokens: Tokens, starts: npt.NDArray[np.int64], length: int) -> Tensor:
    """Windows of ``length + 1`` tokens as int64 ``(len(starts), length + 1)``."""
    rows = [tokens[start : start + length + 1] for start in starts]
    return torch.from_numpy(np.stack(rows).astype(np.int64))


def piece_losses(model: LanguageModel, tokens: Tokens, pieces: Pieces, batch: int) -> Floats:
    """Mean nats of each piece ``(n,)`` in the order of the text, ``batch`` pieces read at a time."""
    found = np.zeros(len(pieces.starts))
    for length, chosen in _alike(pieces, batch):
        losses = token_losses(model, load(tokens, pieces.starts[chosen], length))
        found[chosen] = losses.double().mean(1).numpy()
    return found


def _alike(pieces: Pieces, batch: int) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """A length and up to ``batch`` indices of pieces that have it."""
    for length in np.unique(pieces.lengths)[::-1]:
        same = np.flatnonzero(pieces.lengths == length)
        for at in range(0, len(same), batch):
            yield int(length), same[at : at + batch]


def mean(losses: Floats, pieces: Pieces) -> float:
    """Mean nats over all tokens of the pieces."""
    return float(losses @ pieces.lengths / pieces.tokens)


def stretches(losses: Floats, pieces: Pieces) -> list[float]:
    """Mean nats of up to 256 stretches of neighbouring pieces, in the order of the text, rounded to 1e-5.

    Two models scored on the same pieces have the same stretches, so that their losses can be compared in
    pairs. A last piece that is shorter than the others is left out where there are others.
    """
    whole = losses[:-1] if len(losses) > 1 and pieces.lengths[-1] < pieces.lengths[0] else losses
    count = min(STRETCHES, len(whole))
    ends = np.arange(count + 1) * len(whole) // count
    return [round(float(whole[a:b].mean()), 5) for a, b in pairwise(ends.tolist())]
