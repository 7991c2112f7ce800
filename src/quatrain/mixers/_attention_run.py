"""Attention's steps over keys and values that are written in place, for generation on a CPU."""

from math import inf
from typing import Any

import torch
from torch import Tensor

from quatrain.kernels.attention import cpu
from quatrain.kernels.linear_step import linear
from quatrain.mixers import _cache
from quatrain.mixers._positions import sinusoid
from quatrain.mixers._run import Run

_ROOM = 256  # columns of a new buffer that are free, and by which a full one grows at least


class Buffer:
    """Keys and values of a batch in columns 0 .. size - 1; with a window, of its last tokens in a ring.

    Row b has written ``count_b`` tokens; the newest ``n_b`` of them are what a state of this mixer holds.
    Keys are turned already, so their order in the ring does not matter.

    Attributes:
        counts: (3, B) int64: position of the next token, tokens written, and columns that hold one.
    """

    def __init__(self, k: Tensor, v: Tensor, position: Tensor, keep: int | None, room: int = _ROOM) -> None:
        batch, held, groups, width = k.shape
        self._keep = keep
        size = held + room if keep is None else keep + 1
        self.k, self.v = (x.new_empty(batch, size, groups, width) for x in (k, v))
        self.k[:, :held], self.v[:, :held] = k, v
        n = _cache.held(position, keep)
        self.counts = torch.stack((position, n, n))
        self._most = int(n.max()) if keep is None else 0  # columns in use; a ring never fills

    def make_room(self) -> None:
        """Grow by half if the next token has no column."""
        size = self.k.shape[1]
        if self._keep is None and self._most == size:
            more = max(_ROOM, size // 2)
            self.k, self.v = (
                torch.cat((x, x.new_empty(x.shape[0], more, *x.shape[2:])), 1) for x in (self.k, self.v)
            )
        self._most += 1

    def value(self) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values and positions as a state holds them; nothing of them is written later."""
        position, count, _ = self.counts.clone()
        n = _cache.held(position, self._keep)
        column = torch.arange(int(n.max()))
        source = ((count - n)[:, None] + column) % self.k.shape[1]  # (B, S)
        past = (column >= n[:, None])[:, :, None, None]
        row = torch.arange(len(n))[:, None]
        k, v = (x[row, source].masked_fill(past, 0) for x in (self.k, self.v))
        return k, v, position


class AttentionRun(Run[Any]):
    """Attention's `Run`: what it keeps from one step to the next is one `Buffer`."""

    def __init__(self, mixer: Any, state: Any) -> None:
        config = mixer.config
        self._mixer, self._config, self._state = mixer, config, type(state)
        self._qkv, self._out = mixer.qkv_proj.weight, mixer.out_proj.weight
        keep = None if config.window == inf else int(config.window) - 1
        self._buffer = Buffer(state.k, state.v, state.position, keep)
        self._furthest = int(state.position.max())

    def __call__(self, x: Tensor) -> Tensor:
        config, buffer = self._config, self._buffer
        self._furthest += 1
        if config.positions in ("learned", "sinusoidal"):
            self._mixer._check_reach(self._furthest)
            x = x + self._told(buffer.counts[0]).to(x.dtype)
        buffer.make_room()
        q = cpu.append(
            linear(x, self._qkv),
            buffer.k,
            buffer.v,
            buffer.counts,
            heads=config.heads,
            rotary_base=config.rotary_base if config.positions == "rotary" else 0.0,
        )
        y = cpu.attend_step(
            q, buffer.k, buffer.v, causal=False, window=inf, q_start=None, k_lengths=buffer.counts[2]
        )
        return linear(y.flatten(1), self._out)

    def _told(self, position: Tensor) -> Tensor:
        """What positions (B,) add to x, (B, D)."""
        if self._config.positions == "sinusoidal":
            return sinusoid(position, self._config.width)
        return self._mixer.position_embedding[position]

    def state(self) -> Any:
        """See `Run.state`."""
        return self._state(*self._buffer.value())
