"""What a mixer refuses: fields of a config, and tensors that do not fit it or each other."""

from collections.abc import Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from quatrain.config.check import check
from quatrain.errors import ShapeError, StateError


def positive_int(key: str, value: object, least: int = 1) -> None:
    """Raise ConfigError unless ``value`` is an integer of at least ``least``."""
    check(type(value) is int and value >= least, key, value, f"must be an integer of at least {least}")


def positive(key: str, value: object) -> None:
    """Raise ConfigError unless ``value`` is a positive finite number."""
    ok = isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value) and value > 0
    check(ok, key, value, "must be a positive finite number")


def boolean(key: str, value: object) -> None:
    """Raise ConfigError unless ``value`` is True or False."""
    check(isinstance(value, bool), key, value, "must be true or false")


def one_of(key: str, value: object, words: Sequence[str]) -> None:
    """Raise ConfigError unless ``value`` is one of ``words``."""
    check(value in words, key, value, f"must be one of {', '.join(words)}")


def check_input(x: object, width: int, rank: int, like: Tensor) -> None:
    """Raise ShapeError unless x is (B, T, D) for rank 3, (B, D) for rank 2, in the dtype and on the device of
    ``like``.

    Under autocast x may come in any floating-point dtype.
    """
    if not isinstance(x, Tensor):
        raise ShapeError(f"x: a {type(x).__name__}: must be a tensor")
    wanted = f"(B, T, {width})" if rank == 3 else f"(B, {width})"
    if x.ndim != rank or x.shape[-1] != width:
        raise ShapeError(f"x: shape {tuple(x.shape)}: must be {wanted}")
    if 0 in x.shape:
        raise ShapeError(f"x: shape {tuple(x.shape)}: must be {wanted} with every size at least 1")
    if x.device != like.device:
        raise ShapeError(f"x: device {x.device}: must be {like.device}, where the parameters are")
    if x.dtype != like.dtype and not (x.is_floating_point() and torch.is_autocast_enabled(x.device.type)):
        raise ShapeError(f"x: dtype {x.dtype}: must be {like.dtype}, as the parameters are")


def check_state(
    state: Any,
    kind: type[Any],
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]],
    free: str,
    like: Tensor,
) -> None:
    """Raise StateError unless ``state`` is a ``kind`` whose tensors have these shapes, on the device of
    ``like``.

    Args:
        shapes: field -> (shape, dtype). Of the dtype only its sort counts (floating point or integer): a
            state may have been made under another autocast setting.
        free: fields whose second dimension may have any size, separated by spaces.
    """
    if type(state) is not kind:
        raise StateError(f"state: a {type(state).__name__}: must be the {kind.__name__} of this mixer")
    for name, (shape, dtype) in shapes.items():
        tensor = getattr(state, name)
        label = f"state.{name}"
        if not isinstance(tensor, Tensor):
            raise StateError(f"{label}: a {type(tensor).__name__}: must be a tensor")
        got = tuple(tensor.shape)
        if got[:1] != shape[:1]:
            raise StateError(f"{label}: shape {got}: must hold a batch of {shape[0]}")
        same = got[:1] + got[2:] == shape[:1] + shape[2:] if name in free.split() else got == shape
        if len(got) != len(shape) or not same:
            wanted = ", ".join(
                "S" if name in free.split() and i == 1 else str(n) for i, n in enumerate(shape)
            )
            raise StateError(f"{label}: shape {got}: must be ({wanted})")
        if (
            tensor.is_floating_point() != dtype.is_floating_point
            or tensor.is_complex()
            or tensor.dtype == torch.bool
        ):
            raise StateError(f"{label}: dtype {tensor.dtype}: must be {dtype}")
        if tensor.device != like.device:
            raise StateError(
                f"{label}: device {tensor.device}: must be {like.device}, where the parameters are"
            )


def plain_state(state: object, kind: type[Any], shape: tuple[int, ...], like: Tensor) -> bool:
    """Whether every tensor of a ``kind`` has this shape, float32, on the device of ``like``: the state that
    `check_state` nearly always sees, told at a fifth of its cost.
    """
    return type(state) is kind and all(
        isinstance(x, Tensor) and x.shape == shape and x.dtype == torch.float32 and x.device == like.device
        for x in state  # type: ignore[attr-defined]  # a NamedTuple
    )
