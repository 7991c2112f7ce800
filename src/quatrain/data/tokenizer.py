"""Tokenizers: bytes, bases of DNA, byte-pair encodings. Each knows how many bytes and characters a token is.

Byte-pair encodings are byte-level (Sennrich et al., ACL 2016; Radford et al. 2019): every text has an
encoding, and every token stands for a fixed string of bytes, so that losses can be given per byte and per
character. They need the extra ``text`` (Hugging Face tokenizers).
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quatrain.errors import DataError, MissingExtraError

JSON = "tokenizer.json"
BASES = b"ACGTN"
RECORD = len(BASES)  # the token before each record of a FASTA file
COMPLEMENT = np.array([3, 2, 1, 0, 4, RECORD], dtype=np.uint8)
_AMBIGUOUS = b"RYKMSWBDHV"  # codes of IUPAC for "one of these bases": read as N
_SEEN = 64 << 20  # bytes of a text that a byte-pair encoding is learnt from, at most


class Tokenizer(Protocol):
    """From bytes to tokens and back.

    Attributes:
        name: "bytes", "dna" or "bpe".
        vocab: number of different tokens.
        spelled: the bytes of every token, in order.
        json: what rebuilds it, for "bpe"; "" for the others.
    """

    name: str
    vocab: int
    spelled: list[bytes]
    json: str

    def encode(self, chunks: Iterable[bytes]) -> Iterator[NDArray[Any]]:
        """Tokens of a text that comes in pieces, in pieces. Raises DataError for what it cannot read."""


def measures(spelled: list[bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many bytes, and how many characters of UTF-8, each token is: bytes that don't continue one."""
    sizes = [len(token) for token in spelled]
    starts = [sum(byte & 0xC0 != 0x80 for byte in token) for token in spelled]
    return np.asarray(sizes, dtype=np.int64), np.asarray(starts, dtype=np.int64)


def dtype_of(vocab: int) -> np.dtype[Any]:
    """The smallest numbers that hold all tokens."""
    return np.dtype("u1" if vocab <= 2**8 else "<u2" if vocab <= 2**16 else "<u4")


class Bytes:
    """A token is a byte."""

    name, vocab, json = "bytes", 256, ""
    spelled = [bytes((value,)) for value in range(256)]  # noqa: RUF012 - never changed

    def encode(self, chunks: Iterable[bytes]) -> Iterator[NDArray[Any]]:
        """The bytes themselves."""
        for chunk in chunks:
            yield np.frombuffer(chunk, dtype=np.uint8)


class Dna:
    """A token is a base of a FASTA file: A C G T N, small letters as capitals, and one before each record.

    Header lines are left out. Codes for several bases become N; any other letter is a DataError that names
    line and letter.
    """

    name, vocab, json = "dna", RECORD + 1, ""
    spelled = [*(bytes((base,)) for base in BASES), b""]  # noqa: RUF012 - never changed

    def __init__(self) -> None:
        self._table = np.full(256, 255, dtype=np.uint8)
        for letters, number in (*((bytes((b,)), i) for i, b in enumerate(BASES)), (b"U", 3)):
            self._table[list(letters + letters.lower())] = number
        self._table[list(_AMBIGUOUS + _AMBIGUOUS.lower())] = BASES.index(b"N")

    def encode(self, chunks: Iterable[bytes]) -> Iterator[NDArray[Any]]:
        """Tokens line by line, whatever the pieces."""
        number, rest = 0, b""
        for chunk in chunks:
            *lines, rest = (rest + chunk).split(b"\n")
            yield from self._lines(lines, number)
            number += len(lines)
        yield from self._lines([rest], number)

    def _lines(self, lines: list[bytes], before: int) -> Iterator[NDArray[Any]]:
        pieces: list[NDArray[np.uint8]] = []
        for number, line in enumerate(lines, before + 1):
            line = line.strip()
            if line.startswith((b">", b";")):
                pieces.append(np.array([RECORD], dtype=np.uint8))
                continue
            tokens = self._table[np.frombuffer(line, dtype=np.uint8)]
            if tokens.size and tokens.max() == 255:
                letter = chr(line[int(tokens.argmax())])
                rule = f"must be one of {BASES.decode()}, or a code for several of them"
                raise DataError(f"line {number}: {letter!r}: {rule}")
            pieces.append(tokens)
        if pieces:
            yield np.concatenate(pieces)


class Bpe:
    """A byte-level byte-pair encoding of Hugging Face's format. Raises DataError for another kind."""

    name = "bpe"

    def __init__(self, text: str, source: str) -> None:
        tokenizers = _library()
        try:
            parsed = json.loads(text)
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"{source}: is no tokenizer.json: {str(error).splitlines()[0]}") from None
        if "ByteLevel" not in json.dumps(parsed.get("decoder")):
            raise DataError(f"{source}: must be a byte-level tokenizer; its decoder is another")
        self.json = text
        self.vocab = self._tokenizer.get_vocab_size(with_added_tokens=True)
        # Its files leave no token outside [0, vocab), but some have holes.
        self.vocab = max(self.vocab, 1 + max(self._tokenizer.get_vocab().values()))
        self.spelled = [self._bytes(number) for number in range(self.vocab)]

    def encode(self, chunks: Iterable[bytes]) -> Iterator[NDArray[Any]]:
        """Pieces are cut behind a line's end, so that how the bytes come does not matter to most texts."""
        for text in _whole(chunks):
            yield np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.uint32)

    def _bytes(self, number: int) -> bytes:
        token = self._tokenizer.id_to_token(number)
        if token is None:
            return b""
        try:
            return bytes(_LETTERS[char] for char in token)
        except KeyError:  # a special token, written as it is
            return str(token).encode()


def learn(chunks: Iterable[bytes], vocab: int) -> Bpe:
    """A byte-pair encoding of ``vocab`` tokens from the start of a text (at most 64 MiB of it)."""
    tokenizers = _library()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab, initial_alphabet=sorted(_LETTERS), special_tokens=[], show_progress=False
    )
    tokenizer.train_from_iterator(_head(_whole(chunks)), trainer)
    return Bpe(tokenizer.to_str(), "the encoding that was learnt")


def rebuild(name: str, text: str) -> Tokenizer:
    """The tokenizer of a token file or checkpoint."""
    if name == "bpe":
        return Bpe(text, JSON)
    return Dna() if name == "dna" else Bytes()


def read_json(path: Path) -> Bpe:
    """The tokenizer in a ``tokenizer.json``. Raises DataError where it is missing or of another kind."""
    try:
        return Bpe(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise DataError(f"data.tokenizer = {str(path)!r}: cannot be read: {error.strerror}") from None


def _head(texts: Iterable[str]) -> Iterator[str]:
    seen = 0
    for text in texts:
        yield text
        seen += len(text)
        if seen >= _SEEN:
            return


def _whole(chunks: Iterable[bytes]) -> Iterator[str]:
    """Text in pieces of at least a chunk that end with a line, or, in a text without lines, with a space."""
    rest = b""
    for chunk in chunks:
        rest += chunk
        cut = max(rest.rfind(b"\n"), rest.rfind(b" ") if len(rest) > 4 << 20 else -1) + 1
        if cut:
            yield _decode(rest[:cut])
            rest = rest[cut:]
    if rest:
        yield _decode(rest)


def _decode(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        byte = text[error.start]
        raise DataError(f"byte {byte:#04x} is not UTF-8; --data.tokenizer bytes reads any file") from None


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        message = "byte-pair encodings need the extra text: pip install 'quatrain[text]'"
        raise MissingExtraError(message) from None
    return tokenizers


def _letters() -> dict[str, int]:
    """The printable letter that byte-level encodings write for each byte: itself, or one from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [value for value in range(256) if value not in plain]
    return {chr(value): value for value in plain} | {chr(256 + i): value for i, value in enumerate(others)}


_LETTERS = _letters()
