"""The figures of the page: each turns rows into chart specs, a caption and, if need be, what is missing."""

from collections.abc import Callable

from quatrain.report._figure import Figure, Legend
from quatrain.report.costs import gradient, latency, prefill, state
from quatrain.report.gather import Comparison
from quatrain.report.losses import equal_time, final_losses, loss_by_time, loss_by_tokens, rates

FIGURES: tuple[Callable[[Comparison], Figure], ...] = (
    loss_by_tokens,
    loss_by_time,
    latency,
    state,
    prefill,
    gradient,
)

__all__ = [
    "FIGURES",
    "Figure",
    "Legend",
    "equal_time",
    "final_losses",
    "gradient",
    "latency",
    "loss_by_time",
    "loss_by_tokens",
    "prefill",
    "rates",
    "state",
]
