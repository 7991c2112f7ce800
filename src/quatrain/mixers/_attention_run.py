"""Attention's steps over keys and values that are written in place, for generation on a CPU."""

from math import inf
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quatrain.kernels._core.tape import Tape
from quatrain.kernels.attention.cpu import Cache
from quatrain.kernels.linear_step import cpu as linear_step
from quatrain.mixers import _cache
from quatrain.mixers._run import RecordedRun

if TYPE_CHECKING:
    from quatrain.mixers.attention import Attention, AttentionState

_ROOM = 256  # columns by which a full cache grows at least


class AttentionRun(RecordedRun["AttentionState"]):
    """Attention's `Run`. Without a window its cache grows by half when it is full."""

    @staticmethod
    def fits(mixer: "Attention", state: "AttentionState") -> bool:
        """Whether the core can do it for this mixer and state."""
        if mixer.config.positions == "sinusoidal":  # added in front by torch
            return False
        weights = (mixer.qkv_proj.weight, mixer.out_proj.weight)
        return linear_step.recordable(len(state.k), *weights, state.k, state.v)

    def __init__(self, mixer: "Attention", state: "AttentionState") -> None:
        super().__init__()
        self._mixer, self._kind = mixer, type(state)
        window = mixer.config.window
        self._keep = None if window == inf else int(window) - 1
        n = _cache.held(state.position, self._keep)
        columns = state.k.shape[1] + _ROOM if self._keep is None else self._keep + 1
        self._cache = Cache(state.k, state.v, state.position, n, columns)
        self._filled = int(n.max())
        self._furthest = int(state.position.max())

    def record(self, tape: Tape, x: Tensor, y: Tensor, add: bool) -> None:
        """See `RecordedRun.record`."""
        mixer, config, cache = self._mixer, self._mixer.config, self._cache
        qkv = project(tape, mixer, x, cache.position)
        base = config.rotary_base if config.positions == "rotary" else 0.0
        mixed = cache.record(tape, qkv, config.heads, base)
        linear_step.record(tape, mixed, mixer.out_proj.weight, y if add else None, y)

    def room(self) -> float:
        """See `RecordedRun.room`: columns that are free, positions that are learned."""
        config = self._mixer.config
        reach = config.max_positions - self._furthest if config.positions == "learned" else inf
        return min(reach, inf if self._keep is not None else self._cache.k.shape[1] - self._filled)

    def advance(self, steps: int) -> None:
        """See `RecordedRun.advance`."""
        self._filled += steps
        self._furthest += steps

    def grow(self) -> None:
        """See `RecordedRun.grow`. Raises ShapeError past the last learned position."""
        self._mixer._check_reach(self._furthest + 1)
        if self.room() == 0:
            old, size = self._cache, self._filled
            self._cache = Cache(old.k, old.v, old.position, old.count, size + max(_ROOM, size // 2))

    def state(self) -> "AttentionState":
        """See `Run.state`."""
        cache = self._cache
        n = _cache.held(cache.position, self._keep)
        column = torch.arange(int(n.max()))
        source = ((cache.count - n)[:, None] + column) % cache.k.shape[1]  # (B, S)
        past = (column >= n[:, None])[:, :, None, None]
        row = torch.arange(len(n))[:, None]
        k, v = (x[row, source].masked_fill(past, 0) for x in (cache.k, cache.v))
        return self._kind(k, v, cache.position.clone())


def project(tape: Tape, mixer: "Attention", x: Tensor, position: Tensor) -> Tensor:
    """Record the projections (B, (H + 2 G) K) of x with learned positions, if any, added to it."""
    if mixer.config.positions == "learned":
        told = tape.buffer("told", *x.shape, dtype=x.dtype)
        x = tape.add_position(x, mixer.position_embedding, position, told)
    weight = mixer.qkv_proj.weight
    return linear_step.record(tape, x, weight, None, tape.buffer("qkv", len(x), len(weight), dtype=x.dtype))
