"""Tables: CSV and its kin, Parquet through an extra. Read in blocks of rows."""

import csv
import io
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from datetime import datetime
from itertools import chain, islice
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from quatrain._files import chunks_of
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

    def blocks(self, numbers: Sequence[str], strings: Sequence[str]) -> Generator[Block]:
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
        with reading(path), open_file(path) as file, closing(self._rows(file)) as rows:
            self.columns = [name.strip() for name in next(rows, [])]
            sample = next(rows, None)
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

    def blocks(self, numbers: Sequence[str], strings: Sequence[str]) -> Generator[Block]:
        """Whole lines at a time go to numpy's parser; what it does not take goes through ``csv``.

        From the first quotation mark on everything does, because a quoted cell may hold a line's end.
        """
        places = [self.columns.index(name) for name in numbers]
        words = [self.columns.index(name) for name in strings]
        first = 1
        with reading(self.path), open_file(self.path) as file:
            pieces = _whole_lines(file)
            head = next(pieces, b"")
            quoted = b'"' in head.split(b"\n", 1)[0]
            if not quoted:
                head = head.split(b"\n", 1)[1] if b"\n" in head else b""
            for piece in chain([head], pieces):
                if quoted or b'"' in piece:
                    break
                fast = self._parsed(piece, places, words) if piece else None
                if fast is not None:
                    yield Block(first, *fast)
                    first += len(fast[0])
                    continue
                rows = self._rows(io.BytesIO(piece))
                for block in self._slowly(rows, first, numbers, places, words):
                    yield block
                    first += len(block.numbers)
            else:
                return
            rows = self._rows(_Joined(chain([piece], pieces)))
            yield from self._slowly(islice(rows, 1 if quoted else 0, None), first, numbers, places, words)

    def _parsed(
        self, piece: bytes, places: list[int], words: list[int]
    ) -> tuple[NDArray[np.float64], list[list[str]]] | None:
        """Numbers and strings of whole lines; None where one of them is not as plain as it should be."""
        if b"\r" in piece:
            piece = piece.replace(b"\r\n", b"\n")
        piece = piece.rstrip(b"\n")
        raw = np.frombuffer(piece + b"\n", dtype=np.uint8)
        cells = np.flatnonzero(raw == ord(self.delimiter))
        ends = np.flatnonzero(raw == 10)
        if (np.diff(np.searchsorted(cells, ends), prepend=0) != len(self.columns) - 1).any():
            return None
        try:
            text = piece.decode()
            lines = text.split("\n")
            array = np.zeros((len(lines), 0))
            if places:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")  # numpy warns where it skips something
                    array = np.loadtxt(
                        lines, np.float64, comments=None, delimiter=self.delimiter, usecols=places, ndmin=2
                    )
        except (ValueError, Warning):
            return None
        if array.shape != (len(lines), len(places)) or not np.isfinite(array).all():
            return None
        flat = text.replace("\n", self.delimiter).split(self.delimiter) if words else []
        return array, [flat[at :: len(self.columns)] for at in words]

    def _slowly(
        self,
        rows: Iterator[list[str]],
        first: int,
        numbers: Sequence[str],
        places: list[int],
        words: list[int],
    ) -> Generator[Block]:
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
                at, column = (int(index) for index in wrong[0])
                cell = block[at][places[column]]
                raise DataError(
                    f"{self.path}, row {first + at}, column {numbers[column]!r} = {cell!r}: "
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

    def _rows(self, file: io.RawIOBase | io.BufferedIOBase | BinaryIO) -> Generator[list[str]]:
        text = io.TextIOWrapper(cast(BinaryIO, file), encoding="utf-8-sig", newline="")
        try:
            for row in csv.reader(text, delimiter=self.delimiter):
                if row:
                    yield row
        except UnicodeDecodeError:
            raise DataError(f"{self.path}: is not UTF-8") from None
        except csv.Error as error:
            raise DataError(f"{self.path}: is no CSV: {error}") from None
        finally:
            with suppress(ValueError):  # the file is its opener's to close, and may be closed already
                text.detach()


class _Joined(io.RawIOBase):
    """Pieces of bytes as a file to read from."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = piece
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
    """What is in a file, in pieces of about a mebibyte that end where a line ends."""
    rest: list[bytes] = []
    for chunk in chunks_of(file):
        cut = chunk.rfind(b"\n") + 1
        if not cut:
            rest.append(chunk)
            continue
        yield b"".join((*rest, chunk[:cut]))
        rest = [chunk[cut:]] if cut < len(chunk) else []
    if rest:
        yield b"".join(rest)


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

    def blocks(self, numbers: Sequence[str], strings: Sequence[str]) -> Generator[Block]:
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


def first_cell(table: Table, name: str) -> str:
    """What stands in the first row of a column."""
    with closing(table.blocks((), (name,))) as blocks:
        return next(blocks).strings[0][0]


def time_column(table: Table) -> str:
    """The column that says when a row was, by its name or its first value; "" where there is none."""
    for name in table.columns:
        if name.strip().lower() in TIME_NAMES:
            return name
    for name in table.columns:
        if name not in table.numeric:
            cell = first_cell(table, name)
            if _moment(cell) is not None:
                return name
    return ""


def moments(cells: Sequence[str], column: str, where: Path, first: int) -> NDArray[np.float64]:
    """Seconds since 1970 of times as ISO 8601 or plain numbers. Raises DataError naming the row."""
    found = _moments_at_once(cells)
    if found is not None:
        return found
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


def _moments_at_once(cells: Sequence[str]) -> NDArray[np.float64] | None:
    """As `moments`, where all are plain numbers or ISO 8601 of one length and without a zone; else None."""
    try:
        if _is_number(cells[0]):
            found = np.array(cells, dtype=np.float64)
            return found if np.isfinite(found).all() else None
        if len(set(map(len, cells))) != 1 or not 10 <= len(cells[0]) <= 26 or "-" in cells[0][8:]:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            times = np.array(cells, dtype="datetime64[us]")
    except (ValueError, Warning):
        return None
    return None if np.isnat(times).any() else times.astype(np.int64) / 1e6


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
