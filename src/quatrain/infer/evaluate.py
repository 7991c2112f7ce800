"""Scoring a model on tokens: mean nats, perplexity, bits per byte."""

from dataclasses import dataclass
from math import exp, inf, log, nan
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quatrain.config.check import check
from quatrain.errors import DataError
from quatrain.model.backbone import State
from quatrain.model.lm import LanguageModel
from quatrain.model.loss import IGNORE
from quatrain.model.mode import evaluating

Tokens = npt.NDArray[np.integer[Any]]
Sizes = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
Window = tuple[
    int, int, int
]  # inputs tokens[start:end]; the targets of the first `skip` of them are not scored


@dataclass(frozen=True)
class Score:
    """How well a model predicts.

    Attributes:
        nats: mean of -ln p(token | context) over the scored tokens.
        tokens: number of scored tokens.
        total_tokens: number of tokens that could have been scored; more than ``tokens`` where a limit or
            sampling left some out.
        bytes: bytes that the scored tokens stand for; 0 where that is not known.
        characters: characters of UTF-8 that begin in them; 0 where that is not known.
        seconds: time it took.
        context: what each token was predicted from, in words.
    """

    nats: float
    tokens: int
    total_tokens: int
    bytes: int
    seconds: float
    context: str
    characters: int = 0

    @property
    def bits_per_byte(self) -> float:
        """nats * tokens / (ln 2 * bytes); NaN where the bytes are not known."""
        return self.nats * self.tokens / (log(2) * self.bytes) if self.bytes else nan

    @property
    def bits_per_character(self) -> float:
        """nats * tokens / (ln 2 * characters); NaN where the characters are not known."""
        return self.nats * self.tokens / (log(2) * self.characters) if self.characters else nan

    @property
    def perplexity(self) -> float:
        """exp(nats), inf where that overflows."""
        return exp(self.nats) if self.nats < 700 else inf


def evaluate(
    model: LanguageModel,
    tokens: Tokens,
    *,
    chunk: int = 1024,
    batch: int = 1,
    limit: float = inf,
    sizes: Sizes | None = None,
) -> Score:
    """Score every token but the first, reading with carried state, at any length.

    The text is cut into ``batch`` contiguous streams of equal length (the last may be shorter) that are read
    side by side, ``chunk`` tokens at a time; each stream starts from an empty state, so more streams are
    faster and score a little worse. With ``batch = 1`` every token is predicted from all before it.

    A model whose state grows with time (attention without a sliding window) would need memory and time
    without bound, and would be asked about positions it was never trained on. It is scored in windows of
    ``chunk`` tokens that overlap by half: of each window only the second half counts, so that every token
    sees at least ``chunk / 2`` tokens of context (and at most ``chunk``), except at the start of the text;
    ``batch`` windows are read at a time. Choose ``chunk`` as the training context. That costs twice the
    tokens. ``Score.context`` says which way was taken.

    Args:
        tokens: (N,) integers, N >= 2; a memory map is read piece by piece.
        chunk: tokens read at a time; at least 1, for growing states at least 2.
        batch: streams or windows side by side, 1 <= batch.
        limit: number of tokens to score at most; from the start of every stream, or whole windows spread
            evenly.
        sizes: bytes and characters of each token, two ``(V,)`` (`quatrain.data.tokenizer.measures`); absent:
            bytes are known where there are 256 tokens.

    Raises:
        DataError: tokens are no (N,) integers, or fewer than 2.
        ConfigError: chunk, batch or limit out of range.
        ShapeError: a token is outside the model's vocabulary.

    Cost: one forward pass over the scored tokens (two for windows); memory of batch * chunk tokens and the
    state.
    """
    _check(tokens, batch=batch, limit=limit)
    total = len(tokens) - 1
    start = perf_counter()
    if _state_grows(model):
        check(chunk >= 2, "chunk", chunk, "must be at least 2 for a model whose state grows with time")
        windows = _spread(_overlapping(total, chunk), limit)
        tally = _score_windows(model, tokens, windows, batch, sizes)
        context = (
            f"windows of {chunk} tokens; each token sees at least {chunk // 2} before it, or all there are"
        )
    else:
        check(chunk >= 1, "chunk", chunk, "must be at least 1")
        tally = _score_streams(model, tokens, chunk, min(batch, total), limit, sizes)
        context = (
            "all tokens before it"
            if batch == 1
            else f"all tokens before it in one of {min(batch, total)} streams"
        )
    return tally.score(total, perf_counter() - start, context)


def evaluate_windows(
    model: LanguageModel, tokens: Tokens, *, sequence: int, count: int, batch: int = 8, seed: int = 0
) -> Score:
    """Score ``count`` windows of ``sequence`` tokens, each from an empty state: fast, and bounded for every
    mixer.

    The windows do not overlap; which ones depends on the length of the text, ``sequence``, ``count`` and
    ``seed`` alone. If there are not more than ``count``, all are taken. Tokens at the start of a window have
    little context, so this scores worse than `evaluate`: compare it with itself only.

    Raises:
        DataError: tokens are no (N,) integers, or fewer than ``sequence + 1``.
        ConfigError: sequence, count, batch or seed out of range.
        ShapeError: a token is outside the model's vocabulary.
    """
    for name, value in (("sequence", sequence), ("count", count)):
        check(value >= 1, name, value, "must be at least 1")
    check(seed >= 0, "seed", seed, "must be 0 or more")
    _check(tokens, batch=batch, limit=inf)
    total = len(tokens) - 1
    if total < sequence:
        raise DataError(f"tokens: {len(tokens)}: must be at least sequence + 1 = {sequence + 1}")
    start = perf_counter()
    slots = total // sequence
    chosen = np.sort(np.random.default_rng(seed).permutation(slots)[:count])
    windows = [(int(slot) * sequence, (int(slot) + 1) * sequence, 0) for slot in chosen]
    tally = _score_windows(model, tokens, windows, batch, None)
    context = f"windows of {sequence} tokens, each from an empty state"
    return tally.score(total, perf_counter() - start, context)


def _check(tokens: Tokens, *, batch: int, limit: float) -> None:
    check(batch >= 1, "batch", batch, "must be at least 1")
    check(limit >= 1, "limit", limit, "must be at least 1; inf for all tokens")
    if tokens.ndim != 1 or tokens.dtype.kind not in "ui":
        raise DataError(f"tokens: shape {tokens.shape} of {tokens.dtype}: must be (N,) integers")
    if len(tokens) < 2:
        raise DataError(
            f"tokens: {len(tokens)}: must be at least 2, one to predict and one to predict it from"
        )


def _state_grows(model: LanguageModel) -> bool:
    return model.state_bytes(1, 2**41) > model.state_bytes(1, 2**40)


class _Tally:
    """Sums over scored tokens: nats, and what the tokens stand for."""

    def __init__(self, model: LanguageModel, sizes: Sizes | None) -> None:
        self.nats, self.count, self.bytes, self.characters = 0.0, 0, 0, 0
        self._sizes = sizes
        self._is_bytes = sizes is None and model.config.vocab == 256

    def add(self, targets: Tensor, mean: Tensor) -> None:
        """A batch whose mean loss is ``mean``; -100 among the targets is not scored."""
        valid = targets[targets != IGNORE]
        self.nats += mean.item() * len(valid)
        self.count += len(valid)
        if self._sizes is not None:
            sizes, starts = self._sizes
            self.bytes += int(sizes[valid.numpy()].sum())
            self.characters += int(starts[valid.numpy()].sum())

    def score(self, total: int, seconds: float, context: str) -> Score:
        known = self.count if self._is_bytes else self.bytes
        return Score(self.nats / self.count, self.count, total, known, seconds, context, self.characters)


def _score_streams(
    model: LanguageModel, tokens: Tokens, chunk: int, batch: int, limit: float, sizes: Sizes | None
) -> _Tally:
    """``batch`` streams with carried state."""
    total = len(tokens) - 1
    length = -(-total // batch)
    starts = range(0, total, length)  # rounding up can leave fewer streams than asked for
    read = length if limit == inf else min(length, max(1, int(limit) // len(starts)))
    tally = _Tally(model, sizes)
    state: State | None = None
    with evaluating(model), torch.no_grad():
        for at in range(0, read, chunk):
            end = min(at + chunk, read)
            windows = [(start + at, min(start + end, total), 0) for start in starts]
            inputs, targets = _load(tokens, windows, end - at)
            mean, state = model.loss(inputs.to(model.device), targets.to(model.device), state)
            tally.add(targets, mean)
    return tally


def _score_windows(
    model: LanguageModel, tokens: Tokens, windows: list[Window], batch: int, sizes: Sizes | None
) -> _Tally:
    """Windows that each start from an empty state."""
    tally = _Tally(model, sizes)
    with evaluating(model), torch.no_grad():
        for at in range(0, len(windows), batch):
            rows = windows[at : at + batch]
            inputs, targets = _load(tokens, rows, max(end - start for start, end, _ in rows))
            mean, _ = model.loss(inputs.to(model.device), targets.to(model.device), keep_state=False)
            tally.add(targets, mean)
    return tally


def _overlapping(total: int, chunk: int) -> list[Window]:
    """Windows of at most ``chunk`` inputs that score each of ``total`` targets once, half a window each."""
    windows = [(0, min(chunk, total), 0)]
    half = chunk - chunk // 2
    for scored in range(chunk, total, half):
        end = min(scored + half, total)
        windows.append((scored - chunk // 2, end, chunk // 2))
    return windows


def _spread(windows: list[Window], limit: float) -> list[Window]:
    """As many windows, at even distances, as score no more than ``limit`` tokens; at least one."""
    kept = windows
    share = len(windows)
    while share > 1 and sum(end - start - skip for start, end, skip in kept) > limit:
        total = sum(end - start - skip for start, end, skip in kept)
        share = max(1, min(share - 1, int(share * limit / total)))
        kept = [windows[index * len(windows) // share] for index in range(share)]
    return kept


def _load(tokens: Tokens, windows: list[Window], width: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets ``(len(windows), width)``; behind a short window are zeros that are not scored."""
    inputs = torch.zeros(len(windows), width, dtype=torch.int64)
    targets = torch.full_like(inputs, IGNORE)
    for row, (start, end, skip) in enumerate(windows):
        size = end - start
        if size <= 0:  # a stream that has come to its end
            continue
        part = torch.from_numpy(tokens[start : end + 1].astype(np.int64))
        inputs[row, :size] = part[:-1]
        targets[row, skip:size] = part[1 + skip :]
    return inputs, targets
