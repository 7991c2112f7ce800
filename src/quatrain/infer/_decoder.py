"""A language model that reads one token after the other, with memory of its own."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from quatrain.kernels import rms_norm
from quatrain.kernels._core.tape import Tape
from quatrain.kernels.linear_step import cpu as linear_step
from quatrain.kernels.linear_step import linear
from quatrain.mixers._recorded import shapes, shapes_of
from quatrain.mixers._run import RecordedRun, Run
from quatrain.model.backbone import Block, GatedMLP, RMSNorm, State
from quatrain.model.lm import LanguageModel

Map = Callable[[Tensor], Tensor]


class Decoder:
    """`LanguageModel.step` again and again: the same numbers, without checks, and nothing is copied.

    The model is read in evaluation mode whatever its mode is, and its parameters must not change in
    between. Gradients are not recorded. On a CPU, where the C++ core can do all of it, a token is one call of
    the core. Cost of a token: reading the weights and the state once.
    """

    def __init__(self, model: LanguageModel, state: State) -> None:
        self._model = model
        self._state: State | None = None
        self._record: _Record | None = None
        built = shapes(model) == shapes_of(lambda: LanguageModel(model.config))
        if type(model).step is not LanguageModel.step or not built:  # who changed it knows better
            self._state = state
            return
        blocks = model.backbone.blocks
        with torch.no_grad():
            self._runs = [block.mixer.run(before) for block, before in zip(blocks, state, strict=True)]
        self._layers = [_layer(block, run) for block, run in zip(blocks, self._runs, strict=True)]
        self._norm = _norm(model.backbone.norm)
        recorded = [run for run in self._runs if isinstance(run, RecordedRun)]
        weights = [weight.detach() for weight in model.parameters() if weight.ndim == 2]
        if len(recorded) == len(blocks) and linear_step.recordable(len(state[0][0]), *weights):
            self._record = _Record(model, recorded, len(state[0][0]))

    def __call__(self, token: Tensor) -> Tensor:
        """``token (B,)`` int64 in [0, V) to logits ``(B, V)``, which the next call may overwrite."""
        with torch.no_grad():
            if self._record is not None:
                return self._record(token)
            if self._state is not None:
                logits, self._state = self._model.step(token, self._state)
                return logits
            x = F.embedding(token, self._model.embedding.weight)
            for layer in self._layers:
                x = layer(x)
            return linear(self._norm(x), self._model.head_weight)

    def state(self) -> State:
        """The state after the last token, as a value: later tokens do not change it."""
        return tuple(run.state() for run in self._runs) if self._state is None else self._state


class _Record:
    """The whole model as one tape, recorded again when a mixer's memory has to grow."""

    def __init__(self, model: LanguageModel, runs: Sequence[RecordedRun[Any]], batch: int) -> None:
        self._model, self._runs = model, runs
        self._token = torch.zeros(batch, dtype=torch.int64)
        self._left: float = 0

    def __call__(self, token: Tensor) -> Tensor:
        if self._left == 0:
            for run in self._runs:
                run.grow()
            self._left = min(run.room() for run in self._runs)
            self._tape = Tape()
            self._logits = self._write(self._tape)
        self._token.copy_(token)
        self._tape.run()
        self._left -= 1
        for run in self._runs:
            run.advance(1)
        return self._logits

    def _write(self, tape: Tape) -> Tensor:
        model, backbone = self._model, self._model.backbone
        batch, width = len(self._token), model.config.width
        table, head = model.embedding.weight, model.head_weight
        x = tape.embed(self._token, table, tape.buffer("embedded", batch, width, dtype=table.dtype))
        y = tape.buffer("hidden", batch, width, dtype=table.dtype)
        backbone.record(tape, self._runs, x, y)
        logits = tape.buffer("logits", batch, len(head), dtype=head.dtype)
        return linear_step.record(tape, y, head, None, logits)


def _layer(block: Block, mix: Run[Any]) -> Map:
    if block.norm is None:
        return mix
    norm, weight, eps = _norm(block.norm), block.norm.weight, block.norm.eps

    def mixed(x: Tensor) -> Tensor:
        y = mix.residual(x, weight, eps)
        return x + mix(norm(x)) if y is None else y

    if block.mlp is None:
        return mixed
    mlp_norm, mlp = _norm(block.mlp_norm), _mlp(block.mlp)

    def layer(x: Tensor) -> Tensor:
        x = mixed(x)
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
