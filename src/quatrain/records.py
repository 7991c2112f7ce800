"""The rows a run writes and a report reads: versioned, append-only, strict JSON Lines.

Every row is ``{"v": 1, "kind": ..., ...}``. A number that is NaN or infinite is written as null. A row counts
once its line has ended, so a process that dies while writing loses at most the row it was writing.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from quatrain._files import naming, sync
from quatrain.errors import DataError

VERSION = 1
_START = b'{"v":'  # of every row


class Writer:
    """Appends rows to a file, which is made, with its folders, where it does not exist.

    A torn last line, left by a process that was killed, is cut off. ``truncate_to`` cuts the file at an
    ``offset()`` of earlier, so that a run which goes on from a checkpoint drops the rows written after it.
    Raises DataError where the file holds something else, is shorter than ``truncate_to`` or has no row that
    ends there, and OSError where it cannot be written.
    """

    def __init__(self, path: str | Path, truncate_to: int | None = None) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = open(self.path, "ab")  # noqa: SIM115 - closed by close()
        try:
            end = _whole(self.path) if truncate_to is None else _checked(self.path, truncate_to)
            self._file.truncate(end)
            self._file.seek(0, os.SEEK_END)
        except BaseException:
            self._file.close()
            raise

    def write(self, kind: str, **fields: Any) -> None:
        """Append one row and hand it to the system, so that it outlives this process. Raises OSError.

        Fields: strings, numbers, booleans, None, lists and dicts of these; numpy and torch scalars become
        numbers. Raises TypeError for anything else.
        """
        row = {"v": VERSION, "kind": kind} | {key: _strict(value) for key, value in fields.items()}
        line = json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        # A file name that is no UTF-8 holds lone surrogates; backslashreplace makes them JSON escapes.
        try:
            self._file.write(line.encode("utf-8", "backslashreplace") + b"\n")
            self._file.flush()
        except OSError as error:  # a full disk does not say whose it is
            error.filename = error.filename or str(self.path)
            raise

    def offset(self) -> int:
        """Bytes written so far; they are on the disk when this returns, so a checkpoint may count on them."""
        sync(self._file)
        return self._file.tell()

    def close(self) -> None:
        """Close the file. Closing twice is fine."""
        with naming(self.path):
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read(path: str | Path) -> Iterator[dict[str, Any]]:
    """The rows of a file in order, read as they are asked for; a torn last line is left out.

    Raises DataError naming file and line where a complete line is no row or a row has another version,
    and OSError where the file cannot be read.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            row = _row(line)
            if row is None:
                raise DataError(f"{path}, line {number}: is not a row of records")
            if row.get("v") != VERSION:
                found = row.get("v")
                raise DataError(
                    f"{path}, line {number}: row of version {found!r}, this reads version {VERSION}"
                )
            yield row


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "kind" in row else None


def _whole(path: Path) -> int:
    """Bytes up to the end of the last complete row; never cuts a file that does not look like records."""
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    last, torn = content[content.rfind(b"\n", 0, max(end - 1, 0)) + 1 : end], content[end:]
    started = torn.startswith(_START[: len(torn)]) or not torn.strip(b"\0")  # zeros: power was lost
    if (last and _row(last) is None) or not started:
        raise DataError(f"{path}: is not a file of records, so nothing is appended to it")
    return end


def _checked(path: Path, offset: int) -> int:
    size = path.stat().st_size
    if not 0 <= offset <= size:
        raise DataError(f"{path}: has {size} bytes, the checkpoint counts on {offset}: rows have been lost")
    if offset:
        with open(path, "rb") as file:
            file.seek(offset - 1)
            if file.read(1) != b"\n":
                raise DataError(
                    f"{path}: no row ends at byte {offset}, the checkpoint counts on it: rows were changed"
                )
    return offset


def _strict(value: Any) -> Any:
    """``value`` as strict JSON can hold it."""
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if hasattr(value, "item"):  # a scalar of numpy or torch, neither of which this module imports
        return _strict(value.item())
    raise TypeError(f"a record cannot hold a {type(value).__name__}: {value!r}")
