"""From a checkpoint to the model it holds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from quatrain.checkpoint._read import load_meta, read
from quatrain.config.check import check
from quatrain.config.schema import from_dict
from quatrain.errors import CheckpointError, ConfigError
from quatrain.model.config import ModelConfig
from quatrain.model.lm import LanguageModel
from quatrain.model.sequence import SequenceModel, build

_LISTED = 10  # wrong tensors that a message names


def load(path: str | Path, device: torch.device | str = "cpu") -> SequenceModel:
    """The model of a checkpoint, or of the newest checkpoint of a run's directory, ready to predict.

    It has the weights and dtypes that were saved, bit for bit, lies on ``device`` and is in ``eval()`` mode.
    Random number generators are left as they are. Only the model's file is read and checked, not the
    optimizer's.

    Raises CheckpointError where the checkpoint is missing, truncated, altered, foreign or of another version,
    where its config is not one of this version's models, or where its tensors are not exactly those of that
    model.
    """
    checkpoint = read(path, groups=("model",))
    values = model_settings(checkpoint.meta)
    if not isinstance(values, Mapping):
        raise CheckpointError(f"{checkpoint.path}: holds no config of a model")
    with torch.random.fork_rng(devices=[]):  # building a model draws weights, which are then replaced
        try:
            model = build(from_dict(ModelConfig, values, "model"))
        except ConfigError as error:
            raise CheckpointError(f"{checkpoint.path}: {'; '.join(str(error).splitlines())}") from None
    fill(model, checkpoint.tensors("model"), str(checkpoint.path))
    return model.to(device).eval()


def task_of(path: str | Path) -> str:
    """The task of a checkpoint's model, its tensors unread. Raises CheckpointError as `load_meta` does."""
    values = model_settings(load_meta(path))
    return str(values.get("task", "lm")) if isinstance(values, Mapping) else "lm"


def model_settings(meta: Mapping[str, Any]) -> Any:
    """The model's config: as it was built, where the data decided some sizes, else as it was asked for."""
    config = meta.get("config")
    return meta.get("model") or (config.get("model") if isinstance(config, Mapping) else None)


def load_language_model(path: str | Path, device: torch.device | str = "cpu") -> LanguageModel:
    """As `load`, where only a language model will do. Raises ConfigError for a model of another task."""
    model = load(path, device)
    rule = f"holds a model of the task {model.config.task}; this needs a language model"
    check(isinstance(model, LanguageModel), "checkpoint", str(path), rule)
    return cast(LanguageModel, model)


def fill(model: torch.nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Give ``model`` these parameters and buffers, in their own dtypes.

    Raises CheckpointError that names the missing, unexpected and mis-shaped tensors (the first ten); the
    model is then unchanged.
    """
    wanted = model.state_dict(keep_vars=True)
    problems = [f"tensor {name!r} is missing" for name in wanted if name not in tensors]
    problems += [f"tensor {name!r} is unexpected" for name in tensors if name not in wanted]
    for name in wanted.keys() & tensors.keys():
        has, must = tuple(tensors[name].shape), tuple(wanted[name].shape)
        if has != must:
            problems.append(f"tensor {name!r} has shape {has}, must have {must}")
    if problems:
        listed = "; ".join(sorted(problems)[:_LISTED])
        more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise CheckpointError(f"{source}: does not fit the model of its config: {listed}{more}")
    for name, tensor in wanted.items():
        tensor.data = tensors[name].clone()
