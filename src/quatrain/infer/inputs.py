"""Reading what a model is asked about: files without labels, lines of a stream, a series' last rows."""

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfileobj
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quatrain.data.corpus import STDIN, ending
from quatrain.data.readers import audio, folder, jsonl, series, table, ucr
from quatrain.data.readers._item import Item
from quatrain.data.sequences import WAVES, Meaning
from quatrain.errors import DataError


def read_inputs(path: Path, meaning: Meaning) -> Iterator[Item]:
    """The inputs in a file, labels not asked for: JSON Lines, CSV, .ts, WAV, FLAC, else one text.

    Packed files are unpacked on the way. Raises DataError where it is missing or not what its ending says.
    """
    _require_file(path)
    kind = ending(path)
    if kind in jsonl.ENDINGS:
        yield from jsonl.read(path, meaning.features)
    elif kind in table.ENDINGS:
        opened = table.open_table(path)
        yield from series.read_rows(opened, series.label_column(opened, ()))
    elif kind == ".ts":
        yield from ucr.read(path)
    elif kind in audio.ENDINGS:
        values, rate = audio.read(path, meaning.features)
        yield Item(values, None, str(path), rate=rate)
    else:
        yield Item(folder.text(path), None, str(path))


def read_texts(path: Path) -> Iterator[tuple[str, bytes]]:
    """Where each text of a file stands, and the text: JSON Lines have one a line, any other file is one."""
    _require_file(path)
    if ending(path) not in jsonl.ENDINGS:
        yield str(path), folder.text(path).tobytes()
        return
    for where, text in jsonl.texts(path):
        yield where, text.encode("utf-8", "replace")


def parse_text(line: str, number: int) -> tuple[str, bytes]:
    """A line of a stream as a text: what it says, or the ``text`` of a JSON object."""
    where = f"stdin, line {number}"
    if line.lstrip().startswith("{"):
        return where, jsonl.text_in(_object(line, where), where).encode("utf-8", "replace")
    return where, line.rstrip("\r\n").encode("utf-8", "surrogateescape")


def parse_item(line: str, number: int, features: str) -> Item:
    """A line of a stream as an item: a JSON object as in JSON Lines, any other line is a text."""
    where = f"stdin, line {number}"
    if line.lstrip().startswith("{"):
        return jsonl.item(_object(line, where), where, Path(), features)
    values = np.frombuffer(line.rstrip("\r\n").encode("utf-8", "surrogateescape"), dtype=np.uint8)
    return Item(values, None, where)


def read_context(path: Path, meaning: Meaning, keep: int) -> NDArray[np.float64]:
    """The last ``keep`` rows of a series ``(T, C)``: CSV, Parquet or the one line of a JSON Lines file.

    Raises DataError where a column is missing.
    """
    _require_file(path)
    if ending(path) in jsonl.ENDINGS:
        return _one_series(path, meaning)[-keep:]
    opened = table.open_table(path)
    named = [name for name in meaning.columns if name in opened.columns]
    plain = len(meaning.columns) - (WAVES if meaning.calendar else 0)
    if len(named) < plain:
        missing = next(name for name in meaning.columns if name not in opened.columns)
        raise DataError(f"{path}: has no column {missing!r}, which the model reads")
    columns = series.Columns(tuple(named), (), table.time_column(opened), meaning.calendar)
    held = np.zeros((0, len(meaning.columns)))
    for item in series.read_series(opened, columns):
        held = np.concatenate((held, item.values))[-keep:]
    return held


def _one_series(path: Path, meaning: Meaning) -> NDArray[np.float64]:
    items = iter(jsonl.read(path, ""))
    item = next(items, None)
    if item is None:
        raise DataError(f"{path}: is empty")
    if next(items, None) is not None:
        raise DataError(f"{path}: holds several series; give each a file of its own")
    if item.values.ndim != 2 or item.values.shape[1] != meaning.channels:
        got = item.values.shape[1] if item.values.ndim == 2 else "no"
        raise DataError(f"{item.where}: has {got} numbers a step, the model reads {meaning.channels}")
    return item.values.astype(np.float64)


@contextmanager
def spooled(source: str) -> Iterator[str]:
    """A file with what stdin brings, where ``source`` is ``-``: data with labels is read more than once.

    It ends in .jsonl where it begins with "{", else in .csv, and goes away afterwards.
    """
    if source != STDIN:
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="quatrain-") as kept:
        head = sys.stdin.buffer.read(1 << 16)
        if not head.strip():
            raise DataError("data source '-': is empty (standard input)")
        name = "stdin.jsonl" if head.lstrip().startswith(b"{") else "stdin.csv"
        with open(Path(kept) / name, "wb") as file:
            file.write(head)
            copyfileobj(sys.stdin.buffer, file)
        yield str(Path(kept) / name)


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: is no JSON: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: is a {type(row).__name__}: must be an object")
    return row


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"{path}: {'is a directory; name files' if path.is_dir() else 'does not exist'}")
