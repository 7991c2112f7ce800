"""What counting achieves: models without training that any trained model has to beat."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np
import numpy.typing as npt

from quatrain.config.check import check
from quatrain.errors import DataError
from quatrain.lab.windows import Pieces, Tokens

Keys = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]

HIGHEST_ORDER = 7  # tried at most; nobody gains from more on a few megabytes of text
COUNTED = 16_000_000  # tokens counted at most: sorting them takes about a second per order


@dataclass(frozen=True)
class Baseline:
    """A trivial model and its mean losses in nats per token. ``order`` tokens of context are looked at."""

    name: str
    order: int
    valid: float
    test: float


class Counts:
    """How often each run of ``order + 1`` tokens occurs, as sorted 64-bit keys: earlier tokens in higher
    bits.

    Cost: one sort of the tokens. Raises ConfigError where ``order + 1`` tokens do not fit into 64 bits.
    """

    def __init__(self, tokens: Tokens, order: int, bits: int) -> None:
        check((order + 1) * bits <= 64, "order", order, f"{order + 1} tokens of {bits} bits exceed 64 bits")
        self.order, self.bits = order, bits
        runs = keys(tokens, np.arange(order, len(tokens)), order, bits)
        runs.sort()
        first = np.flatnonzero(np.concatenate(([True], runs[1:] != runs[:-1])))
        self._runs = runs[first]
        self._before = np.append(first, len(runs))  # occurrences of all smaller keys

    def of(self, run: Keys) -> tuple[Floats, Floats, Floats]:
        """For each run its own count, that of its context (without the last token), and the number of
        different tokens that follow that context.
        """
        bits = np.uint64(self.bits)
        at = np.searchsorted(self._runs, run)
        inside = np.minimum(at, len(self._runs) - 1)
        own = np.where(self._runs[inside] == run, np.diff(self._before)[inside], 0)
        context = (run >> bits) << bits
        low = np.searchsorted(self._runs, context)
        high = np.searchsorted(self._runs, context | ((np.uint64(1) << bits) - np.uint64(1)), side="right")
        n, distinct = self._before[high] - self._before[low], high - low
        return own.astype(np.float64), n.astype(np.float64), distinct.astype(np.float64)


def keys(tokens: Tokens, positions: npt.NDArray[np.int64], order: int, bits: int) -> Keys:
    """The tokens from ``order`` before each position up to it, packed into 64 bits, ``(len(positions),)``."""
    packed = np.zeros(len(positions), dtype=np.uint64)
    for back in range(order, -1, -1):
        packed = (packed << np.uint64(bits)) | tokens[positions - back].astype(np.uint64)
    return packed


class Interpolated:
    """Probabilities of tokens by interpolated counts, for orders 0, 1, 2, ... one after the other.

    Witten and Bell (1991), as in Chen and Goodman (1998), with n the count of a context c, u the number of
    different tokens seen after it and c' the context without its oldest token:
    ``p(w | c) = (n(c w) + u p(w | c')) / (n + u)``, and 1 / V below order 0. Where c was never seen this is
    p(w | c').

    ``texts`` are pairs of a text and pieces of it; each predicted token is judged by at most as much context
    as its piece gives, as the models are.
    """

    def __init__(self, train: Tokens, vocab: int, texts: list[tuple[Tokens, Pieces]]) -> None:
        if len(train) < 1:
            raise DataError("training part: is empty; nothing can be counted")
        self._train, self._vocab = np.asarray(train[:COUNTED]), vocab
        self._bits = max(1, (vocab - 1).bit_length())
        self._texts = [(np.asarray(text), *pieces.positions()) for text, pieces in texts]

    def losses(self, highest: int = HIGHEST_ORDER) -> Iterator[tuple[float, ...]]:
        """Mean nats per token of each text, for order 0, then 1, and so on up to ``highest``, or as far as 64
        bits and the training text reach. Cost per order: one sort of the training text, asked for as it is
        needed.
        """
        p = [np.full(len(positions), 1 / self._vocab) for _, positions, _ in self._texts]
        reach = min(highest, 64 // self._bits - 1, len(self._train) - 1)
        for order in range(reach + 1):
            counts = Counts(self._train, order, self._bits)
            for index, (text, positions, context) in enumerate(self._texts):
                deep = context >= order  # the first tokens of a window keep the lower order
                own, n, u = counts.of(keys(text, positions[deep], order, self._bits))
                seen = np.maximum(n + u, 1)
                p[index][deep] = np.where(n > 0, (own + u * p[index][deep]) / seen, p[index][deep])
            yield tuple(float(-np.log(each).mean()) for each in p)


def baselines(
    train: Tokens, valid: tuple[Tokens, Pieces], test: tuple[Tokens, Pieces], vocab: int
) -> list[Baseline]:
    """Uniform, unigram and Markov baselines, fitted on the training tokens (at most `COUNTED` of them).

    The order of the Markov chain is the one with the lowest validation loss: orders are tried from 1 upwards
    until one is worse than the one before. Every token is predicted from its own piece alone. Raises
    DataError for an empty training part. Cost: about a second per order and ten million tokens.
    """
    found = [Baseline("uniform", 0, log(vocab), log(vocab))]
    best: Baseline | None = None
    for order, (valid_loss, test_loss) in enumerate(Interpolated(train, vocab, [valid, test]).losses()):
        if order == 0:
            found.append(Baseline("unigram", 0, valid_loss, test_loss))
        elif best is None or valid_loss < best.valid:
            best = Baseline(f"markov-{order}", order, valid_loss, test_loss)
        else:
            break
    return found if best is None else [*found, best]


def fitted_on(train: Tokens) -> dict[str, Any]:
    """What the counts were taken from, for the record."""
    return {"counted_tokens": min(len(train), COUNTED), "smoothing": "interpolated Witten-Bell"}
