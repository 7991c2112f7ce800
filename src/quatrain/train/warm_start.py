"""Fine-tuning: a new run begins with the weights of a checkpoint; what means something else is drawn anew."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from quatrain import checkpoint
from quatrain.config.schema import to_dict
from quatrain.errors import CheckpointError
from quatrain.model.config import ModelConfig
from quatrain.model.sequence import SequenceModel

BY_DATA = ("task", "vocab", "channels", "outputs", "horizon", "anchors")  # keys of a model that data decides
_LISTED = 5


def model_of(path: str) -> dict[str, Any]:
    """The model settings of a checkpoint without those that its data decided: what fine-tuning begins from.

    Raises CheckpointError as `quatrain.checkpoint.read`.
    """
    values = checkpoint.model_settings(checkpoint.load_meta(path))
    if not isinstance(values, Mapping):
        raise CheckpointError(f"{path}: holds no config of a model")
    return {name: value for name, value in values.items() if name not in BY_DATA}


def warm_start(model: SequenceModel, meaning: Mapping[str, Any], path: str) -> str:
    """Give a new model the weights of a checkpoint; return a line that says what was taken and what not.

    The backbone must be the same. Embedding (or input projection) and head are taken where they mean the same
    thing: the same task, tokens, columns, labels and horizon; else they stay as they were drawn.

    Args:
        model: as its seed drew it; changed in place.
        meaning: what the new data means, as its feed saves it with a checkpoint.
        path: a checkpoint or a run, whose newest is taken.

    Raises CheckpointError that names the settings and tensors which do not fit, the model unchanged.
    Cost: one reading of the checkpoint's model.
    """
    saved = checkpoint.read(path, groups=("model", "tokenizer"))
    there = checkpoint.model_settings(saved.meta)
    tensors = saved.tensors("model")
    wanted = model.state_dict(keep_vars=True)
    new = _meant_otherwise(model, meaning, saved.meta, there or {})
    problems = []
    for name in sorted(wanted.keys() | tensors.keys()):
        part = name.partition(".")[0]
        if part in new:
            continue
        if name not in wanted or name not in tensors:
            problems.append(f"tensor {name!r} is {'missing' if name in wanted else 'unexpected'}")
        elif wanted[name].shape != tensors[name].shape:
            has, must = tuple(tensors[name].shape), tuple(wanted[name].shape)
            problems.append(f"tensor {name!r} has shape {has}, must have {must}")
    if problems:
        raise CheckpointError(f"{path}: does not fit this model: {_why(model.config, there, problems)}")
    taken = 0
    with torch.no_grad():
        for name, tensor in wanted.items():
            if name.partition(".")[0] not in new:
                tensor.copy_(tensors[name])
                taken += tensor.numel()
    drawn = "; ".join(f"new {part} ({why})" for part, why in new.items())
    return f"begins with {taken:,} weights of {saved.path}" + (f"; {drawn}" if drawn else "")


def _meant_otherwise(
    model: SequenceModel, meaning: Mapping[str, Any], meta: Mapping[str, Any], there: Mapping[str, Any]
) -> dict[str, str]:
    """Which of embedding and head mean something else, each with the reason."""
    here = model.config
    ours, theirs = meaning.get("meaning") or {}, meta.get("meaning") or {}
    new: dict[str, str] = {}
    for key in ("channels",) if here.channels else ("channels", "vocab"):
        old, now = there.get(key, getattr(ModelConfig, key)), getattr(here, key)
        if old != now:
            new["embedding"] = f"{key} {old} there, {now} here"
    for key in ("columns", "inputs") if here.channels else ("tokenizer",):
        one, other = _of(meaning, ours, key), _of(meta, theirs, key)
        if one != other:
            new.setdefault("embedding", f"the {key} differ" if key == "columns" else f"another {key}")
    if model.head is None:  # tied: the embedding is the head
        if there.get("task", "lm") != "lm" or not there.get("tied", True):
            new.setdefault("embedding", f"task {there.get('task')} there, {here.task} here")
        return new
    if there.get("task", "lm") != here.task:
        new["head"] = f"task {there.get('task', 'lm')} there, {here.task} here"
    elif here.task == "lm" and (there.get("tied", True) or "embedding" in new):
        new["head"] = new.get("embedding", "tied there")
    for key in ("labels", "horizon", "targets"):
        if "head" not in new and _of(meaning, ours, key) != _of(meta, theirs, key):
            new["head"] = f"the {key} differ" if key != "horizon" else "another horizon"
    return new


def _of(meta: Mapping[str, Any], meaning: Mapping[str, Any], key: str) -> Any:
    if key == "tokenizer":
        return meta.get("tokenizer", "bytes")
    value = meaning.get(key)
    return list(value) if isinstance(value, (list, tuple)) else value


def _why(config: ModelConfig, there: Any, problems: list[str]) -> str:
    """The settings that differ, which say more than tensors do; else the tensors."""
    old = there if isinstance(there, Mapping) else {}
    keys = [
        f"model.{key} = {old[key]!r} there, {value!r} here"
        for key, value in to_dict(config).items()
        if key in old and key not in BY_DATA and old[key] != value and key not in ("dropout", "pool")
    ]
    listed = keys or problems
    more = f"; and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return "; ".join(listed[:_LISTED]) + more


__all__ = ["BY_DATA", "Tensor", "model_of", "warm_start"]
