"""``.ts`` files as the UCR and UEA archives ship them: one series a line, ``dim1 : dim2 : ... : label``.

``NAME_TRAIN.ts`` and ``NAME_TEST.ts`` are the parts of one data set.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from quatrain.data.readers._item import Item, finite, label_of, lines, text_of
from quatrain.errors import DataError


def read(path: Path, part: str = "") -> Iterator[Item]:
    """The series of a file. Raises DataError naming line and rule; missing values (``?``) are refused."""
    labelled, begun = True, False
    for number, line in lines(path):
        where, text = f"{path}, line {number}", text_of(line, f"{path}, line {number}").strip()
        if text.startswith("#"):
            continue
        if text.startswith("@"):
            word, _, value = text[1:].partition(" ")
            if word.lower() == "data":
                begun = True
            elif word.lower() == "classlabel":
                labelled = value.split()[:1] == ["true"]
            elif word.lower() == "timestamps" and value.strip().lower() == "true":
                raise DataError(f"{where}: series with time stamps are not read; resample them evenly first")
            continue
        if not begun:
            raise DataError(f"{where}: data before @data; is it a .ts file?")
        yield _series(text, where, part, labelled)


def _series(text: str, where: str, part: str, labelled: bool) -> Item:
    *dimensions, label = text.split(":") if labelled else [*text.split(":"), ""]
    if not dimensions:
        raise DataError(f"{where}: has no ':' between values and label")
    columns = []
    for index, dimension in enumerate(dimensions, 1):
        words = dimension.split(",")
        try:
            columns.append(np.array(words, dtype=np.float64))
        except ValueError:
            step, word = next((i, word) for i, word in enumerate(words, 1) if not _is_number(word))
            raise DataError(
                f"{where}: dimension {index}, value {step} = {word!r}: must be a number"
            ) from None
        if len(columns[-1]) != len(columns[0]):
            raise DataError(
                f"{where}: dimension {index} has {len(columns[-1])} values, dimension 1 has {len(columns[0])}"
            )
    values = finite(np.stack(columns, 1), where)
    return Item(values, label_of(label, where) if labelled else None, where, part)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
