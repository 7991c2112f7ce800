"""The language model: embedding, backbone, tied or untied head."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.config.check import check
from quatrain.errors import ShapeError
from quatrain.model.backbone import Backbone, State
from quatrain.model.config import ModelConfig
from quatrain.model.init import initialise_tables, scale_outputs
from quatrain.model.loss import IGNORE, chunked_cross_entropy


class LanguageModel(nn.Module):
    """p(next token | tokens so far) = softmax(head @ backbone(embedding[tokens])), for any pattern of mixers.

    ``output, state = model(tokens, state)`` and ``model.step(token, state)`` are one function: for every
    split point, a forward pass over the head of a sequence followed by steps over its tail gives what one
    pass over all gives. Batches come padded (``tokens (B, T)``, optional ``lengths (B,)``) or packed (``(1,
    total)``, ``cu_seqlens (S+1,)``). Weights are drawn from torch's global generator;
    `quatrain.model.initialise` draws them from a seed. Raises ConfigError for a mixer that is not causal.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        for kind in dict.fromkeys(config.kinds):
            causal = getattr(config.mixer_config(kind), "causal", True)
            check(causal, f"model.mixer.{kind}.causal", causal, "must be true in a language model")
        self.config = config
        self.embedding = nn.Embedding(config.vocab, config.width)
        self.backbone = Backbone(config)
        self.head = None if config.tied else nn.Linear(config.width, config.vocab, bias=False)
        initialise_tables(self)
        scale_outputs(self)

    @property
    def head_weight(self) -> Tensor:
        """The head's matrix, ``(V, D)``; the embedding's where they are tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    def forward(
        self,
        tokens: Tensor,
        state: State | None = None,
        lengths: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        *,
        keep_state: bool = True,
    ) -> tuple[Tensor, State | None]:
        """Logits ``(B, T, V)`` for the token after each one, and the state after the last (see `hidden`)."""
        x, after = self.hidden(tokens, state, lengths, cu_seqlens, keep_state=keep_state)
        return self.logits(x), after

    def hidden(
        self,
        tokens: Tensor,
        state: State | None = None,
        lengths: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        *,
        keep_state: bool = True,
    ) -> tuple[Tensor, State | None]:
        """What the head sees: ``tokens (B, T)`` int64 to ``(B, T, D)``, 0 at t >= length.

        Raises:
            ShapeError: tokens are not (B >= 1, T >= 1) integers, or (on the CPU, where contents are checked)
                one lies outside [0, V).
            StateError: the state belongs to another model or batch size.
        """
        if tokens.ndim != 2 or 0 in tokens.shape:
            raise ShapeError(f"tokens: shape {tuple(tokens.shape)}: must be (B, T) with B and T at least 1")
        return self.backbone(  # type: ignore[no-any-return]  # Module call is Any
            self._embed(tokens), state, lengths, cu_seqlens, keep_state=keep_state
        )

    def logits(self, x: Tensor) -> Tensor:
        """The head: ``(..., D) -> (..., V)``; 2 D V operations per vector."""
        return F.linear(x, self.head_weight)

    def step(self, token: Tensor, state: State) -> tuple[Tensor, State]:
        """One token: ``(B,)`` to logits ``(B, V)`` and the state after it. Raises as `hidden` does."""
        if token.ndim != 1 or 0 in token.shape:
            raise ShapeError(f"token: shape {tuple(token.shape)}: must be (B,) with B at least 1")
        x, after = self.backbone.step(self._embed(token), state)
        return self.logits(x), after

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        state: State | None = None,
        lengths: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        *,
        keep_state: bool = True,
        chunk: int | None = None,
    ) -> tuple[Tensor, State | None]:
        """Mean nats per scored target, and the state. Logits exist for ``chunk`` tokens at a time only.

        ``targets (B, T)`` int64 are usually the tokens shifted by one; -100 is not scored, and neither is
        anything at t >= length. See `chunked_cross_entropy`. Raises as `hidden` does, and ShapeError for
        targets out of range.
        """
        x, after = self.hidden(tokens, state, lengths, cu_seqlens, keep_state=keep_state)
        if lengths is not None and targets.shape == tokens.shape:
            valid = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
            targets = targets.masked_fill(~valid, IGNORE)
        return chunked_cross_entropy(x, self.head_weight, targets, chunk=chunk), after

    def initial_state(self, batch: int) -> State:
        """The state before the first token. Raises ShapeError for a batch below 1."""
        return self.backbone.initial_state(batch)

    def state_bytes(self, batch: int, time: int) -> int:
        """Live bytes of the state of ``batch`` sequences after ``time`` tokens each."""
        return self.backbone.state_bytes(batch, time)

    def flops_per_token(self, context: int) -> int:
        """Operations of a forward pass for one token with ``context`` tokens to look at, itself included.

        Sum over layers of the mixer's own count and 6 D M for a gated MLP of inner width M, plus 2 D V for
        the head. A multiply-add counts as two; norms, activations, residual sums and the embedding's look-up
        are left out. Training costs about three times as much, four times with ``checkpoint_layers``.
        """
        return self.backbone.flops_per_token(context) + 2 * self.config.width * self.config.vocab

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device

    def _embed(self, tokens: Tensor) -> Tensor:
        if tokens.dtype not in (torch.int64, torch.int32):
            raise ShapeError(f"tokens: dtype {tokens.dtype}: must be torch.int64 or torch.int32")
        if tokens.device.type == "cpu":
            low, high = (int(end) for end in tokens.aminmax())
            if low < 0 or high >= self.config.vocab:
                wrong = low if low < 0 else high
                raise ShapeError(
                    f"tokens: {wrong}: must lie in [0, {self.config.vocab}), the model's vocabulary"
                )
        return self.embedding(tokens)  # type: ignore[no-any-return]  # Module call is Any
