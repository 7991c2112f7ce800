"""The directory of one run: whose it is, who writes in it, and what it says about itself.

``config.toml``, ``records.jsonl``, ``checkpoints/step-<n>/`` and, where the run prepared its data, ``data/``.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from quatrain._files import write_atomic
from quatrain.checkpoint import latest, read
from quatrain.config.schema import digest, from_dict, to_dict
from quatrain.config.toml import dump_toml, load_toml
from quatrain.errors import ConfigError
from quatrain.train.config import RunConfig

CONFIG, RECORDS, DATA, LOCK = "config.toml", "records.jsonl", "data", ".lock"
_OURS = {CONFIG, RECORDS, DATA, LOCK, "checkpoints"}


def default_out(config: RunConfig, data_name: str) -> Path:
    """``runs/<data name>-<pattern>-<config digest>``: the same settings find the same run again."""
    pattern = "-".join(config.model.pattern.split())
    return Path("runs") / f"{data_name}-{pattern}-{digest(config)}"


@contextmanager
def claimed(out: Path, config: object) -> Iterator[None]:
    """Hold ``out`` for this config, alone; what a start that failed had made there is taken away again.

    The lock is the kernel's, so a killed process leaves none behind. Raises ConfigError when another process
    trains here, another config was trained here, or the directory holds something else; OSError when it can't
    be made.
    """
    if out.is_dir() and not (out / CONFIG).exists():
        strangers = sorted({entry.name for entry in out.iterdir() if not entry.name.startswith(".")} - _OURS)
        if strangers:
            raise ConfigError(
                f"out = '{out}': must be new, empty or a run; it holds {strangers[0]!r} and no {CONFIG}"
            )
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    made_data = not (out / DATA).exists()
    out.mkdir(parents=True, exist_ok=True)
    handle = os.open(out / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"out = '{out}': another process is training here") from None
        check_same(out, config)
        try:
            yield
        except BaseException:
            if not (out / CONFIG).exists():
                _take_away(out, made, made_data)
            raise
    finally:
        os.close(handle)


def _take_away(out: Path, made: list[Path], made_data: bool) -> None:
    if made_data:
        shutil.rmtree(out / DATA, ignore_errors=True)
    (out / LOCK).unlink(missing_ok=True)
    with suppress(OSError):  # a folder that holds something by now stays
        for folder in made:
            folder.rmdir()


def forget(out: Path) -> None:
    """Take away what names a run that has saved nothing, so that ``out`` is free for other settings."""
    for name in (CONFIG, RECORDS):
        (out / name).unlink(missing_ok=True)


def write_config(out: Path, config: object) -> None:
    """Write ``config.toml``: from here on the directory is this config's run."""
    if not (out / CONFIG).exists():
        write_atomic(out / CONFIG, dump_toml(to_dict(config)))


def check_same(out: Path, config: Any) -> None:
    """Raise ConfigError that lists every key in which the run in ``out`` differs from ``config``."""
    there = stored_values(out)
    if there is None:
        return
    new = flat(to_dict(config))
    defaults = flat(to_dict(type(config)()))  # a key that the run there does not know has its default
    old = defaults | flat(there)
    changes = [
        f"{key} = {old.get(key, 'unset')!r} there, {new.get(key, 'unset')!r} here"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if changes:
        raise ConfigError(
            f"out = '{out}': holds a run with other settings ({'; '.join(changes)}); choose another"
        )


def stored_values(out: Path) -> Mapping[str, object] | None:
    """The config of the run in ``out`` as plain values: its checkpoint's, else its file's, else None."""
    newest = latest(out)
    if newest is not None:
        values = read(newest).meta["config"]
        assert isinstance(values, dict)
        return values
    return load_toml(out / CONFIG) if (out / CONFIG).exists() else None


def stored_config(out: Path) -> RunConfig:
    """The config of the run in ``out``. Raises ConfigError when there is no run."""
    values = stored_values(out)
    if values is None:
        raise ConfigError(
            f"resume = '{out}': must be the directory of a run; it has no {CONFIG} and no checkpoint"
        )
    return from_dict(RunConfig, values)


def device_of(out: Path) -> str:
    """ "cpu" or "cuda", on which the run in ``out`` went so far; "" where there is none."""
    newest = latest(out) if out.is_dir() else None
    if newest is None:
        return ""
    machine = read(newest, groups=()).meta.get("machine") or {}
    return str(machine.get("device", "cpu")).partition(" ")[0]


def flat(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested tables as dotted keys."""
    items: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            items |= flat(value, f"{prefix}{key}.")
        else:
            items[prefix + key] = list(value) if isinstance(value, tuple) else value
    return items
