"""A directory per class: ``cats/a.wav dogs/b.wav``, also below ``train/ valid/ test/``."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from quatrain.data.corpus import ending, open_file, reading
from quatrain.data.readers import audio
from quatrain.data.readers._item import Item
from quatrain.errors import DataError

_PARTS = {"train": "train", "valid": "valid", "val": "valid", "dev": "valid", "test": "test"}


def classes(root: Path) -> dict[str, list[tuple[str, Path]]]:
    """By class the parts and files in it; empty where the directory has another shape.

    The shape: no files beside the class folders, only files in them, at least two classes.
    """
    folders = _folders(root)
    if folders is None:
        return {}
    if folders and all(folder.name.lower() in _PARTS for folder in folders):
        pairs = [(_PARTS[f.name.lower()], inner) for f in folders for inner in _folders(f) or []]
    else:
        pairs = [("", folder) for folder in folders]
    found: dict[str, list[tuple[str, Path]]] = {}
    for part, folder in pairs:
        entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
        if not entries or not all(entry.is_file() for entry in entries):
            return {}
        found.setdefault(folder.name, []).extend((part, entry) for entry in entries)
    return dict(sorted(found.items())) if len(found) > 1 else {}


def read(found: dict[str, list[tuple[str, Path]]], features: str) -> Iterator[Item]:
    """Every file as a labelled sequence, in the order of classes and names."""
    for label, files in found.items():
        for part, path in files:
            if ending(path) in audio.ENDINGS:
                values, rate = audio.read(path, features)
                yield Item(values, label, str(path), part, rate=rate)
            else:
                yield Item(text(path), label, str(path), part)


def text(path: Path) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """The bytes of a text file. Raises DataError where it is empty or binary."""
    with reading(path), open_file(path) as file:
        content = file.read()
    if not content:
        raise DataError(f"{path}: is empty")
    if b"\0" in content[:1024]:
        raise DataError(f"{path}: is binary, not text (a NUL in its first 1024 bytes)")
    return np.frombuffer(content, dtype=np.uint8)


def _folders(root: Path) -> list[Path] | None:
    entries = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
    return entries if all(entry.is_dir() for entry in entries) else None
