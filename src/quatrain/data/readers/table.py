"""Tables: CSV and its kin, Parquet through an extra. Read in blocks of rows."""

import csv
import io
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from quatrain.data.corpus import ending, open_file, reading
from quatrain.errors import DataError, MissingExtraError

ENDINGS = (".csv", ".tsv", ".parquet")
TIME_NAMES = ("date", "time", "timestamp", "datetime", "ds", "day", "month")
_ROWS = 20_000  # of a block


class Block(NamedTuple):
    """Consecutive rows: ``first`` counts from 1, ``numbers (n, columns)`` float64, ``strings`` by column."""

    first: int
    numbers: NDArray[np.float64]
    strings: list[list[str]]


class Table(Protocol):
    """A table whose columns are known and whose rows are read when asked for."""

    path: Path
    columns: list[str]
    numeric: list[str]  # columns whose first row holds a number

    def blocks(self, numbers: Sequence[str], strings: Sequence[str]) -> Iterator[Block]:
        """The rows of these columns. Raises DataError naming row and column of what is no finite number."""


def open_table(path: Path) -> Table:
    """The table in a file. Raises DataError where it has no header, no rows or nested columns."""
    return _Parquet(path) if ending(path) == ".parquet" else _Csv(path)


class _Csv:
    def __init__(self, path: Path) -> None:
        self.path = path
        with reading(path), open_file(path) as file:
            head = file.read(65536)
        if b"\0" in head[:1024]:
            raise DataError(f"{path}: is binary, not text (a NUL in its first 1024 bytes)")
        first = head.split(b"\n", 1)[0].decode("utf-8-sig", "replace")
        self.delimiter = max(",;\t", key=first.count) if ending(path) != ".tsv" else "\t"
        rows = self._rows()
        self.columns = [name.strip() for name in next(rows, [])]
        sample = next(rows, None)
        rows.close()
        if not self.columns or not any(self.columns):
            raise DataError(f"{path}: is empty")
        if all(map(_is_number, self.columns)):
            raise DataError(f"{path}: has no header: its first row must name the columns, not hold numbers")
        twice = {name for name in self.columns if self.columns.count(name) > 1}
        if twice:
            raise DataError(f"{path}: two columns are called {min(twice)!r}")
        if sample is None:
            raise DataError(f"{path}: has a header and no rows")
        self.numeric = [name for name, cell in zip(self.columns, sample, strict=False) if _is_number(cell)]

    def blocks(self, numbers: Sequence[str], strings: Sequence[str]) -> Iterator[Block]:
        places = [self.columns.index(name) for name in numbers]
        words = [self.columns.index(name) for name in strings]
        rows, first = islice(self._rows(), 1, None), 1
        while block := list(islice(rows, _ROWS)):
            for index, row in enumerate(block):
                if len(row) != len(self.columns):
                    where = f"{self.path}, row {first + index}"
                    raise DataError(f"{where}: {len(row)} cells, the header has {len(self.columns)}")
            try:
                array = np.array([[row[place] for place in places] for row in block], dtype=np.float64)
                wrong = np.argwhere(~np.isfinite(array))
            except ValueError:
                wrong = self._wrong(block, places)
                array = np.zeros((0, len(places)))
            if len(wrong):
                row, column = (int(at) for at in wrong[0])
                cell = block[row][places[column]]
                raise DataError(
                    f"{self.path}, row {first + row}, column {numbers[column]!r} = {cell!r}: "
                    f"must be a finite number"
                )
            yield Block(first, array, [[row[place] for row in block] for place in words])
            first += len(block)

    def _wrong(self, block: list[list[str]], places: list[int]) -> NDArray[np.int64]:
        found = [
            (at, column)
            for at, row in enumerate(block)
            for column, place in enumerate(places)
            if not _is_number(row[place], finite=True)
        ]
        return np.asarray(found[:1])

    def _rows(self) -> Any:
        with reading(self.path), open_file(self.path) as file:
            text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
            try:
                for row in csv.reader(text, delimiter=self.delimiter):
                    if row:
                        yield row
            except UnicodeDecodeError:
                raise DataError(f"{self.path}: is not UTF-8") from None
            except csv.Error as error:
                raise DataError(f"{self.path}: is no CSV: {error}") from None


class _Parquet:
    def __init__(self, path: Path) -> None:
        try:
            from pyarrow import ArrowInvalid, parquet, types
        except ImportError:
            message = f"{path}: Parquet needs the extra parquet: pip install 'quatrain[parquet]'"
            raise MissingExtraError(message) from None
        self.path = path
        try:
            self._file = parquet.ParquetFile(path)
        except (ArrowInvalid, OSError) as error:
            raise DataError(f"{path}: is no Parquet file: {str(error).splitlines()[0]}") from None
        schema = self._file.schema_arrow
        for field in schema:
            if types.is_nested(field.type):
                raise DataError(
                    f"{path}: column {field.name!r} is nested ({field.type}): must be plain values"
                )
        self.columns = list(schema.names)
        number = (types.is_integer, types.is_floating, types.is_decimal, types.is_boolean)
        self.numeric = [field.name for field in schema if any(test(field.type) for test in number)]
        if not self._file.metadata.num_rows:
            raise DataError(f"{path}: has no rows")

    def blocks(self, numbers: Sequence[str], strings: Sequence[str]) -> Iterator[Block]:
        first = 1
        for batch in self._file.iter_batches(_ROWS, columns=[*numbers, *strings]):
            columns = []
            for name in numbers:
                column = batch.column(name)
                try:
                    values = column.cast("float64").to_numpy(zero_copy_only=False)
                except ValueError:  # pyarrow's own errors are ValueErrors
                    raise DataError(
                        f"{self.path}, column {name!r}: holds {column.type}, not numbers"
                    ) from None
                wrong = np.flatnonzero(~np.isfinite(values))
                if len(wrong):
                    cell = column[int(wrong[0])].as_py()
                    raise DataError(
                        f"{self.path}, row {first + int(wrong[0])}, column {name!r} = {cell!r}: "
                        f"must be a finite number"
                    )
                columns.append(values)
            array = np.stack(columns, 1) if columns else np.zeros((batch.num_rows, 0))
            words = [["" if v is None else str(v) for v in batch.column(n).to_pylist()] for n in strings]
            yield Block(first, array, words)
            first += batch.num_rows


def time_column(table: Table) -> str:
    """The column that says when a row was, by its name or its first value; "" where there is none."""
    for name in table.columns:
        if name.strip().lower() in TIME_NAMES:
            return name
    for name in table.columns:
        if name not in table.numeric:
            cell = next(table.blocks((), (name,))).strings[0][0]
            if _moment(cell) is not None:
                return name
    return ""


def moments(cells: Sequence[str], column: str, where: Path, first: int) -> NDArray[np.float64]:
    """Seconds since 1970 of times as ISO 8601 or plain numbers. Raises DataError naming the row."""
    found = np.empty(len(cells))
    for index, cell in enumerate(cells):
        moment = _moment(cell)
        if moment is None:
            raise DataError(
                f"{where}, row {first + index}, column {column!r} = {cell!r}: "
                f"must be a time such as 2026-11-25 09:30:00, or a number"
            )
        found[index] = moment
    return found


def _moment(cell: str) -> float | None:
    if _is_number(cell, finite=True):
        return float(cell)
    try:
        return (datetime.fromisoformat(cell.strip()).replace(tzinfo=None) - _EPOCH).total_seconds()
    except ValueError:
        return None


_EPOCH = datetime(1970, 1, 1)


def _is_number(cell: str, *, finite: bool = False) -> bool:
    try:
        return isfinite(float(cell)) or not finite
    except ValueError:
        return False
