"""What every reader yields, and what they share."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quatrain._files import chunks_of
from quatrain.data.corpus import open_file, reading
from quatrain.errors import DataError

PARTS = ("train", "valid", "test")


class Item(NamedTuple):
    """A sequence, or a piece of one.

    Attributes:
        values: ``(T, C)`` float32, or bytes of text ``(T,)`` uint8.
        target: its label, one tag for each step ("" is not scored), or None where there is none.
        where: file and line, for messages.
        part: the part its source puts it in; "" where it names none.
        last: whether the sequence ends here; a long series comes in pieces.
        rate: samples of a second, of a recording.
    """

    values: NDArray[Any]
    target: str | Sequence[str] | None
    where: str
    part: str = ""
    last: bool = True
    rate: int = 0


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers, unpacked where packed; empty ones left out."""
    with reading(path), open_file(path) as file:
        head = file.read(1024)
        if b"\0" in head:
            raise DataError(f"{path}: is binary, not text (a NUL in its first 1024 bytes)")
        rest, number = head, 0
        for chunk in chunks_of(file):
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                number += 1
                if line.strip():
                    yield number, line
        for line in rest.split(b"\n"):
            number += 1
            if line.strip():
                yield number, line


def text_of(line: bytes, where: str) -> str:
    """A line as UTF-8 text without its end. Raises DataError naming the byte."""
    try:
        return line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: byte {error.start + 1} is not UTF-8") from None


def finite(values: NDArray[Any], where: str) -> NDArray[np.float32]:
    """As float32, none NaN or infinite; names the first that is."""
    with np.errstate(over="ignore"):
        result: NDArray[np.float32] = np.ascontiguousarray(values, dtype=np.float32)
    wrong = np.argwhere(~np.isfinite(result))
    if len(wrong):
        step, channel = (*wrong[0], 0)[:2]
        value = np.asarray(values)[tuple(wrong[0])]
        raise DataError(
            f"{where}: step {step + 1}, channel {channel + 1} is {value}: must be a finite number"
        )
    return result


def part_of(word: object, where: str) -> str:
    """The part that a ``split`` key names. Raises DataError for another word."""
    called = {"val": "valid", "validation": "valid", "dev": "valid", "training": "train", "testing": "test"}
    name = called.get(str(word).lower(), str(word).lower())
    if name not in PARTS:
        raise DataError(f"{where}: split = {word!r}: must be one of train, valid, test")
    return name


def label_of(value: object, where: str) -> str:
    """A label as a string: 1, 1.0 and "1" are one class. Raises DataError for what is no label."""
    if isinstance(value, bool) or value is None or isinstance(value, (list, dict)):
        if isinstance(value, bool):
            return str(value).lower()
        raise DataError(f"{where}: label = {value!r}: must be a string or a number")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value).strip()
    if not text:
        raise DataError(f"{where}: the label is empty")
    return text
