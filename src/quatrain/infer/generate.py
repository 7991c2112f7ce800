"""Continuing a prompt, token by token, with the state as the only memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import torch
from torch import Tensor

from quatrain.config.check import check
from quatrain.data.tokenizer import Bytes, Tokenizer
from quatrain.errors import DataError, OutOfMemoryError, StateError, ran_out_of_memory, shortage
from quatrain.infer._decoder import Decoder
from quatrain.infer._text import StopStrings, Utf8Stream
from quatrain.infer.sample import Sampler, Sampling
from quatrain.model.backbone import State
from quatrain.model.lm import LanguageModel
from quatrain.model.memory import release
from quatrain.model.mode import evaluating


@dataclass(frozen=True)
class Stats:
    """What a generation cost. Time that the caller spends between pieces is not counted.

    Attributes:
        prompt_tokens: tokens read.
        new_tokens: tokens drawn, those of a stop string included.
        prefill_seconds: reading the prompt, up to the logits of the first new token.
        decode_seconds: everything after that.
        state_bytes: live bytes of the state at the end.
        reason: "length" (``max_tokens`` were drawn) or "stop" (a stop string appeared).
    """

    prompt_tokens: int
    new_tokens: int
    prefill_seconds: float
    decode_seconds: float
    state_bytes: int
    reason: Literal["length", "stop"]

    @property
    def prefill_tokens_per_second(self) -> float:
        """Rate at which the prompt was read."""
        return self.prompt_tokens / self.prefill_seconds if self.prefill_seconds > 0 else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Rate of the tokens after the first, which the prefill has paid for; 0 if there was one only."""
        return (self.new_tokens - 1) / self.decode_seconds if self.decode_seconds > 0 else 0.0


@dataclass(frozen=True)
class Piece:
    """Some more text. ``stats`` are there in the last piece only, whose text may be empty."""

    text: str
    stats: Stats | None = None


class Continuation:
    """An endless iterator of new tokens after a prompt, for any vocabulary.

    The prompt is read in chunks of ``chunk`` tokens with carried state, and only its last position gets
    logits: for recurrent mixers memory does not grow with the prompt, for attention it is the cache of keys
    and values alone. Where memory runs out, smaller chunks are tried. The model has to be in evaluation mode,
    and its parameters must not change. Counts and times so far are in ``prompt_tokens``, ``new_tokens``,
    ``prefill_seconds``, ``decode_seconds``.

    Raises:
        DataError: the prompt is empty.
        ShapeError: a token of the prompt is outside the vocabulary.
        OutOfMemoryError: the prompt's state does not fit; says how many of its tokens do.
        ConfigError: chunk < 1.
    """

    def __init__(
        self, model: LanguageModel, prompt: Sequence[int], sampling: Sampling, chunk: int = 512
    ) -> None:
        _check(prompt, chunk)
        start = perf_counter()
        self._sampler = Sampler(sampling)
        self._token: Tensor | None = None
        self._logits, state = _read(model, prompt, chunk)
        self._decoder = Decoder(model, state)
        self.prompt_tokens = len(prompt)
        self.new_tokens = 0
        self.prefill_seconds = perf_counter() - start
        self.decode_seconds = 0.0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        start = perf_counter()
        if self._token is not None:
            self._logits = self._decoder(self._token)
        self._token = self._sampler(self._logits)
        self.new_tokens += 1
        token = int(self._token)
        self.decode_seconds += perf_counter() - start
        return token

    @property
    def state(self) -> State:
        """The state before the newest token, as a value: going on does not change it."""
        return self._decoder.state()


def _check(prompt: Sequence[int], chunk: int) -> None:
    check(chunk >= 1, "chunk", chunk, "must be at least 1")
    if len(prompt) == 0:
        raise DataError("prompt: empty: must have at least one token to continue from")


@torch.no_grad()
def _read(model: LanguageModel, prompt: Sequence[int], chunk: int) -> tuple[Tensor, State]:
    """Logits ``(1, V)`` after the prompt, and the state."""
    state: State | None = None
    at = 0
    while at < len(prompt):
        try:
            tokens = torch.tensor([list(prompt[at : at + chunk])], dtype=torch.int64).to(model.device)
            hidden, state = model.hidden(tokens, state)
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            release(error)
            if chunk == 1:
                raise _too_long(model, len(prompt), at, error) from None
            chunk = max(1, chunk // 8)  # reading less at a time takes less, and gives the same
            continue
        at += tokens.shape[1]
    if state is None:
        raise StateError("the model gave no state")
    return model.logits(hidden[:, -1]), state


def _too_long(model: LanguageModel, asked: int, read: int, error: Exception) -> OutOfMemoryError:
    """What to say of a prompt whose state does not fit, read token by token at the end."""
    what = f"not enough memory{shortage(error)} for a prompt of {asked:,} tokens"
    if read == 0:
        return OutOfMemoryError(f"{what}: not even one token fits; a smaller model takes less")
    held = model.state_bytes(1, read) / 2**20
    return OutOfMemoryError(
        f"{what}: the state of {read:,} takes {held:,.0f} MiB and fits; give a shorter one"
    )


def generate(
    model: LanguageModel,
    prompt: str | bytes | Sequence[int],
    *,
    max_tokens: int = 256,
    sampling: Sampling | None = None,
    stop: tuple[str, ...] = (),
    chunk: int = 512,
    tokenizer: Tokenizer | None = None,
) -> Iterator[Piece]:
    """Stream the text with which a language model continues a prompt.

    Characters appear when their last byte is there (bytes that form none as U+FFFD); text that may be the
    beginning of a stop string is held back, and generation ends before the first stop string, which is never
    shown. The prompt is not repeated. Until the iterator is exhausted or closed the model is in evaluation
    mode, afterwards as before.

    Args:
        prompt: text (as UTF-8), bytes, or tokens; at least one.
        max_tokens: tokens to draw at most, at least 1.
        sampling: see `Sampling`; absent: its defaults.
        stop: strings that end the text.
        chunk: tokens of the prompt read at a time.
        tokenizer: what the model's tokens are; absent: bytes.

    Yields:
        `Piece`; the last one has `Stats`.

    Raises:
        DataError: the prompt is empty.
        ConfigError: max_tokens or chunk < 1, an empty stop string, or a model with other tokens than the
            tokenizer.
        ShapeError: a value of the prompt is outside [0, 256).
        DivergedError: the model gives NaN.

    Cost: one forward pass over the prompt, one `step` per token.
    """
    check(max_tokens >= 1, "max_tokens", max_tokens, "must be at least 1")
    vocab = model.config.vocab
    if tokenizer is None:
        check(
            vocab == 256, "model.vocab", vocab, "must be 256: only byte models give text without a tokenizer"
        )
        tokenizer = Bytes()
    check(
        tokenizer.vocab <= vocab, "model.vocab", vocab, f"must be at least {tokenizer.vocab}, the tokenizer's"
    )
    stops = StopStrings(stop)
    tokens = _encoded(prompt, tokenizer)
    _check(tokens, chunk)
    drawn = sampling if sampling is not None else Sampling()
    return _stream(model, tokens, max_tokens, drawn, stops, chunk, tokenizer.spelled)


def _encoded(prompt: str | bytes | Sequence[int], tokenizer: Tokenizer) -> Sequence[int]:
    if isinstance(prompt, str):
        prompt = prompt.encode()
    if not isinstance(prompt, bytes):
        return prompt
    return [int(token) for piece in tokenizer.encode([prompt]) for token in piece]


def _stream(
    model: LanguageModel,
    prompt: Sequence[int],
    max_tokens: int,
    sampling: Sampling,
    stops: StopStrings,
    chunk: int,
    spelled: list[bytes],
) -> Iterator[Piece]:
    with evaluating(model):
        decoder = Utf8Stream()
        continuation = Continuation(model, prompt, sampling, chunk)
        for token in continuation:
            text = stops.push(decoder.push(spelled[token] if token < len(spelled) else b""))
            if stops.found or continuation.new_tokens == max_tokens:
                break
            if text:
                yield Piece(text)
        if not stops.found:
            text += stops.push(decoder.finish())
            text += stops.finish()
        time = continuation.prompt_tokens + continuation.new_tokens - 1
        stats = Stats(
            continuation.prompt_tokens,
            continuation.new_tokens,
            continuation.prefill_seconds,
            continuation.decode_seconds,
            model.state_bytes(1, time),
            "stop" if stops.found else "length",
        )
        yield Piece(text, stats)
