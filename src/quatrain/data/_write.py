"""Writing a sequence file: one pass over the items, then parts, labels, normalisation and digest in place."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from quatrain._files import sha256_of, sync, write_atomic
from quatrain.config.check import check
from quatrain.config.schema import to_dict
from quatrain.data._encode import NEW, Encoding, encode
from quatrain.data.readers._item import Item, text_of
from quatrain.data.sequences import FILES, MANIFEST, PARTS, Manifest, Meaning, SequenceFile, ranges
from quatrain.data.tokenizer import JSON
from quatrain.errors import DataError

IGNORE = -100  # a step without a tag
_GOLDEN = (5**0.5 - 1) / 2
_UNNAMED = 3  # part of a sequence whose source names none
_PIECE = 1 << 16  # steps or sequences handled at a time


def write(
    out: Path,
    items: Iterable[Item],
    manifest: Manifest,
    like: Meaning | None = None,
    encoding: Encoding | None = None,
) -> SequenceFile:
    """Write ``items`` to ``out`` and complete ``manifest``: a failure leaves no file behind.

    With ``like``, the meaning of a trained model, its labels and normalisation are kept and all is the test
    part: data to judge that model by. With ``encoding`` texts become its tokens. Raises DataError for a
    source that cannot be trained on: nothing in it, one class only, labels that appear in the test part
    alone, sequences of different widths, a transcript longer than its recording. Raises ConfigError for an
    encoding of what is no text.
    """
    made = [out / name for name in (*(f"{name}.bin" for name in FILES), *NEW, JSON)]
    try:
        found = _Pass(like or manifest.meaning, manifest.source, like is not None, encoding)
        with ExitStack() as stack:
            files = {name: stack.enter_context(open(out / f"{name}.bin", "wb")) for name in FILES}
            found.run(items, files)
            for file in files.values():
                sync(file)
        if like is None:
            done = _finish(out, manifest, found, encoding)
        else:
            done = _finish_like(out, manifest, found, like, encoding)
        write_atomic(out / MANIFEST, json.dumps(to_dict(done), indent=1, ensure_ascii=True) + "\n")
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        raise
    return SequenceFile.open(out)


class _Pass:
    """The pass over all items: values to disk as they come, labels to numbers in order of appearance."""

    def __init__(self, meaning: Meaning, source: str, fixed: bool, encoding: Encoding | None) -> None:
        self.meaning, self.source, self.fixed, self.encoding = meaning, source, fixed, encoding
        first = 1 if fixed and meaning.task == "transcribe" else 0
        self.labels = {label: number for number, label in enumerate(meaning.labels, first)}
        self.channels = meaning.channels if fixed else -1
        self.steps = self.sequences = self.longest = self.symbols = 0
        self.rate = meaning.rate
        self.first = "the model's training data"  # where the first item stands
        self.named = False  # whether any item names its part

    def run(self, items: Iterable[Item], files: Mapping[str, BinaryIO]) -> None:
        begun = 0
        for item in items:
            self._check(item)
            files["values"].write(np.ascontiguousarray(item.values).data)
            self.steps += len(item.values)
            if not item.last:
                continue
            length, begun = self.steps - begun, self.steps
            numbers = self._numbers(item, length)
            self.symbols += len(numbers)
            self.sequences += 1
            self.longest = max(self.longest, length)
            self.named |= bool(item.part)
            files["targets"].write(np.asarray(numbers, dtype="<i4").tobytes())
            files["offsets"].write(np.int64(self.steps).tobytes())
            files["target_offsets"].write(np.int64(self.symbols).tobytes())
            files["parts"].write(bytes([PARTS.index(item.part) if item.part else _UNNAMED]))
        if not self.sequences:
            raise DataError(f"data source {self.source!r}: holds no sequence")

    def _check(self, item: Item) -> None:
        if not len(item.values):
            raise DataError(f"{item.where}: has no steps")
        channels = item.values.shape[1] if item.values.ndim == 2 else 0
        if self.encoding:
            self._check_text(item, self.encoding.name)
        if self.channels < 0:
            self.channels, self.rate, self.first = channels, item.rate, item.where
        elif channels != self.channels:
            here, there = (f"{n} numbers a step" if n else "text" for n in (channels, self.channels))
            raise DataError(f"{item.where}: has {here}, {self.first} has {there}")
        if item.rate != self.rate:
            here, there = (f"{rate} samples a second" for rate in (item.rate, self.rate))
            raise DataError(f"{item.where}: has {here}, {self.first} has {there}: must be one rate")

    def _check_text(self, item: Item, tokenizer: str) -> None:
        """Where a tokenizer was asked for, that there is text in UTF-8 with one label for all of it."""
        text = item.values.ndim == 1 and self.meaning.task == "classify"
        check(text or not tokenizer, "data.tokenizer", tokenizer, "is for texts, each with one label")
        if text:
            text_of(item.values.tobytes(), item.where)

    def _numbers(self, item: Item, length: int) -> list[int]:
        task, target = self.meaning.task, item.target
        if task == "forecast":
            return []
        if target is None:
            raise DataError(f"{item.where}: has no label, which the task {task} needs")
        if task == "classify":
            if not isinstance(target, str):
                raise DataError(f"{item.where}: has one label for each step: that is the task tag")
            return [self._number(target, item)]
        if task == "tag":
            if isinstance(target, str):
                raise DataError(f"{item.where}: has one label: the task tag needs labels, one for each step")
            return [self._number(tag, item) if tag else IGNORE for tag in target]
        if not isinstance(target, str):
            raise DataError(f"{item.where}: the task transcribe needs a text")
        needed = len(target) + sum(a == b for a, b in pairwise(target))
        if needed > length:
            few = f"{length} steps are too few for a text of {len(target)} symbols"
            raise DataError(f"{item.where}: {few} (needs {needed})")
        return [self._number(symbol, item) for symbol in target]

    def _number(self, label: str, item: Item) -> int:
        if self.fixed and label not in self.labels:
            known = ", ".join(list(self.labels)[:10]) + (", ..." if len(self.labels) > 10 else "")
            raise DataError(f"{item.where}: label {label!r}: the model knows only {known}")
        return self.labels.setdefault(label, len(self.labels))


def _finish(out: Path, manifest: Manifest, found: _Pass, encoding: Encoding | None) -> Manifest:
    meaning = replace(manifest.meaning, channels=found.channels, rate=found.rate)
    parts = np.memmap(out / "parts.bin", dtype="u1", mode="r+")
    targets: NDArray[np.int32] = (
        np.memmap(out / "targets.bin", dtype="<i4", mode="r+") if found.symbols else np.zeros(0, np.int32)
    )
    if meaning.task == "forecast":
        if not meaning.targets:  # a source without names: every channel is forecast
            names = tuple(str(channel + 1) for channel in range(meaning.channels))
            meaning = replace(meaning, columns=names, targets=meaning.channels)
        counts = _series_counts(out, manifest.fractions)
        parts[:] = 0
    else:
        labels = _sorted(found.labels)
        meaning = replace(meaning, labels=tuple(labels))
        _renumber(targets, found.labels, labels, 1 if meaning.task == "transcribe" else 0)
        classes = targets if meaning.task == "classify" else np.zeros(len(parts), np.int32)
        _assign(parts, classes, len(labels), manifest, found)
        counts = tuple(int((parts == at).sum()) for at in range(3))
        _check_labels(out, parts, targets, meaning, found)
        if encoding and meaning.task == "classify" and not meaning.channels:
            meaning = _encoded(out, parts, found, meaning, encoding)
    for at, name in enumerate(PARTS):
        if not counts[at]:
            few = f"{found.sequences} sequences are too few: the {name} part is empty"
            raise DataError(f"data source {found.source!r}: {few}")
    if meaning.channels:
        mean, std = _moments(out, meaning, manifest.fractions, parts)
        meaning = replace(meaning, mean=tuple(map(float, mean)), std=tuple(map(float, std)))
        if meaning.task == "forecast":
            naive, change = _changes(out, meaning, manifest.fractions)
            meaning = replace(meaning, naive=naive, change=change)
    for mapped in (parts, targets):
        if isinstance(mapped, np.memmap):
            mapped.flush()
    return _completed(out, manifest, found, meaning, counts)


def _encoded(
    out: Path, parts: NDArray[np.uint8], found: _Pass, meaning: Meaning, encoding: Encoding
) -> Meaning:
    tokenizer, found.steps, found.longest = encode(out, parts, encoding)
    return replace(meaning, tokenizer=tokenizer.name, vocab=tokenizer.vocab)


def _finish_like(
    out: Path, manifest: Manifest, found: _Pass, like: Meaning, encoding: Encoding | None
) -> Manifest:
    parts = np.memmap(out / "parts.bin", dtype="u1", mode="r+")
    parts[:] = 2
    parts.flush()
    if encoding:
        _encoded(out, parts, found, like, encoding)
    whole = found.steps if like.task == "forecast" else found.sequences
    return _completed(out, replace(manifest, fractions=(0.0, 0.0, 1.0)), found, like, (0, 0, whole))


def _completed(
    out: Path, manifest: Manifest, found: _Pass, meaning: Meaning, counts: tuple[int, ...]
) -> Manifest:
    digest = hashlib.sha256(json.dumps(to_dict(meaning)).encode())
    for name in FILES:
        digest.update(sha256_of(out / f"{name}.bin").encode())
    return replace(
        manifest,
        meaning=meaning,
        sequences=found.sequences,
        steps=found.steps,
        longest=found.longest,
        counts=counts,
        digest=digest.hexdigest(),
    )


def _sorted(labels: Iterable[str]) -> list[str]:
    """Labels in the order of people: numbers by value, words by letters."""

    def order(label: str) -> tuple[int, float, str]:
        try:
            return 0, float(label), label
        except ValueError:
            return 1, 0.0, label

    return sorted(labels, key=order)


def _renumber(targets: NDArray[np.int32], found: dict[str, int], labels: list[str], first: int) -> None:
    table = np.empty(len(labels), dtype=np.int32)
    for number, label in enumerate(labels, first):
        table[found[label]] = number
    for at in range(0, len(targets), _PIECE):
        piece = targets[at : at + _PIECE]
        piece[:] = np.where(piece >= 0, table[np.maximum(piece, 0)], piece)


def _assign(
    parts: NDArray[np.uint8], classes: NDArray[np.int32], count: int, manifest: Manifest, found: _Pass
) -> None:
    """Give every sequence its part: the one its source names, else by its place among those of its class.

    Sequence k of a class lies at frac(start + k golden ratio) of [0, 1), which fills it evenly: training part
    first, then validation, then test. The start is a hash of the label, such that the first lies in training.
    """
    train, valid, _ = manifest.fractions
    cut = np.array([train, train + valid])
    if found.named:
        has = {int(part) for part in np.unique(parts)}
        if _UNNAMED in has:
            raise DataError(
                f"data source {found.source!r}: some sequences name their part (split), others don't"
            )
        if 2 not in has:
            raise DataError(f"data source {found.source!r}: names parts, and none is test")
        if 1 in has:
            return
        cut = np.array([train / (train + valid), 1.0])  # the validation part is taken from the training part
    seen = np.zeros(max(1, count), dtype=np.int64)
    for at in range(0, len(parts), _PIECE):
        piece, kinds = parts[at : at + _PIECE], classes[at : at + _PIECE]
        for index, kind in enumerate(kinds):
            if found.named and piece[index] != 0:
                continue
            place = (_start(int(kind)) * cut[0] + seen[kind] * _GOLDEN) % 1.0
            piece[index] = int(np.searchsorted(cut, place, side="right"))
            seen[kind] += 1


def _start(kind: int) -> float:
    return int.from_bytes(hashlib.sha256(str(kind).encode()).digest()[:6], "little") / 2**48


def _check_labels(
    out: Path, parts: NDArray[np.uint8], targets: NDArray[np.int32], meaning: Meaning, found: _Pass
) -> None:
    labels = meaning.labels
    source = f"data source {found.source!r}"
    if meaning.task == "classify" and len(labels) < 2:
        raise DataError(f"{source}: has one class only, {labels[0]!r}: nothing to tell apart")
    if meaning.task == "classify" and len(labels) > max(20, found.sequences // 2):
        raise DataError(
            f"{source}: {len(labels)} labels for {found.sequences} sequences: these are no classes"
        )
    first = 1 if meaning.task == "transcribe" else 0
    ends = np.memmap(out / "target_offsets.bin", dtype="<i8", mode="r")
    sizes = np.diff(ends, prepend=0)
    counts = np.zeros((len(labels) + first, 4), dtype=np.int64)
    for at in range(0, len(parts), _PIECE):
        low, high = (int(ends[at - 1]) if at else 0), int(ends[min(at + _PIECE, len(ends)) - 1])
        numbers = targets[low:high]
        where = np.repeat(parts[at : at + _PIECE], sizes[at : at + _PIECE])
        scored = numbers >= 0
        np.add.at(counts, (numbers[scored], where[scored]), 1)
    for number, label in enumerate(labels, first):
        if counts[number, 0] == 0 and (found.named or meaning.task == "classify"):
            others = " and ".join(PARTS[at] for at in (1, 2) if counts[number, at])
            raise DataError(f"{source}: label {label!r} appears only in the {others} part, never in training")


def _series_counts(out: Path, fractions: tuple[float, ...]) -> tuple[int, ...]:
    ends = np.fromfile(out / "offsets.bin", dtype="<i8")
    lengths = np.diff(ends, prepend=0)
    return tuple(sum(ranges(int(n), fractions)[at][1] - ranges(int(n), fractions)[at][0] for n in lengths)
                 for at in range(3))  # fmt: skip


def _training(
    out: Path, meaning: Meaning, fractions: tuple[float, ...], parts: NDArray[np.uint8] | None
) -> Iterator[NDArray[np.float64]]:
    """Values of the training part ``(T, C)`` in pieces, in order.

    Read, not mapped: mapped pages would count as memory of this process until the system wants them back.
    """
    row = 4 * meaning.channels
    ends = np.memmap(out / "offsets.bin", dtype="<i8", mode="r")
    with open(out / "values.bin", "rb") as file:
        for index, end in enumerate(ends):
            first = int(ends[index - 1]) if index else 0
            if parts is None:
                end = first + ranges(int(end) - first, fractions)[0][1]
            elif parts[index] != 0:
                continue
            file.seek(first * row)
            for at in range(first, int(end), _PIECE):
                block = file.read((min(at + _PIECE, int(end)) - at) * row)
                yield np.frombuffer(block, dtype="<f4").reshape(-1, meaning.channels).astype(np.float64)


def _moments(
    out: Path, meaning: Meaning, fractions: tuple[float, ...], parts: NDArray[np.uint8]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean and standard deviation of each channel over the training part (Chan et al. 1979, in pieces)."""
    named = None if meaning.task == "forecast" else parts
    count, mean, square = 0, np.zeros(meaning.channels), np.zeros(meaning.channels)
    for piece in _training(out, meaning, fractions, named):
        here, total = piece.mean(0), count + len(piece)
        square += np.square(piece - here).sum(0) + np.square(here - mean) * count * len(piece) / total
        mean, count = mean + (here - mean) * len(piece) / total, total
    std = np.sqrt(square / max(1, count))
    flat = ~(std > 1e-8 * np.maximum(1, np.abs(mean)))  # a channel that never moves
    return mean, np.where(flat, 1.0, std)


def _changes(
    out: Path, meaning: Meaning, fractions: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Over the training part, in units of std: mean of |x_t - x_(t - season)| of each target, and root mean
    square of x_t - x_(t-1) of each channel (1 where it never moves).

    The season's last rows are held between pieces, so that a season may be longer than a piece.
    """
    targets, season = meaning.targets, meaning.season
    total, count = np.zeros(targets), 0
    square, moves = np.zeros(meaning.channels), 0
    held = np.zeros((0, meaning.channels))
    for piece in _training(out, meaning, fractions, None):
        rows = np.concatenate((held, piece))
        moved = np.diff(rows[max(0, len(held) - 1) :], axis=0)
        square, moves = square + np.square(moved).sum(0), moves + len(moved)
        if len(rows) > season:
            total += np.abs(rows[season:, :targets] - rows[:-season, :targets]).sum(0)
            count += len(rows) - season
        held = rows[-season:]
    scale = np.asarray(meaning.std)
    change = np.sqrt(square / max(1, moves)) / scale
    change = np.where(change > 1e-8, change, 1.0)
    naive = total / max(1, count) / scale[:targets]
    return tuple(map(float, naive)), tuple(map(float, change))


__all__ = ["IGNORE", "write"]
