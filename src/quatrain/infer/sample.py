"""Drawing the next token from logits."""

from dataclasses import dataclass
from math import inf, isfinite
from typing import Annotated

import torch
from torch import Tensor

from quatrain.config.check import check
from quatrain.errors import DivergedError, ShapeError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen. Raises ConfigError for a value out of range.

    The steps act in this order, each on what the one before has left, renormalised: temperature, top_k,
    top_p, min_p. At least one token is always left. Defaults draw from the model's own distribution.
    """

    temperature: Annotated[float, "logits are divided by it; 0 always takes the most likely token"] = 1.0
    top_k: Annotated[float, "only the k most likely tokens; inf for all"] = inf
    top_p: Annotated[float, "the fewest most likely tokens whose probabilities reach this sum, in (0, 1]"] = (
        1.0
    )
    min_p: Annotated[
        float, "only tokens at least this fraction as likely as the most likely one, in [0, 1]"
    ] = 0.0
    seed: Annotated[int, "of the random numbers"] = 0

    def __post_init__(self) -> None:
        heat = self.temperature
        check(heat >= 0 and isfinite(heat), "temperature", heat, "must be 0 (greedy) or more, and finite")
        whole = self.top_k >= 1 and (self.top_k == inf or self.top_k == int(self.top_k))
        check(whole, "top_k", self.top_k, "must be a whole number of at least 1, or inf for all tokens")
        check(0 < self.top_p <= 1, "top_p", self.top_p, "is a probability in (0, 1]")
        check(0 <= self.min_p <= 1, "min_p", self.min_p, "is a fraction in [0, 1]")
        check(0 <= self.seed < 2**63, "seed", self.seed, "must lie in [0, 2**63)")


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution that `Sampler` draws from: ``(B, V)`` logits to ``(B, V)`` float64 that sum to 1.

    Temperature 0 gives the most likely token probability 1; of equally likely ones the first. Ties at the
    edge of top_k and top_p are resolved towards the smaller token.

    Raises:
        ShapeError: logits are not (B, V) with V at least 1.
        DivergedError: a row holds NaN or +inf, or nothing but -inf.
    """
    if logits.ndim != 2 or logits.shape[1] < 1:
        raise ShapeError(f"logits: shape {tuple(logits.shape)}: must be (B, V) with V at least 1")
    logits = logits.to(torch.float64)
    top = logits.max(1, keepdim=True).values
    if not bool(top.isfinite().all()) or bool(logits.isnan().any()):
        raise DivergedError("logits: hold NaN or infinity; the model's weights have diverged")
    if sampling.temperature == 0:
        return torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1)
    if (
        sampling.top_k >= logits.shape[1] and sampling.top_p == 1 and sampling.min_p == 0
    ):  # nothing to sort for
        return ((logits - top) / sampling.temperature).softmax(1)
    ordered, order = (logits - top).sort(dim=1, descending=True, stable=True)
    p = (ordered / sampling.temperature).softmax(1)
    if sampling.top_k < p.shape[1]:
        p[:, int(sampling.top_k) :] = 0
    p /= p.sum(1, keepdim=True)
    before = p.cumsum(1) - p  # probability of everything likelier
    p = p.masked_fill(before >= sampling.top_p, 0)
    p = p.masked_fill(p < sampling.min_p * p[:, :1], 0)
    return torch.zeros_like(p).scatter_(1, order, p / p.sum(1, keepdim=True))


class Sampler:
    """Draws tokens with its own random numbers: same seed and logits, same tokens, on every device."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._random = torch.Generator().manual_seed(sampling.seed)

    def __call__(self, logits: Tensor) -> Tensor:
        """``(B, V)`` logits to ``(B,)`` int64 tokens on their device. Raises as `probabilities` does."""
        logits = logits.detach()
        if self.sampling.temperature == 0 and logits.ndim == 2 and logits.shape[1] > 0:
            best, token = logits.max(1)  # the first of equal ones, and NaN if there is one
            if bool(best.isfinite().all()):
                return token
        p = probabilities(logits.cpu(), self.sampling)
        return torch.multinomial(p, 1, generator=self._random)[:, 0].to(logits.device)
