"""``manifest.json``: what a checkpoint consists of, with a SHA-256 of every file and of itself."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quatrain.checkpoint._tensors import GroupFile
from quatrain.errors import CheckpointError

MANIFEST, FORMAT, VERSION = "manifest.json", "quatrain", 1
_FLOAT = "$float"  # {"$float": "inf"}: strict JSON has no infinity, and a config may


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The step, the files of the groups and the run's own plain values."""

    step: int
    files: dict[str, GroupFile]
    meta: dict[str, Any]

    def to_json(self) -> str:
        """Strict JSON, sealed with a SHA-256. Raises TypeError where ``meta`` holds what JSON cannot."""
        body = {
            "format": FORMAT,
            "version": VERSION,
            "step": self.step,
            "files": {group: asdict(entry) for group, entry in self.files.items()},
            "meta": _encode(self.meta),
        }
        return json.dumps(body | {"sha256": _seal(body)}, indent=1, allow_nan=False) + "\n"


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a checkpoint. Raises CheckpointError: foreign, newer, truncated or altered."""
    path = directory / MANIFEST
    try:
        body = json.loads(path.read_bytes())
    except ValueError:
        raise CheckpointError(f"{path}: is not JSON: truncated or altered") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        found = body.get("format") if isinstance(body, dict) else body
        raise CheckpointError(f"{path}: format = {str(found)[:40]!r}: is not a checkpoint of Quatrain")
    version = body.get("version")
    if version != VERSION:
        newer = isinstance(version, int) and version > VERSION
        advice = "; a newer Quatrain wrote it: upgrade to read it" if newer else ""
        raise CheckpointError(f"{path}: version = {version!r}: this Quatrain reads version {VERSION}{advice}")
    seal = body.pop("sha256", None)
    if seal != _seal(body):
        raise CheckpointError(f"{path}: was altered: its content does not have the SHA-256 it states")
    try:
        files = {str(group): GroupFile(**entry) for group, entry in body["files"].items()}
        manifest = Manifest(step=int(body["step"]), files=files, meta=dict(_decode(body["meta"])))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: is not a manifest of version {VERSION}: {error}") from None
    for entry in files.values():
        if Path(entry.file).name != entry.file:
            raise CheckpointError(
                f"{path}: file = {entry.file!r}: must lie in the checkpoint's own directory"
            )
    return manifest


def _seal(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _encode(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode(item) for item in value]
    return {_FLOAT: repr(value)} if isinstance(value, float) and not math.isfinite(value) else value


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_FLOAT}:
            return float(value[_FLOAT])
        return {key: _decode(item) for key, item in value.items()}
    return [_decode(item) for item in value] if isinstance(value, list) else value
