"""AdamW with parameter groups chosen by name, and the learning rate of each step."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import cos, pi

import torch
from torch import Tensor, nn

from quatrain.errors import CheckpointError
from quatrain.train.config import TrainConfig

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True)
class Rule:
    """Parameters whose name contains ``word`` as one of its dotted or underscored parts get no weight
    decay."""

    word: str
    reason: str


NO_DECAY = (
    Rule("bias", "an offset has no scale to keep small"),
    Rule("norm", "a gain's neutral value is 1, not 0"),
    Rule("embedding", "a rare row gets no gradient, only decay, and would fade away"),
    Rule("a", "state matrix of a state-space model: its logarithm sets time scales, 0 is no neutral value"),
    Rule("skip", "a gain"),
    Rule("dt", "a bias of step sizes"),
)


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay acts on a parameter.

    It acts on matrices (two dimensions or more: projections, recurrent weights, convolutions, an untied
    head), except those that a rule of ``NO_DECAY`` names. Vectors (biases, gains, skips) never decay.
    """
    return parameter.ndim >= 2 and not any(_named(name, rule.word) for rule in NO_DECAY)


def _named(name: str, word: str) -> bool:
    parts = name.lower().split(".")
    return word in parts or word in parts[-1].split("_")


def optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over two groups, decayed and not; the learning rate is set before each step."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[decays(name, parameter)].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": members, "weight_decay": config.weight_decay if decayed else 0.0}
            for decayed, members in groups.items()
            if members
        ],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=1e-8,
        fused=True,
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate of the next step; recorded steps hold it in one tensor on their device."""
    held = optimizer.param_groups[0]["lr"]
    if isinstance(held, Tensor):
        held.fill_(rate)
        return
    for group in optimizer.param_groups:
        group["lr"] = rate


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of step 1 .. ``config.steps``: a line up to ``lr``, then half a cosine down to its floor.

    lr (floor + (1 - floor) (1 + cos(pi p)) / 2) with p the share of the steps after the warm-up that is done.
    """
    warmup = config.warmup_steps
    if step <= warmup:
        return config.lr * step / warmup
    done = (step - warmup) / max(1, config.steps - warmup)
    floor = config.lr_floor
    return config.lr * (floor + (1 - floor) * (1 + cos(pi * done)) / 2)


def state_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Moments by parameter name: ``<name>.exp_avg``, ``<name>.exp_avg_sq``, ``<name>.step``."""
    tensors = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}.{key}"] = value
    return tensors


def load_state(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `state_tensors` gave. Raises CheckpointError for a missing, foreign or mis-shaped moment.

    A parameter without any moment is one that no gradient has reached yet.
    """
    left = set(tensors)
    for name, parameter in model.named_parameters():
        keys = {moment: f"{name}.{moment}" for moment in _MOMENTS}
        present = [key for key in keys.values() if key in tensors]
        if not present:
            continue
        for moment, key in keys.items():
            shape = torch.Size() if moment == "step" else parameter.shape
            if key not in tensors:
                raise CheckpointError(f"optimizer state {key} is missing")
            if tensors[key].shape != shape:
                got = tuple(tensors[key].shape)
                raise CheckpointError(f"optimizer state {key} has shape {got}, not {tuple(shape)}")
        optimizer.state[parameter] = {
            moment: tensors[key].to(parameter.device, copy=True) for moment, key in keys.items()
        }
        left.difference_update(present)
    if left:
        raise CheckpointError(f"optimizer state {min(left)} belongs to no parameter of this model")
