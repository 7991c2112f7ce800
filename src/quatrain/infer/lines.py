"""The lines of a stream as the rows of a series: what a sensor sends, a line at a time."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quatrain.data.readers.series import calendar
from quatrain.data.readers.table import moments
from quatrain.data.sequences import WAVES, Meaning
from quatrain.errors import DataError

_WHERE = Path("stdin")


def read_lines(lines: Iterable[tuple[int, str]], meaning: Meaning) -> Iterator[NDArray[np.float32]]:
    """A row ``(C,)`` for each numbered line of numbers with commas between them, as soon as it has come.

    The first line may be a header, which says where the model's columns stand among others. Without one a
    line has the model's columns in order; for a model that reads the calendar, the time before them. In
    float32, as training files hold them: waves of a year hardly change in a week, and their scale is tiny.

    Raises DataError for a column that is missing, a cell that is no finite number, and a time that is none or
    not later than the one before.
    """
    names = [meaning.time] if meaning.calendar else []
    names += meaning.columns[: len(meaning.columns) - (WAVES if meaning.calendar else 0)]
    order: Sequence[int] | None = None
    before = -np.inf
    for number, line in lines:
        cells = [cell.strip() for cell in line.strip().split(",")]
        where = f"stdin, line {number}"
        if number == 1 and (order := _order(cells, names)) is not None:
            continue
        if order is not None:
            if len(cells) <= max(order):
                raise DataError(f"{where}: has {len(cells)} cells, the header has more")
            cells = [cells[at] for at in order]
        if len(cells) != len(names):
            raise DataError(f"{where}: has {len(cells)} numbers, must have {len(names)}: {', '.join(names)}")
        if not meaning.calendar:
            yield _numbers(cells, names, where).astype(np.float32)
            continue
        when = moments(cells[:1], meaning.time, _WHERE, number)
        if when[0] <= before:
            raise DataError(
                f"{where}, column {meaning.time!r} = {cells[0]!r}: is not later than the row before"
            )
        before = when[0]
        row = np.concatenate((_numbers(cells[1:], names[1:], where), calendar(when)[0]))
        yield row.astype(np.float32)


def _order(cells: Sequence[str], names: Sequence[str]) -> Sequence[int] | None:
    """Where the columns stand in a header; None for a line that is none. Raises DataError if it lacks one."""
    if not set(cells) & set(names) and any(map(_is_number, cells)):
        return None
    missing = [name for name in names if name not in cells]
    if missing:
        raise DataError(f"stdin, line 1: has no column {missing[0]!r}, which the model reads")
    return [cells.index(name) for name in names]


def _numbers(cells: Sequence[str], names: Sequence[str], where: str) -> NDArray[np.float64]:
    row = np.empty(len(cells))
    for index, (cell, name) in enumerate(zip(cells, names, strict=True)):
        row[index] = float(cell) if _is_number(cell) else np.nan
        if not np.isfinite(row[index]):
            raise DataError(f"{where}, column {name!r} = {cell!r}: must be a finite number")
    return row


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
