"""NaN and infinity: found at once, named, and never saved."""

from pathlib import Path

import torch
from torch import Tensor, nn

from quatrain.errors import DivergedError


def check_step(model: nn.Module, loss: float, norm: Tensor, step: int, good: Path | None) -> None:
    """Raise DivergedError when the loss or the gradient of this step isn't finite. Cost: one comparison when
    it is."""
    if torch.isfinite(norm).item() and abs(loss) < float("inf"):
        return
    raise DivergedError(_line(f"step {step}: the loss is {loss:g}", culprits(model), good))


def check_saved(model: nn.Module, moments: dict[str, Tensor], step: int, good: Path | None) -> None:
    """Raise DivergedError when what is about to be saved holds NaN or infinity. Cost: one pass over the
    tensors."""
    found = [f"parameter {name}" for name, value in model.named_parameters() if _bad(value)]
    found += [f"optimizer state {name}" for name, value in moments.items() if _bad(value)]
    if found:
        raise DivergedError(_line(f"step {step}: nothing was saved", found, good))


def culprits(model: nn.Module) -> list[str]:
    """Parameters that hold NaN or infinity, or, when there are none, those whose gradients do."""
    values = [f"parameter {name}" for name, value in model.named_parameters() if _bad(value)]
    return values or [
        f"the gradient of parameter {name}"
        for name, value in model.named_parameters()
        if value.grad is not None and _bad(value.grad)
    ]


def _bad(value: Tensor) -> bool:
    return not torch.isfinite(value).all().item()


def _line(what: str, found: list[str], good: Path | None) -> str:
    others = f" (the first of {len(found)})" if len(found) > 1 else ""
    named = f"{found[0]} is not finite{others}" if found else "every parameter and gradient is finite"
    kept = f"last good checkpoint: {good}" if good else "no checkpoint was saved before"
    return f"{what}; {named}; {kept}; a lower train.lr often helps"
