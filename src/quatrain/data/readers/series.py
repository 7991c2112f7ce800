"""A table as one long series, and a table of labelled rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import tau

import numpy as np
from numpy.typing import NDArray

from quatrain.config.check import closest
from quatrain.data.readers._item import Item, label_of, part_of
from quatrain.data.readers.table import Table, first_cell, moments, time_column
from quatrain.errors import DataError

_DAY, _WEEK, _YEAR = 86_400.0, 604_800.0, 365.2425 * 86_400
CALENDAR = tuple(f"{wave} of the {period}" for period in ("day", "week", "year") for wave in ("sin", "cos"))
_LABELS, _SPLIT, _TEXTS = ("label", "class", "target", "category"), "split", ("text", "sentence", "content")


@dataclass(frozen=True)
class Columns:
    """What the columns of a series are: ``targets`` are forecast, ``others`` only read, ``time`` orders."""

    targets: tuple[str, ...]
    others: tuple[str, ...]
    time: str
    calendar: bool

    @property
    def names(self) -> list[str]:
        """All channels in order, the targets first."""
        return [*self.targets, *self.others, *(CALENDAR if self.calendar else ())]


def columns_of(table: Table, target: Sequence[str], calendar: bool, others: bool = True) -> Columns:
    """The columns of a series. Raises DataError for a target that is no column or holds no numbers."""
    time = time_column(table)
    numeric = [name for name in table.numeric if name != time]
    for name in target:
        _require(table, name)
        if name not in numeric:
            cell = first_cell(table, name)
            raise DataError(f"{table.path}, row 1, column {name!r} = {cell!r}: must be a finite number")
    targets = tuple(target) or tuple(numeric)
    if not targets:
        raise DataError(f"{table.path}: no column holds numbers; found {', '.join(table.columns)}")
    if calendar and not time:
        raise DataError(f"{table.path}: data.calendar = true needs a column with times; there is none")
    rest = tuple(name for name in numeric if name not in targets) if others else ()
    return Columns(targets, rest, time, calendar)


def read_series(table: Table, columns: Columns) -> Iterator[Item]:
    """The rows as one series, block by block. Raises DataError where the times do not rise."""
    names = [*columns.targets, *columns.others]
    before = -np.inf
    held: Item | None = None
    counted = columns.time in table.numeric  # times as plain numbers are read with the others
    if counted:
        names.append(columns.time)
    for block in table.blocks(names, (columns.time,) if columns.time and not counted else ()):
        values = block.numbers
        if columns.time:
            if counted:
                values, when = values[:, :-1], values[:, -1]
            else:
                when = moments(block.strings[0], columns.time, table.path, block.first)
            steps = np.diff(when, prepend=before)
            if (steps <= 0).any():
                at = int(np.argmax(steps <= 0))
                cell = f"{when[at]:.15g}" if counted else block.strings[0][at]
                raise DataError(
                    f"{table.path}, row {block.first + at}, column {columns.time!r} = {cell!r}: "
                    f"is not later than the row before"
                )
            before = when[-1]
            if columns.calendar:
                values = np.concatenate((values, calendar(when)), 1)
        if held is not None:
            yield held
        held = Item(values.astype(np.float32), None, f"{table.path}, row {block.first}", last=False)
    if held is None:
        raise DataError(f"{table.path}: has no rows")
    yield held._replace(last=True)


def calendar(when: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sine and cosine of the time of day, of the week and of the year: ``(T,)`` seconds to ``(T, 6)``."""
    turns = [tau * (when % period) / period for period in (_DAY, _WEEK, _YEAR)]
    return np.stack([wave(turn) for turn in turns for wave in (np.sin, np.cos)], 1)


def label_column(table: Table, target: Sequence[str]) -> str:
    """The column with the label: the one asked for, or one that is called so; "" where there is none."""
    if target:
        _require(table, target[0])
        return target[0]
    return next((name for name in table.columns if name.lower() in _LABELS), "")


def text_column(table: Table, label: str) -> str:
    """The column with the text of a labelled row; "" where the rows hold numbers."""
    words = [n for n in table.columns if n not in table.numeric and n != label and n.lower() != _SPLIT]
    named = [name for name in words if name.lower() in _TEXTS]
    return (named or words or [""])[0]


def row_numbers(table: Table, label: str) -> list[str]:
    """The columns of numbers that make a row a sequence, from left to right."""
    return [name for name in table.numeric if name != label and name.lower() != _SPLIT]


def read_rows(table: Table, label: str) -> Iterator[Item]:
    """Every row as a labelled sequence: its text, or its numbers from left to right."""
    text = text_column(table, label)
    split = next((name for name in table.columns if name.lower() == _SPLIT), "")
    numbers = [] if text else row_numbers(table, label)
    if not text and not numbers:
        raise DataError(f"{table.path}: has no column beside {label!r} to read; found {table.columns}")
    strings = [name for name in (label, split, text) if name]
    for block in table.blocks(numbers, strings):
        cells = dict(zip(strings, block.strings, strict=True))
        for index in range(len(block.numbers)):
            where = f"{table.path}, row {block.first + index}"
            part = part_of(cells[split][index], where) if split else ""
            target = label_of(_plain(cells[label][index]), where) if label else None
            if text:
                words = cells[text][index].encode("utf-8", "replace")
                if not words:
                    raise DataError(f"{where}, column {text!r}: the text is empty")
                yield Item(np.frombuffer(words, dtype=np.uint8), target, where, part)
            else:
                yield Item(block.numbers[index].astype(np.float32)[:, None], target, where, part)


def _plain(cell: str) -> str:
    """``3`` for ``3.0``, so that a column of numbers names the same classes however it was written."""
    try:
        number = float(cell)
    except ValueError:
        return cell
    return str(int(number)) if number.is_integer() and abs(number) < 2**53 else cell


def _require(table: Table, name: str) -> None:
    if name not in table.columns:
        hint = closest(name, table.columns) or f"; found {', '.join(table.columns)}"
        raise DataError(f"{table.path}: data.target = {name!r}: is no column{hint}")
