"""JSON Lines: an item a line, ``{"text" | "values" | "audio": ..., "label" | "labels": ..., "split": ...}``.

``values`` are numbers, or lists of numbers, one for each step; ``audio`` is a file beside this one, and with
it ``text`` is what is said in it. ``labels`` are one tag for each step (for a text: for each character).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quatrain.data.readers import audio
from quatrain.data.readers._item import Item, finite, label_of, lines, part_of, text_of
from quatrain.errors import DataError

ENDINGS = (".jsonl", ".ndjson")
KNOWN = ("text", "values", "audio", "label", "labels", "split")


def keys(path: Path) -> frozenset[str]:
    """The keys of the first line. Raises DataError where it is no JSON object."""
    for number, line in lines(path):
        return frozenset(_object(line, f"{path}, line {number}"))
    raise DataError(f"{path}: is empty")


def read(path: Path, features: str) -> Iterator[Item]:
    """The items of a file. Raises DataError naming the line and what is wrong in it."""
    for number, line in lines(path):
        where = f"{path}, line {number}"
        yield item(_object(line, where), where, path.parent, features)


def begins_with_text(path: Path) -> bool:
    """Whether the first line is an object with a string ``text``; False also for what cannot be read."""
    try:
        for number, line in lines(path):
            return isinstance(_object(line, f"{path}, line {number}").get("text"), str)
    except DataError:
        pass
    return False


def texts(path: Path) -> Iterator[tuple[str, str]]:
    """Where each line of a file stands, and its ``text``. Raises DataError for a line without one."""
    for number, line in lines(path):
        where = f"{path}, line {number}"
        yield where, text_in(_object(line, where), where)


def text_in(row: dict[str, Any], where: str) -> str:
    """The ``text`` of a line. Raises DataError where it has none, or an empty one."""
    text = row.get("text")
    if not isinstance(text, str):
        raise DataError(f"{where}: needs text (a string)")
    if not text:
        raise DataError(f"{where}: the text is empty")
    return text


def item(row: dict[str, Any], where: str, folder: Path, features: str) -> Item:
    """One line as an item."""
    part = part_of(row["split"], where) if "split" in row else ""
    if "labels" in row:
        return Item(*_tagged(row, where), where, part)
    target = label_of(row["label"], where) if "label" in row else None
    if "audio" in row:
        values, rate = audio.read(folder / str(row["audio"]), features)
        said = row.get("text")
        return Item(
            values, str(said) if said is not None and target is None else target, where, part, rate=rate
        )
    if "values" in row:
        values = _numbers(row["values"], where)
        said = row.get("text")
        if isinstance(said, str) and target is None:
            return Item(values, said, where, part)
        return Item(values, target, where, part)
    if not isinstance(row.get("text"), str):
        raise DataError(f"{where}: needs one of text (a string), values (numbers) or audio (a file)")
    return Item(_bytes(row["text"], where), target, where, part)


def _tagged(row: dict[str, Any], where: str) -> tuple[NDArray[Any], list[str]]:
    tags = row["labels"]
    if not isinstance(tags, list):
        raise DataError(f"{where}: labels = {tags!r:.60}: must be a list with one label for each step")
    names = [label_of(tag, where) for tag in tags]
    if "values" in row:
        values: NDArray[Any] = _numbers(row["values"], where)
        steps = len(values)
    elif isinstance(row.get("text"), str):
        text = row["text"]
        steps = len(text)
        values = _bytes(text, where)
        # A character's last byte carries its tag: a model that reads from the left has seen all of it there.
        names = [name for char, tag in zip(text, names, strict=False) for name in _spread(char, tag)]
    else:
        raise DataError(f"{where}: labels need text (a string) or values (numbers) beside them")
    if steps != len(tags):
        raise DataError(f"{where}: {len(tags)} labels for {steps} steps: must be one for each")
    return values, names


def _spread(char: str, tag: str) -> list[str]:
    return [""] * (len(char.encode("utf-8", "replace")) - 1) + [tag]


def _bytes(text: str, where: str) -> NDArray[np.uint8]:
    if not text:
        raise DataError(f"{where}: the text is empty")
    return np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8)


def _numbers(values: object, where: str) -> NDArray[np.float32]:
    if not isinstance(values, list) or not values:
        raise DataError(f"{where}: values = {values!r:.60}: must be a list of numbers, at least one")
    rows = [row if isinstance(row, list) else [row] for row in values]
    for step, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise DataError(f"{where}: step {step} has {len(row)} numbers, step 1 has {len(rows[0])}")
        for channel, value in enumerate(row, 1):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise DataError(f"{where}: step {step}, channel {channel} = {value!r:.40}: must be a number")
    return finite(np.asarray(rows, dtype=np.float64), where)


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(text_of(line, where))
    except ValueError as error:
        raise DataError(f"{where}: is no JSON: {error}") from None
    if not isinstance(row, dict):
        raise DataError(
            f"{where}: is a {type(row).__name__}: must be an object with the keys {', '.join(KNOWN)}"
        )
    return row
