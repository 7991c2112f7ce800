"""Sequence files: labelled sequences, or series, as memory-mapped arrays with a manifest that says all.

``values.bin`` holds the steps of all sequences one after the other (float32, or tokens),
``offsets.bin`` where each ends (int64), ``targets.bin`` and ``target_offsets.bin`` their targets (int32),
``parts.bin`` the part of each. The manifest is written last: where there is none, there is no such file.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from quatrain.config.check import check
from quatrain.config.schema import from_dict, to_dict
from quatrain.data.tokenizer import JSON, Bytes, Tokenizer, dtype_of, read_json
from quatrain.errors import ConfigError, DataError

MANIFEST, VERSION, FORMAT = "manifest.json", 1, "quatrain sequences"
FILES = {
    "values": None,
    "offsets": np.dtype("<i8"),
    "targets": np.dtype("<i4"),
    "target_offsets": np.dtype("<i8"),
    "parts": np.dtype("u1"),
}
PARTS = ("train", "valid", "test")
WAVES = 6  # channels of the calendar
Part = Literal["train", "valid", "test"]


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """What the numbers of a file mean; saved with every checkpoint, so that a model can read new inputs.

    Attributes:
        task: as in `quatrain.data.task.TASKS`.
        channels: numbers of a step; 0 where a step is a token of text.
        tokenizer: of a text: "bytes", or "bpe", an encoding that lies beside the file and in checkpoints.
        vocab: different tokens.
        columns: names of the channels, targets first (series only).
        targets: how many of them are forecast.
        labels: classes or tags in order of their number; of a transcription, symbols from number 1 on.
        mean, std: of each channel over the training part; what a model reads is (x - mean) / std.
        naive: of each target, mean of |x_t - x_(t - season)| over the training part in units of std.
        horizon, season: of a forecast.
        time: name of the column with times, or "".
        calendar: whether the last channels are the calendar's.
        inputs: what a model reads of a series, "level" or "difference" (see `normalised`).
        change: of each channel, root mean square of x_t - x_(t-1) over the training part in units of std.
        features: how audio was read ("mel", "raw"); "" for anything else.
        rate: its samples of a second.
    """

    task: str
    channels: int = 0
    tokenizer: str = "bytes"
    vocab: int = 256
    columns: tuple[str, ...] = ()
    targets: int = 0
    labels: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    naive: tuple[float, ...] = ()
    horizon: int = 0
    season: int = 0
    time: str = ""
    calendar: bool = False
    inputs: str = "level"
    change: tuple[float, ...] = ()
    features: str = ""
    rate: int = 0

    @property
    def anchors(self) -> int:
        """Leading numbers of a step that a forecast starts from and does not read: its targets' levels."""
        return self.targets if self.inputs == "difference" else 0

    @property
    def width(self) -> int:
        """Numbers of a step as a model gets it; 0 where a step is a token of text."""
        return self.channels + self.anchors

    def normalised(self, values: NDArray[Any], before: NDArray[Any] | None = None) -> NDArray[Any]:
        """``(T, C)`` as a model gets it, ``(T, width)`` float32; tokens stay as they are.

        Level: (x - mean) / std. Difference: the targets' levels, then (x_t - x_(t-1)) / (std change) of every
        channel, the calendar's as levels. The difference of the first step is to ``before (C,)``, the
        step before; without one it is 0.
        """
        if not self.channels:
            return values
        mean, std = np.asarray(self.mean), np.asarray(self.std)
        level = (np.asarray(values, np.float64) - mean) / std
        if self.inputs == "level":
            scaled: NDArray[np.float32] = level.astype(np.float32)
            return scaled
        plain = self.channels - (WAVES if self.calendar else 0)
        first = level[:1] if before is None else (np.asarray(before, np.float64)[None] - mean) / std
        moved = np.diff(level[:, :plain], axis=0, prepend=first[:, :plain]) / np.asarray(self.change[:plain])
        parts = (level[:, : self.targets], moved, level[:, plain:])
        joined: NDArray[np.float32] = np.concatenate(parts, 1).astype(np.float32)
        return joined


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of ``manifest.json``."""

    format: Literal["quatrain sequences"] = "quatrain sequences"
    version: int = VERSION
    name: str
    source: str
    description: str
    source_digest: str
    settings: str
    meaning: Meaning
    sequences: int
    steps: int
    longest: int
    counts: tuple[int, ...]
    fractions: tuple[float, ...]
    digest: str


class SequenceFile:
    """Prepared sequences; `quatrain.data.prepare.prepare` makes one and `SequenceFile.open` finds it again.

    Reading costs memory only for what is read. ``meaning`` says what the numbers stand for, ``digest`` is the
    SHA-256 of all of it in hex.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest, self.meaning = path, manifest, manifest.meaning
        self.name, self.description, self.digest = manifest.name, manifest.description, manifest.digest
        self.task = self.meaning.task
        self.vocab = 0 if self.meaning.channels else self.meaning.vocab
        channels = self.meaning.channels
        values = _mapped(path / "values.bin", np.dtype("<f4") if channels else dtype_of(self.meaning.vocab))
        self._values = values.reshape(-1, channels) if channels else values
        self._offsets = _mapped(path / "offsets.bin", np.dtype("<i8"))
        self._targets = _mapped(path / "targets.bin", np.dtype("<i4"))
        self._target_offsets = _mapped(path / "target_offsets.bin", np.dtype("<i8"))
        self._parts = _mapped(path / "parts.bin", np.dtype("u1"))

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """The sequence file in a directory.

        Raises DataError where it is missing, truncated, of another version or no sequence file.
        """
        path = Path(path)
        file = cls(path, _read_manifest(path / MANIFEST))
        manifest = file.manifest
        sizes = {
            "values.bin": (len(file._values), manifest.steps),
            "offsets.bin": (len(file._offsets), manifest.sequences),
            "target_offsets.bin": (len(file._target_offsets), manifest.sequences),
            "parts.bin": (len(file._parts), manifest.sequences),
        }
        for name, (has, must) in sizes.items():
            if has != must:
                raise DataError(
                    f"{path / name}: is not the one of its manifest: holds {has}, must hold {must}"
                )
        return file

    def __len__(self) -> int:
        return self.manifest.sequences

    @property
    def tokenizer(self) -> Tokenizer:
        """What made the tokens of texts. Raises DataError where its file is missing or altered."""
        return read_json(self.path / JSON) if self.meaning.tokenizer == "bpe" else Bytes()

    def indices(self, part: Part) -> NDArray[np.int64]:
        """Numbers of the sequences of a part, in order."""
        check(part in PARTS, "part", part, f"must be one of {', '.join(PARTS)}")
        return np.flatnonzero(self._parts == PARTS.index(part))

    def lengths(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Steps of these sequences."""
        ends = self._offsets[indices]
        return ends - np.where(indices > 0, self._offsets[indices - 1], 0)

    def sequence(self, index: int, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Steps ``start .. stop`` of a sequence, normalised: ``(T, C)`` float32 or ``(T,)`` tokens."""
        first, last = self._range(self._offsets, index)
        end = last if stop is None else first + stop
        return self.meaning.normalised(np.asarray(self._values[first + start : end]))

    def target(self, index: int) -> NDArray[np.int32]:
        """The numbers that a sequence is labelled with: one class, or one for each step or symbol."""
        first, last = self._range(self._target_offsets, index)
        return np.asarray(self._targets[first:last])

    def classes(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The class of each of these sequences, where each has one."""
        return self._targets[indices].astype(np.int64)

    def spans(self, part: Part) -> list[tuple[int, int, int]]:
        """Of every series its number, and where a part begins and ends in it."""
        check(part in PARTS, "part", part, f"must be one of {', '.join(PARTS)}")
        at = PARTS.index(part)
        lengths = self.lengths(np.arange(len(self)))
        return [(i, *ranges(int(n), self.manifest.fractions)[at]) for i, n in enumerate(lengths)]

    @property
    def splits(self) -> dict[str, int]:
        """Sequences of each part; of series, steps."""
        return dict(zip(PARTS, self.manifest.counts, strict=True))

    def _range(self, offsets: NDArray[np.int64], index: int) -> tuple[int, int]:
        return int(offsets[index - 1]) if index else 0, int(offsets[index])


def ranges(steps: int, fractions: Sequence[float]) -> tuple[tuple[int, int], ...]:
    """Where training, validation and test part lie. The tiny term keeps 0.1 * 1000 from being 99."""
    test = int(steps * fractions[2] + 1e-9)
    valid = int(steps * fractions[1] + 1e-9)
    train = steps - valid - test
    return (0, train), (train, train + valid), (train + valid, steps)


def is_sequence_file(path: str | Path) -> bool:
    """Whether a directory holds a sequence file (not a token file, not nothing)."""
    try:
        values = json.loads((Path(path) / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and values.get("format") == FORMAT


def meaning_to_dict(meaning: Meaning) -> dict[str, Any]:
    """Plain values for a checkpoint."""
    return to_dict(meaning)


def meaning_from_dict(values: object) -> Meaning:
    """The meaning that a checkpoint holds. Raises DataError where it is none."""
    if not isinstance(values, dict):
        raise DataError("checkpoint: does not say what its inputs and labels mean")
    try:
        return from_dict(Meaning, values, "meaning")
    except ConfigError as error:
        raise DataError(f"checkpoint: {'; '.join(str(error).splitlines())}") from None


def _mapped(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    if not path.is_file():
        raise DataError(f"{path}: is missing; delete {path.parent} to prepare the data again")
    size = path.stat().st_size
    if size % dtype.itemsize:
        raise DataError(f"{path}: is truncated: has {size} bytes, each item {dtype.itemsize}")
    return np.memmap(path, dtype=dtype, mode="r") if size else np.zeros(0, dtype)


def _read_manifest(path: Path) -> Manifest:
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path.parent}: is no sequence file: {path.name} is missing") from None
    except ValueError:
        raise DataError(f"{path}: is no JSON: truncated or altered") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise DataError(f"{path}: is not the manifest of a sequence file")
    if values.get("version") != VERSION:
        raise DataError(f"{path}: is of version {values.get('version')!r}, this reads version {VERSION}")
    try:
        return from_dict(Manifest, values)
    except ConfigError as error:
        raise DataError(f"{path}: {'; '.join(str(error).splitlines())}") from None
