"""Timing in turns, and the models that are timed."""

import math
from collections.abc import Callable, Hashable, Mapping
from time import perf_counter
from typing import TypeVar

import torch

from quatrain.lab.claims.config import MIXERS, ClaimsConfig
from quatrain.model.config import ModelConfig
from quatrain.model.fit import fit_size
from quatrain.model.init import initialise
from quatrain.model.lm import LanguageModel

K = TypeVar("K", bound=Hashable)
Tell = Callable[[float], None]  # the share of a measurement that is done

_LEAST = 0.01  # seconds of one timed stretch: shorter calls are repeated within it
_MOST = 64  # calls in a stretch


def alternate(
    tasks: Mapping[K, Callable[[], object]], repeats: int, device: torch.device, tell: Tell
) -> dict[K, list[float]]:
    """Seconds of each task, ``repeats`` times, in turns: first to last, then last to first.

    Whatever slows the machine for a while then slows all of them, and a drift cancels. One call before them
    is not counted.
    """
    counts = {}
    total, done = (repeats + 1) * len(tasks), 0
    for key, work in tasks.items():
        work()
        once = stretch(work, 1, device)
        counts[key] = min(_MOST, max(1, math.ceil(_LEAST / max(once, 1e-9))))
        done += 1
        tell(done / total)
    found: dict[K, list[float]] = {key: [] for key in tasks}
    for turn in range(repeats):
        order = list(tasks) if turn % 2 == 0 else list(reversed(list(tasks)))
        for key in order:
            found[key].append(stretch(tasks[key], counts[key], device))
            done += 1
            tell(done / total)
    return found


def stretch(work: Callable[[], object], count: int, device: torch.device) -> float:
    """Seconds of one call, over ``count`` calls; a GPU is waited for."""
    _wait(device)
    start = perf_counter()
    for _ in range(count):
        work()
    _wait(device)
    return (perf_counter() - start) / count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def shapes(config: ClaimsConfig) -> dict[str, ModelConfig]:
    """A language model of bytes for each architecture, of as many parameters within 2 %."""
    return {mixer: fit_size(mixer, config.params) for mixer in MIXERS}


def fresh(shape: ModelConfig, device: torch.device, seed: int = 0) -> LanguageModel:
    """An untrained model: cost does not depend on weights."""
    with torch.random.fork_rng(devices=[]):
        model = LanguageModel(shape)
    initialise(model, seed)
    return model.to(device)


def bytes_of(length: int, device: torch.device, batch: int = 1, seed: int = 0) -> torch.Tensor:
    """Random tokens ``(batch, length)`` of 256: cost does not depend on what they say."""
    random = torch.Generator().manual_seed(seed)
    return torch.randint(256, (batch, length), generator=random).to(device)


def training_step(model: LanguageModel, tokens: torch.Tensor) -> Callable[[], object]:
    """Forward, loss and backward on ``tokens (B, T + 1)``; the optimiser is left out, it knows no length."""

    def work() -> object:
        model.zero_grad(set_to_none=True)
        loss, _ = model.loss(tokens[:, :-1], tokens[:, 1:], keep_state=False)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    return work


def reading(model: LanguageModel, tokens: torch.Tensor) -> Callable[[], object]:
    """A forward pass over ``tokens (B, T)`` without gradients, down to the logits of the last one."""

    def work() -> object:
        with torch.no_grad():
            hidden, _ = model.hidden(tokens, keep_state=False)
            return model.logits(hidden[:, -1])

    return work
