"""Writing, finding and dropping the checkpoints of a run.

A checkpoint is built in a hidden directory beside its place, every file flushed to the disk, then moved there
by one rename. At every instant a ``step-...`` directory is whole, and the one before it is still there.
"""

import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from quatrain._files import sync_directory, write_synced
from quatrain.checkpoint._manifest import MANIFEST, Manifest
from quatrain.checkpoint._tensors import write_group
from quatrain.config.check import check
from quatrain.errors import CheckpointError

FOLDER = "checkpoints"
_TEMPORARY = ".tmp-"  # what is being built or taken away; never read
_NEWER = ".new"  # takes the place of the checkpoint of the same step


class _Found(NamedTuple):
    step: int
    newer: bool
    path: Path


def save(
    run_dir: str | Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], meta: Mapping[str, Any]
) -> Path:
    """Write ``run_dir/checkpoints/step-<step>/`` whole or not at all; return it.

    Args:
        run_dir: directory of the run, made when missing. Only one process may save in it at a time.
        step: at least 0; a checkpoint of the same step is replaced once the new one is whole.
        tensors: group -> name -> tensor, for example ``{"model": model.state_dict()}``; a group is a plain
            word. Tensors that are one and the same are stored once.
        meta: plain values (strings, numbers, inf too, booleans, None, lists, dicts) for whoever reads it.

    When this returns, the checkpoint is on the disk: a loss of power doesn't take it back. A process that is
    killed at any instant leaves the earlier checkpoints whole, and its remains are removed by the next call.
    Raises CheckpointError when the disk is full or the directory can't be written; nothing is left behind
    then. Cost: one pass over the tensors, one of them in memory at a time.
    """
    check(step >= 0, "step", step, "must be at least 0")
    for group in tensors:
        check(re.fullmatch(r"\w+", group) is not None, "group", group, "must be a plain word")
    folder = Path(run_dir) / FOLDER
    final = folder / f"step-{step:08d}"
    temporary = folder / f"{_TEMPORARY}{final.name}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sync_directory(folder.parent)
        _settle(folder)
        temporary.mkdir()
        files = {group: write_group(temporary, group, named) for group, named in tensors.items()}
        text = Manifest(step=step, files=files, meta=dict(meta)).to_json()
        write_synced(temporary / MANIFEST, [text.encode()])
        sync_directory(temporary)
        place = final.with_name(final.name + _NEWER) if final.exists() else final
        os.rename(temporary, place)
        sync_directory(folder)
        _settle(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = error.strerror or error
        raise CheckpointError(
            f"checkpoint '{final}': cannot be written: {reason}; earlier ones are whole"
        ) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def latest(run_dir: str | Path) -> Path | None:
    """The newest checkpoint of a run, or None. Reads names only; `read` checks the content."""
    found = _found(Path(run_dir) / FOLDER)
    return found[-1].path if found else None


def prune(run_dir: str | Path, keep: int, protect: Collection[int | str | Path] = ()) -> list[Path]:
    """Remove all but the ``keep`` newest checkpoints and those in ``protect``; return the removed ones.

    ``protect`` holds steps or paths: the best one, the one a run was resumed from. A removal that is
    interrupted leaves no half checkpoint. Raises ConfigError for ``keep < 1``, CheckpointError where one
    can't be removed.
    """
    check(keep >= 1, "keep", keep, "must be at least 1")
    steps = {item for item in protect if isinstance(item, int)}
    names = {Path(item).name for item in protect if not isinstance(item, int)}
    old = _found(Path(run_dir) / FOLDER)[:-keep]
    dropped = [one.path for one in old if one.step not in steps and one.path.name not in names]
    for path in dropped:
        try:
            _take_away(path)
        except OSError as error:
            raise CheckpointError(f"checkpoint '{path}': cannot be removed: {error.strerror}") from error
    return dropped


def _found(folder: Path) -> list[_Found]:
    """The checkpoints in a folder, oldest first."""
    if not folder.is_dir():
        return []
    found = []
    for entry in folder.iterdir():
        match = re.fullmatch(r"step-(\d{8,})(\.new)?", entry.name)
        if match and entry.is_dir():
            found.append(_Found(int(match[1]), match[2] is not None, entry))
    return sorted(found)


def _settle(folder: Path) -> None:
    """Remove what was never finished, and move each replacement to the place of what it replaces."""
    for entry in folder.iterdir():
        if entry.name.startswith(_TEMPORARY):
            shutil.rmtree(entry)
    for one in _found(folder):
        if one.newer:
            place = one.path.with_name(one.path.name.removesuffix(_NEWER))
            if place.exists():
                _take_away(place)
            os.rename(one.path, place)
            sync_directory(folder)


def _take_away(path: Path) -> None:
    """Remove a checkpoint: first its name, in one step, then its files."""
    going = path.with_name(f"{_TEMPORARY}{path.name}.removed")
    os.rename(path, going)
    shutil.rmtree(going)
