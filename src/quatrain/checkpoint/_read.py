"""Reading a checkpoint: nothing in it is trusted before its size and SHA-256 are those of the manifest."""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quatrain._files import sha256_of
from quatrain.checkpoint._manifest import MANIFEST, read_manifest
from quatrain.checkpoint._store import FOLDER, latest
from quatrain.checkpoint._tensors import GroupFile, read_group
from quatrain.errors import CheckpointError


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files have been checked; ``meta`` equals what was saved with it."""

    path: Path
    step: int
    meta: dict[str, Any]
    _files: dict[str, GroupFile] = field(repr=False)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of its groups of tensors."""
        return tuple(self._files)

    def tensors(self, group: str, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """The tensors of a group by name. Raises CheckpointError where there is no such group."""
        if group not in self._files:
            raise CheckpointError(
                f"{self.path}: has no group {group!r}, only {', '.join(self._files) or 'none'}"
            )
        return read_group(self.path / self._files[group].file, self._files[group], device)


def read(path: str | Path, groups: Collection[str] | None = None) -> Checkpoint:
    """Open a checkpoint, or the newest one of a run's directory, and check it.

    ``groups`` are those whose files are checked and can then be read; all of them by default. Cost: one pass
    over these files. Raises CheckpointError, which says which file is missing, truncated, altered, foreign (a
    pickle for example) or of a newer version.
    """
    directory = _locate(Path(path))
    manifest = read_manifest(directory)
    files = {group: entry for group, entry in manifest.files.items() if groups is None or group in groups}
    for entry in files.values():
        _verify(directory / entry.file, entry)
    return Checkpoint(directory, manifest.step, manifest.meta, files)


def load_meta(path: str | Path) -> dict[str, Any]:
    """What was saved beside the tensors, without reading these. Raises CheckpointError as `read` does."""
    return read(path, groups=()).meta


def _locate(path: Path) -> Path:
    if path.is_dir():
        if (path / MANIFEST).exists():
            return path
        if (path / FOLDER).is_dir():
            newest = latest(path)
            if newest is None:
                raise CheckpointError(f"{path}: is a run without a checkpoint yet")
            return newest
        raise CheckpointError(f"{path}: is not a checkpoint: {MANIFEST} is missing")
    if not path.exists():
        raise CheckpointError(f"{path}: does not exist")
    try:
        with open(path, "rb") as file:
            start = file.read(2)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    if start in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise CheckpointError(
            f"{path}: is a PyTorch file (pickle), which can run code when read; Quatrain reads none"
        )
    raise CheckpointError(f"{path}: is a file; a checkpoint is a directory with {MANIFEST}")


def _verify(path: Path, entry: GroupFile) -> None:
    try:
        size = path.stat().st_size
        if size != entry.bytes:
            what = "truncated" if size < entry.bytes else "altered"
            raise CheckpointError(f"{path}: is {what}: has {size} bytes, must have {entry.bytes}")
        if sha256_of(path) != entry.sha256:
            raise CheckpointError(
                f"{path}: was altered: its SHA-256 is not {entry.sha256[:12]}... as the manifest says"
            )
    except FileNotFoundError:
        raise CheckpointError(f"{path}: is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
