"""The language model: the sequence model whose task is the next token, and its loss."""

import torch
from torch import Tensor

from quatrain.config.check import check
from quatrain.model.backbone import State
from quatrain.model.config import ModelConfig
from quatrain.model.loss import IGNORE, chunked_cross_entropy
from quatrain.model.sequence import SequenceModel


class LanguageModel(SequenceModel):
    """p(next token | tokens so far) = softmax(head @ backbone(embedding[tokens])), for any pattern of mixers.

    ``output, state = model(tokens, state)`` and ``model.step(token, state)`` are one function: for every
    split point, a forward pass over the head of a sequence followed by steps over its tail gives what one
    pass over all gives. Batches come padded (``tokens (B, T)``, optional ``lengths (B,)``) or packed (``(1,
    total)``, ``cu_seqlens (S+1,)``). Weights are drawn from torch's global generator;
    `quatrain.model.initialise` draws them from a seed. Raises ConfigError for a mixer that is not causal or a
    config of another task.
    """

    def __init__(self, config: ModelConfig) -> None:
        check(config.task == "lm", "model.task", config.task, "must be lm in a language model")
        super().__init__(config)

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
