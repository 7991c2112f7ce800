"""The records of a comparison, written stage by stage so that a killed one goes on after its last stage."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from quatrain.records import Writer, read

DONE = "done"  # kind of the row that ends a stage
Row = Mapping[str, Any]


class Journal:
    """``records.jsonl`` as a list of finished stages.

    A stage's rows are written together and followed by a row ``done`` with its name, what later stages need
    to know of it (``outcome``), and the seconds it took. Rows behind the last ``done`` belong to a stage that
    was cut off: they are dropped when the journal is opened, so a stage has left either all of its rows or
    none. Raises DataError for a file that holds no records, OSError where it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        rows, end = _finished(path)
        self._writer = Writer(path, truncate_to=end)
        self._outcomes: dict[str, Row] = {}
        self.seconds: dict[str, float] = {}
        for row in rows:
            if row["kind"] == DONE:
                self._note(row)

    def __contains__(self, stage: str) -> bool:
        return stage in self._outcomes

    def outcome(self, stage: str) -> Row:
        """What a finished stage left for later ones."""
        return self._outcomes[stage]

    def finish(
        self, stage: str, rows: Sequence[tuple[str, Row]], outcome: Row | None = None, seconds: float = 0.0
    ) -> None:
        """Write a stage: (kind, fields) of its rows, then its end; all on the disk when this returns."""
        for kind, fields in rows:
            self._writer.write(kind, **fields)
        done = {"stage": stage, "outcome": outcome or {}, "seconds": seconds}
        self._writer.write(DONE, **done)
        self._writer.offset()
        self._note(done)

    def _note(self, row: Row) -> None:
        self._outcomes[row["stage"]] = row["outcome"]
        self.seconds[row["stage"]] = row["seconds"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()


def _finished(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The rows up to the end of the last finished stage, and the bytes they take."""
    if not path.exists() or os.path.getsize(path) == 0:
        return [], 0
    rows: list[dict[str, Any]] = []
    kept, offset, end = 0, 0, 0
    with open(path, "rb") as lines:
        for line, row in zip(lines, read(path), strict=False):
            rows.append(row)
            offset += len(line)
            if row["kind"] == DONE:
                kept, end = len(rows), offset
    return rows[:kept], end
