"""How an op of the core becomes one that torch can trace: schema, shapes of fake tensors, backward pass."""

from collections.abc import Callable
from typing import Any

import torch

_library = torch.library.Library("quatrain", "FRAGMENT")  # type: ignore[no-untyped-call]


def register(
    schema: str,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    setup: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
    device: str = "CPU",
) -> None:
    """Define ``torch.ops.quatrain.<name>`` for a kind of device.

    Args:
        schema: ``"name(Tensor x, ...) -> (...)"``.
        run: the implementation.
        fake: the same with empty results.
        setup, backward: as of `torch.library.register_autograd`; None where there is no derivative.
        device: torch's dispatch key, ``"CPU"`` or ``"CUDA"``.
    """
    name = f"quatrain::{schema.split('(', maxsplit=1)[0]}"
    _library.define(schema)  # type: ignore[no-untyped-call]
    _library.impl(name, run, device)  # type: ignore[no-untyped-call]
    torch.library.register_fake(name, fake, lib=_library)
    if backward is not None:
        torch.library.register_autograd(name, backward, setup_context=setup, lib=_library)
