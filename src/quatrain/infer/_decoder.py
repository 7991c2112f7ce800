"""A language model that reads one token after the other, with memory of its own."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from quatrain.kernels import rms_norm
from quatrain.kernels.linear_step import linear
from quatrain.model.backbone import Block, GatedMLP, RMSNorm, State
from quatrain.model.lm import LanguageModel

Map = Callable[[Tensor], Tensor]


class Decoder:
    """`LanguageModel.step` again and again: the same numbers, without checks, and nothing is copied.

    The model is read in evaluation mode whatever its mode is, and its parameters must not change in
    between. Gradients are not recorded. Cost of a token: reading the weights and the state once.
    """

    def __init__(self, model: LanguageModel, state: State) -> None:
        blocks = model.backbone.blocks
        self._runs = [block.mixer.run(before) for block, before in zip(blocks, state, strict=True)]
        self._layers = [_layer(block, run) for block, run in zip(blocks, self._runs, strict=True)]
        self._norm = _norm(model.backbone.norm)
        self._embedding, self._head = model.embedding.weight, model.head_weight

    def __call__(self, token: Tensor) -> Tensor:
        """``token (B,)`` int64 in [0, V) to logits ``(B, V)``."""
        with torch.no_grad():
            x = F.embedding(token, self._embedding)
            for layer in self._layers:
                x = layer(x)
            return linear(self._norm(x), self._head)

    def state(self) -> State:
        """The state after the last token, as a value: later tokens do not change it."""
        return tuple(run.state() for run in self._runs)


def _layer(block: Block, mix: Map) -> Map:
    if not block.residual:
        return mix
    norm = _norm(block.norm)
    if block.mlp is None:
        return lambda x: x + mix(norm(x))
    mlp_norm, mlp = _norm(block.mlp_norm), _mlp(block.mlp)

    def layer(x: Tensor) -> Tensor:
        x = x + mix(norm(x))
        return mlp(mlp_norm(x), x)

    return layer


def _norm(norm: RMSNorm | None) -> Map:
    if norm is None:
        return lambda x: x
    weight, eps = norm.weight, norm.eps
    return lambda x: rms_norm(x, weight, eps=eps)


def _mlp(mlp: GatedMLP) -> Callable[[Tensor, Tensor], Tensor]:
    gate, up, down = mlp.gate.weight, mlp.up.weight, mlp.down.weight
    return lambda x, add: linear(F.silu(linear(x, gate)).mul_(linear(x, up)), down, add)
