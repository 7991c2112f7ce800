"""Who uses the far past: the loss of the same tokens after a training length and after a long window."""

from typing import NamedTuple

from quatrain.report.gather import Comparison, number
from quatrain.report.numbers import NBSP, PLUS_MINUS, listed

_LEAST = 0.001  # nats: smaller gains are nothing, however certain


class Reach(NamedTuple):
    """What a model gains, in nats per token, on the last ``tail`` tokens of windows of ``length`` tokens over
    windows of the training length; ``half`` is the half-width of the 95 % interval, absent for one window.
    """

    name: str
    gain: float
    half: float | None
    sequence: float
    length: float
    tail: float

    @property
    def uses(self) -> bool:
        """Whether it gains more than noise."""
        return self.gain > max(self.half or 0.0, _LEAST)

    @property
    def loses(self) -> bool:
        """Whether long contexts harm it more than noise."""
        return -self.gain > max(self.half or 0.0, _LEAST)


def reaches(comparison: Comparison) -> list[Reach]:
    """The models that were measured, in the order of the comparison."""
    found = []
    for mixer in comparison.mixers:
        for row in comparison.of("far", mixer)[-1:]:
            keys = ("gain", "sequence", "length", "tail")
            gain, sequence, length, tail = (number(row, key) for key in keys)
            if gain is None or not sequence or not length or not tail:
                continue
            name = comparison.style(mixer).name
            found.append(Reach(name, gain, number(row, "half"), sequence, length, tail))
    return found


def _each(one: Reach, sign: float) -> str:
    error = f" {PLUS_MINUS} {one.half:.3f}" if one.half is not None else ""
    return f"{one.name} {sign * one.gain:.3f}{error}"


def sentence(comparison: Comparison) -> str:
    """How much each gains from the far past; empty where nothing was measured."""
    found = reaches(comparison)
    if not found:
        return ""
    one = found[0]
    near, far = _between(one.sequence, one.tail), _between(one.length, one.tail)
    gains = sorted((r for r in found if r.uses), key=lambda r: -r.gain)
    losses = sorted((r for r in found if r.loses), key=lambda r: r.gain)
    flat = [r.name for r in found if not r.uses and not r.loses]
    parts = []
    if gains:
        parts.append(f"the loss falls by {listed([_each(r, 1) for r in gains])} nats")
    if losses:
        what = "it rises by" if gains else "the loss rises by"
        parts.append(f"{what} {listed([_each(r, -1) for r in losses])}{'' if gains else ' nats'}")
    if flat:
        what = "does not change beyond noise for" if parts else "the loss does not change beyond noise for"
        parts.append(f"{'it ' if parts else ''}{what} {listed(flat)}")
    return f"From {near} to {far} tokens of context, on the same tokens, {'; '.join(parts)}."


def _between(length: float, tail: float) -> str:
    return f"{length - tail + 1:,.0f}{NBSP}to{NBSP}{length:,.0f}"
