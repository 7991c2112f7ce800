"""Softmax attention: Vaswani et al., arXiv:1706.03762; grouped-query: Ainslie et al., arXiv:2305.13245. See
docs/attention.md.
"""

from dataclasses import dataclass
from math import inf
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from quatrain.config.check import check
from quatrain.errors import ShapeError, StateError
from quatrain.kernels import attention
from quatrain.kernels._batch import mask, pack, unpack
from quatrain.mixers import _cache
from quatrain.mixers._attention_run import AttentionRun
from quatrain.mixers._attention_step import AttentionStep
from quatrain.mixers._base import Causal, Layout
from quatrain.mixers._check import boolean, one_of, positive, positive_int
from quatrain.mixers._positions import angles, rotate, sinusoid
from quatrain.mixers._recorded import Step
from quatrain.mixers._run import Run

_POSITIONS = ("rotary", "none", "sinusoidal", "learned")


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Settings of `Attention`. Raises ConfigError for a value outside its range or two that contradict each
    other.
    """

    width: Annotated[int, "numbers per token, in and out"] = 256
    heads: Annotated[int, "query heads; a divisor of width"] = 4
    kv_heads: Annotated[int | Literal["auto"], "key and value heads; a divisor of heads; auto: as many"] = (
        "auto"
    )
    positions: Annotated[Literal["rotary", "none", "sinusoidal", "learned"], "how order is told"] = "rotary"
    max_positions: Annotated[int, "tokens that learned positions reach"] = 2048
    rotary_base: Annotated[float, "slowest rotary wavelength is about 2 pi times this"] = 10000.0
    window: Annotated[float, "tokens that a query sees, itself included; inf: all"] = inf
    causal: Annotated[bool, "false: every token sees every token, for encoders; there is no state then"] = (
        True
    )
    impl: Annotated[str, "implementation of attention"] = "auto"

    def __post_init__(self) -> None:
        for name in ("width", "heads", "max_positions"):
            positive_int(name, getattr(self, name))
        if isinstance(self.kv_heads, str):
            one_of("kv_heads", self.kv_heads, ("auto",))
        else:
            positive_int("kv_heads", self.kv_heads)
        one_of("positions", self.positions, _POSITIONS)
        positive("rotary_base", self.rotary_base)
        boolean("causal", self.causal)
        check(self.width % self.heads == 0, "heads", self.heads, f"must divide width = {self.width}")
        check(self.heads % self.groups == 0, "kv_heads", self.kv_heads, f"must divide heads = {self.heads}")
        even = self.positions != "rotary" or self.head_width % 2 == 0
        check(
            even, "heads", self.heads, f"rotary positions need an even width per head, not {self.head_width}"
        )
        number = isinstance(self.window, (int, float)) and not isinstance(self.window, bool)
        whole = number and (self.window == inf or (self.window >= 1 and float(self.window).is_integer()))
        check(whole, "window", self.window, "must be a whole number of at least 1, or inf")
        check(self.causal or self.window == inf, "window", self.window, "needs causal = true")

    @property
    def groups(self) -> int:
        """G, the number of key and value heads."""
        return self.heads if isinstance(self.kv_heads, str) else self.kv_heads

    @property
    def head_width(self) -> int:
        """K, the width of one head."""
        return self.width // self.heads


class AttentionState(NamedTuple):
    """Keys and values of the tokens seen, the last ``window - 1`` of them where there is a window.

    Row b holds min(position_b, window - 1) tokens from column 0 on; rows that hold fewer than others end in
    zeros. Keys are rotated already.

    After a step on the CPU without gradients both are views of buffers with room for more, which later states
    share: a state's tensors must not be written in place. ``torch.save`` saves the room too.
    """

    k: Tensor  # (B, S, G, K), in the dtype of the data
    v: Tensor  # (B, S, G, K)
    position: Tensor  # (B,) int64, tokens seen


class Attention(Causal[AttentionState]):
    """q, k, v = qkv_proj(x) in H, G, G heads of width K; y_t = out_proj(softmax(q_t k_s / sqrt(K)) v_s over
    visible s).

    Token s is visible to t if s <= t and t - s < window; G < H: H / G query heads share a key and value head.
    ``x (B, T, D) -> y (B, T, D)``. Positions: rotary turns q and k by their absolute positions before k is
    kept; sinusoidal and learned ones are added to x in front of qkv_proj, in this layer alone. Learned ones
    raise ShapeError past ``max_positions``.

    Cost: per token 2 D (D + 2 G K) + 2 D^2 operations and 4 D per token that it sees; the state grows by 2 G
    K numbers a token, up to the window. A continued or padded batch reads its positions back from the device,
    once per call. With ``causal=False`` there is no state: ``forward`` gives None for it, and ``step``,
    ``initial_state`` and a state as an argument raise StateError.

    At first: linear maps as torch's (uniform in [-1/sqrt(D), 1/sqrt(D)]), learned positions normal with
    deviation 0.02.
    """

    Config: ClassVar[type[AttentionConfig]] = AttentionConfig
    State: ClassVar[type[AttentionState]] = AttentionState
    kind: ClassVar[str] = "attention"
    rewindable: ClassVar[bool] = True  # without a window; with one, the tokens before it are gone
    gated_mlp: ClassVar[bool] = True
    _free: ClassVar[str] = "k v"
    config: AttentionConfig

    def __init__(self, config: AttentionConfig | None = None, **fields: object) -> None:
        super().__init__(config, **fields)
        width, heads, groups = self.config.width, self.config.heads, self.config.groups
        self.qkv_proj = nn.Linear(width, (heads + 2 * groups) * self.config.head_width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)
        if self.config.positions == "learned":
            self.position_embedding = nn.Parameter(torch.empty(self.config.max_positions, width))
            nn.init.normal_(self.position_embedding, std=0.02)

    def initial_state(self, batch: int) -> AttentionState:
        self._refuse_state()
        return super().initial_state(batch)

    def run(self, state: AttentionState) -> Run[AttentionState]:
        return AttentionRun(self, state) if AttentionRun.fits(self, state) else super().run(state)

    def _recorded_step(self, batch: int, dtype: torch.dtype) -> Step[AttentionState] | None:
        fits = self.config.causal and self.config.positions != "sinusoidal"
        if not fits or not self._is_recordable(Attention, self.qkv_proj, self.out_proj):
            return None
        return AttentionStep(self, batch, dtype)

    def _forward(
        self,
        x: Tensor,
        state: AttentionState | None,
        lengths: Tensor | None,
        cu_seqlens: Tensor | None,
        keep_state: bool,
    ) -> tuple[Tensor, AttentionState | None]:
        keep_state = keep_state and self.config.causal
        if cu_seqlens is None:
            y, after = self._padded(x, state, lengths, keep_state)
        elif state is None:
            y, after = self._packed(x, cu_seqlens, keep_state)
        else:  # each sequence has its own past: only the padded form can put it in front
            padded, lengths = unpack(x, cu_seqlens)
            y, after = self._padded(padded, state, lengths, keep_state)
            y = pack(y, cu_seqlens)
        return self.out_proj(y), after

    def _packed(
        self, x: Tensor, cu_seqlens: Tensor, keep_state: bool
    ) -> tuple[Tensor, AttentionState | None]:
        lengths = cu_seqlens.diff()
        starts = torch.repeat_interleave(cu_seqlens[:-1], lengths, output_size=x.shape[1])
        position = torch.arange(x.shape[1], device=x.device) - starts
        self._check_reach(int(lengths.max()))
        q, k, v = self._project(x, position[None])
        config = self.config
        y = attention(
            q, k, v, causal=config.causal, window=config.window, cu_seqlens=cu_seqlens, impl=config.impl
        ).flatten(2)
        if not keep_state:
            return y, None
        (k, lengths), (v, _) = unpack(k, cu_seqlens), unpack(v, cu_seqlens)
        return y, self._cut(k, v, lengths, lengths)

    def _padded(
        self, x: Tensor, state: AttentionState | None, lengths: Tensor | None, keep_state: bool
    ) -> tuple[Tensor, AttentionState | None]:
        start = 0 if state is None else self._common_start(state)
        if start is None or (lengths is not None and start > 0):
            assert state is not None
            return self._ragged(x, state, lengths, keep_state)
        batch, time = x.shape[:2]
        self._check_reach(start + (time if lengths is None else int(lengths.max())))
        q, k, v = self._project(x, torch.arange(start, start + time, device=x.device)[None])
        if state is not None and start > 0:
            k, v = torch.cat((state.k.to(k.dtype), k), 1), torch.cat((state.v.to(v.dtype), v), 1)
        config = self.config
        y = attention(
            q,
            k,
            v,
            causal=config.causal,
            window=config.window
            if config.window < k.shape[1]
            else inf,  # a step past the window needs no mask
            k_lengths=None
            if config.causal
            else lengths,  # a causal query never sees the padding on its right
            impl=config.impl,
        ).flatten(2)
        if lengths is not None:
            y = y.masked_fill(~mask(lengths, time)[..., None], 0)
        if not keep_state:
            return y, None
        if lengths is not None:
            return y, self._cut(k, v, lengths, lengths)
        position = torch.full((batch,), start + time, device=x.device)
        first = 0 if self._keep is None else max(0, k.shape[1] - self._keep)
        # v may be a view of the projection: a copy frees the rest of it
        return y, AttentionState(k[:, first:].clone(), v[:, first:].clone(), position)

    def _ragged(
        self, x: Tensor, state: AttentionState, lengths: Tensor | None, keep_state: bool
    ) -> tuple[Tensor, AttentionState | None]:
        """Rows at different positions: each row's tokens go right behind the ones that it holds."""
        time = x.shape[1]
        fresh = torch.full_like(state.position, time) if lengths is None else lengths.to(state.position.dtype)
        after = state.position + fresh
        self._check_reach(int(after.max()))
        q, k, v = self._project(x, state.position[:, None] + torch.arange(time, device=x.device))
        n = _cache.held(state.position, self._keep)
        k, v = _cache.merge(state.k.to(k.dtype), k, n), _cache.merge(state.v.to(v.dtype), v, n)
        config = self.config
        y = attention(
            q, k, v, window=config.window, q_start=n, k_lengths=n + fresh, impl=config.impl
        ).flatten(2)
        if lengths is not None:
            y = y.masked_fill(~mask(lengths, time)[..., None], 0)
        return y, (self._cut(k, v, n + fresh, after) if keep_state else None)

    def _cut(self, k: Tensor, v: Tensor, filled: Tensor, position: Tensor) -> AttentionState:
        n = _cache.held(position, self._keep)
        return AttentionState(_cache.cut(k, filled, n), _cache.cut(v, filled, n), position.to(torch.int64))

    def _project(self, x: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, T, H, K) and k, v (B, T, G, K) with positions (B or 1, T) in them."""
        config = self.config
        if config.positions == "sinusoidal":
            x = x + sinusoid(position, config.width).to(x.dtype)
        elif config.positions == "learned":
            x = x + self.position_embedding[position.clamp(max=config.max_positions - 1)].to(x.dtype)
        heads = self.qkv_proj(x).unflatten(-1, (-1, config.head_width))
        q, k, v = heads.split((config.heads, config.groups, config.groups), dim=2)
        if config.positions == "rotary":
            cos, sin = angles(position, config.head_width // 2, config.rotary_base)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        return q, k, v

    @property
    def _keep(self) -> int | None:
        """Most tokens that a state holds: the next one sees itself and window - 1 before it."""
        return None if self.config.window == inf else int(self.config.window) - 1

    def _common_start(self, state: AttentionState) -> int | None:
        """The position that all rows have reached; None if they differ, or if the state holds more than it
        needs.
        """
        first = int(state.position[0])
        held = first if self._keep is None else min(first, self._keep)
        same = held == state.k.shape[1] and bool((state.position == first).all())
        return first if same else None

    def _check_reach(self, end: int) -> None:
        limit = self.config.max_positions
        if self.config.positions == "learned" and end > limit:
            raise ShapeError(f"x: reaches position {end}: learned positions end at max_positions = {limit}")

    def _refuse_state(self) -> None:
        if not self.config.causal:
            raise StateError(
                "state: attention with causal = false has none: every token sees the ones after it"
            )

    def _check_state(self, state: AttentionState, batch: int) -> None:
        self._refuse_state()
        super()._check_state(state, batch)
        if state.v.shape[1] != state.k.shape[1]:
            raise StateError(
                f"state.v: shape {tuple(state.v.shape)}: must be that of state.k, {tuple(state.k.shape)}"
            )
        if state.position.device.type == "cpu":
            most = int(_cache.held(state.position, self._keep).max())
            if int(state.position.min()) < 0 or most > state.k.shape[1]:
                raise StateError(
                    f"state.position = {state.position.tolist()}: must be at least 0, and state.k hold "
                    f"the {most} tokens that follow from it, not {state.k.shape[1]}"
                )

    def _layout(self, batch: int, time: int) -> Layout:
        if not self.config.causal:
            return {}
        held = time if self._keep is None else min(time, self._keep)
        shape = (batch, held, self.config.groups, self.config.head_width)
        dtype = self._like.dtype
        return {"k": (shape, dtype), "v": (shape, dtype), "position": ((batch,), torch.int64)}

    def flops_per_token(self, context: int) -> int:
        width, kept = self.config.width, 2 * self.config.groups * self.config.head_width
        seen = context if self.config.window == inf else min(context, int(self.config.window))
        return 2 * width * (width + kept) + 2 * width * width + 4 * width * seen
