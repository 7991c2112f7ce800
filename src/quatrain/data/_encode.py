"""Labelled texts from bytes to tokens, once it is known which of them are for training."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quatrain._files import sync, write_atomic
from quatrain.data.tokenizer import JSON, Tokenizer, dtype_of
from quatrain.errors import DataError

NEW = ("values.new", "offsets.new")  # written beside values.bin and offsets.bin, whose place they take
_PIECE = 1 << 20  # bytes collected before they are written


class Encoding(NamedTuple):
    """How labelled texts become tokens.

    Attributes:
        make: the tokenizer, made from the texts of the training part.
        name: what was asked for; "" where a model to begin from brings it, which goes for texts alone.
    """

    make: Callable[[Iterator[bytes]], Tokenizer]
    name: str = ""


def encode(out: Path, parts: NDArray[np.uint8], encoding: Encoding) -> tuple[Tokenizer, int, int]:
    """Rewrite the bytes of every sequence in ``out`` as tokens; the tokenizer, all tokens, the most of one.

    Cost: the training part is read twice. Raises DataError for what is not UTF-8, and for a text without
    tokens, which some tokenizers make of spaces.
    """
    tokenizer = encoding.make(text + b"\n" for text in _texts(out, parts == 0))
    kind, total, longest = dtype_of(tokenizer.vocab), 0, 0
    with open(out / NEW[0], "wb", _PIECE) as tokens, open(out / NEW[1], "wb", _PIECE) as offsets:
        for number, text in enumerate(_texts(out), 1):
            found = spell(tokenizer, text, f"text {number}")
            tokens.write(found.astype(kind).tobytes())
            total, longest = total + len(found), max(longest, len(found))
            offsets.write(np.int64(total).tobytes())
        for file in (tokens, offsets):
            sync(file)
    write_atomic(out / JSON, tokenizer.json)
    for name in NEW:
        os.replace(out / name, (out / name).with_suffix(".bin"))
    return tokenizer, total, longest


def _texts(out: Path, wanted: NDArray[np.bool_] | None = None) -> Iterator[bytes]:
    """The bytes of every sequence, or of those that are wanted."""
    values = np.memmap(out / "values.bin", dtype="u1", mode="r")
    ends = np.memmap(out / "offsets.bin", dtype="<i8", mode="r")
    for index, end in enumerate(ends):
        if wanted is None or wanted[index]:
            yield values[int(ends[index - 1]) if index else 0 : int(end)].tobytes()


def spell(tokenizer: Tokenizer, text: bytes, where: str) -> NDArray[np.int64]:
    """The tokens of one text. Raises DataError where it is not UTF-8, or has none."""
    try:
        pieces = list(tokenizer.encode([text]))
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    if not pieces or not (found := np.concatenate(pieces).astype(np.int64)).size:
        raise DataError(f"{where}: has no tokens")
    return found
