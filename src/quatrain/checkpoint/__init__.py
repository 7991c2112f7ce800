"""Checkpoints: a directory of safetensors and a manifest, written whole or not at all, checked when read.

``run/checkpoints/step-00001000/`` holds one ``<group>.safetensors`` for each group of tensors ("model",
"optimizer", "carry", ...) and ``manifest.json``: format and version, bytes and SHA-256 of every file, the
run's own ``meta``, and a SHA-256 of itself. No pickle is written or read, so opening a checkpoint of a
stranger runs none of his code.
"""

from quatrain.checkpoint._load import load as load
from quatrain.checkpoint._load import load_language_model as load_language_model
from quatrain.checkpoint._load import model_settings as model_settings
from quatrain.checkpoint._load import task_of as task_of
from quatrain.checkpoint._read import Checkpoint as Checkpoint
from quatrain.checkpoint._read import load_meta as load_meta
from quatrain.checkpoint._read import read as read
from quatrain.checkpoint._store import latest as latest
from quatrain.checkpoint._store import prune as prune
from quatrain.checkpoint._store import save as save

__all__ = [
    "Checkpoint",
    "latest",
    "load",
    "load_language_model",
    "load_meta",
    "model_settings",
    "prune",
    "read",
    "save",
    "task_of",
]
