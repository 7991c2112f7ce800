"""A run that does not fit into memory: settings of the same run are tried until some do, and named."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quatrain.errors import OutOfMemoryError, QuatrainError, shortage
from quatrain.model.memory import fits, halves, release
from quatrain.train.config import RunConfig

_SHORTEST = 16  # tokens of a sequence that is worth a proposal


def explained(
    error: Exception,
    doing: str,
    config: RunConfig,
    labelled: bool,
    kept: str,
    trial: Callable[[RunConfig], object],
) -> OutOfMemoryError:
    """What to say when memory ran out: the first settings under which ``trial`` goes through.

    Those that give the same numbers up to rounding come first: more micro-batches, then layers that are
    recomputed, then shorter sequences. Cost: the time of a few steps.
    """
    asked = shortage(error)
    release(error)
    for values in _proposals(config, labelled):
        try:
            fit = fits(partial(trial, changed(config, values)))
        except QuatrainError:  # settings that do not go together with the data
            continue
        if fit:
            said = ", ".join(f"{key} = {_shown(value)}" for key, value in values.items())
            return OutOfMemoryError(
                f"{doing}: not enough memory{asked}; tried and fits: {said}; {kept}", values
            )
    least = "a smaller model.width or model.layers takes less"
    one = "not even one sequence fits with model.checkpoint_layers = true"
    return OutOfMemoryError(f"{doing}: not enough memory{asked}; {one}: {least}; {kept}")


def too_large(error: Exception, parameters: int, device: torch.device) -> OutOfMemoryError:
    """What to say when not even the weights fit."""
    what = f"not enough memory{shortage(error)} on {device} for a model of {parameters:,} parameters"
    return OutOfMemoryError(f"{what}: a smaller model.width, model.layers or model.vocab takes less")


def changed(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """The config with other values of dotted keys."""
    parts: dict[str, dict[str, Any]] = {"model": {}, "train": {}}
    for key, value in values.items():
        room, _, name = key.partition(".")
        parts[room][name] = value
    model, train = replace(config.model, **parts["model"]), replace(config.train, **parts["train"])
    return replace(config, model=model, train=train)


def moments(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[torch.Tensor]:
    """As much memory as the optimiser will take for the parameters that it has not stepped yet."""
    new = [parameter for parameter in model.parameters() if not optimizer.state.get(parameter)]
    return [torch.empty_like(parameter) for parameter in new for _ in range(2)]


def kept(out: Path, good: Path | None) -> str:
    """What there is of the run, in words."""
    if good is None:
        return "nothing was saved"
    return f"other settings need another out; train.init_from = '{good}' begins with the weights saved there"


def _proposals(config: RunConfig, labelled: bool) -> Iterator[dict[str, Any]]:
    """Settings that need less and less memory."""
    train = config.train
    parts = _ladder(train.batch_sequences if labelled else train.batch, train.accumulate)
    for count in parts[1:]:
        yield {"train.accumulate": count}
    recomputed = {"model.checkpoint_layers": True}
    if not config.model.checkpoint_layers:
        for count in parts:
            yield {**recomputed, "train.accumulate": count}
    for length in () if labelled else halves(train.sequence, _SHORTEST):
        if train.batch_tokens % length == 0:
            shorter = {"train.sequence": length, "train.accumulate": train.batch_tokens // length}
            yield {**recomputed, **shorter}


def _ladder(rows: int, parts: int) -> list[int]:
    """Numbers of micro-batches from ``parts`` to ``rows`` that divide ``rows``, each at least twice the one
    before."""
    found = [parts]
    for count in range(parts + 1, rows + 1):
        if rows % count == 0 and (count >= 2 * found[-1] or count == rows):
            found.append(count)
    return found


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
