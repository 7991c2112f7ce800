"""Mixers in a stack: pre-norm residual blocks, or the plain stack of a classic deep LSTM."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from quatrain.errors import ShapeError, StateError
from quatrain.kernels import rms_norm
from quatrain.kernels._core.tape import Tape
from quatrain.kernels.linear_step import cpu as linear_step
from quatrain.kernels.rms_norm import cpu as rms_norm_cpu
from quatrain.mixers import mixer_class
from quatrain.mixers._recorded import Bindable, Recordable, Recorded, Step, plain
from quatrain.model.config import ModelConfig

State = tuple[tuple[Tensor, ...], ...]  # one state per layer, each its mixer's NamedTuple, batch first


class RMSNorm(nn.Module):
    """y = weight * x / sqrt(mean(x^2) + eps) over the last dimension, computed in float32 or wider.

    ``x (..., D) -> (..., D)`` in the dtype of ``x``. Source: Zhang and Sennrich, arXiv:1910.07467.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, eps=self.eps)


class GatedMLP(nn.Module):
    """y = down(silu(gate(x)) * up(x)), ``(..., D) -> (..., D)``; 6 D M operations per token at inner width M.

    Source: Shazeer, arXiv:2002.05202 (SwiGLU, without biases).
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, inner, bias=False)
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]  # Module call is Any

    def flops_per_token(self) -> int:
        """Multiplications and additions of the three products."""
        return 6 * self.gate.in_features * self.gate.out_features


class Block(nn.Module):
    """x + mixer(norm(x)), then, with an MLP, x + mlp(norm(x)); dropout acts on what is added.

    As a layer of a plain stack: only the mixer. Same arguments and results as a mixer.
    """

    def __init__(self, config: ModelConfig, kind: str) -> None:
        super().__init__()
        self.config, self.kind = config, kind
        self.residual = config.form == "residual"
        self.mixer = mixer_class(kind)(config.mixer_config(kind))
        self.dropout = nn.Dropout(config.dropout)
        self.norm = RMSNorm(config.width, config.norm_eps) if self.residual else None
        mlp = config.has_mlp(kind)
        self.mlp_norm = RMSNorm(config.width, config.norm_eps) if mlp else None
        self.mlp = GatedMLP(config.width, config.inner) if mlp else None
        self._recorded = Recorded()

    def forward(
        self,
        x: Tensor,  # (B, T, D)
        state: tuple[Tensor, ...] | None,
        lengths: Tensor | None,
        cu_seqlens: Tensor | None,
        keep_state: bool,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        inner = x if self.norm is None else self.norm(x)
        y, state = self.mixer(inner, state, lengths, cu_seqlens, keep_state=keep_state)
        return self._add(x, y), state

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One token: ``x (B, D)``."""
        if not (torch.compiler.is_compiling() or (self.training and (self.dropout.p or self.config.draws))):
            done: tuple[Tensor, tuple[Tensor, ...]] | None = self._recorded.step(
                self, self.config.width, x, state
            )
            if done is not None:
                return done
        y, state = self.mixer.step(x if self.norm is None else self.norm(x), state)
        return self._add(x, y), state

    def like_new(self) -> "Block":
        """A block of the same config with weights of its own."""
        return Block(self.config, self.kind)

    def _recorded_step(self, batch: int, dtype: torch.dtype) -> Step[Any] | None:
        mlp = self.mlp
        if mlp is not None and not (type(mlp) is GatedMLP and plain(mlp.gate, mlp.up, mlp.down)):
            return None
        if any(type(norm) is not RMSNorm for norm in (self.norm, self.mlp_norm) if norm is not None):
            return None
        return self.mixer._recorded_step(batch, dtype)

    def _record(self, tape: Tape, step: Step[Any], x: Tensor, y: Tensor) -> None:
        if self.norm is not None:
            tape.copy(x, y)
        self.record(tape, step, x, y)

    def record(self, tape: Tape, step: Recordable, x: Tensor, y: Tensor) -> None:
        """Record the layer for steps on the CPU.

        As a block of a residual stream it adds to y, which is a copy of x or x itself; else y is another
        tensor.
        """
        if self.norm is None:
            step.record(tape, x, y, add=False)
            return
        step.record(tape, _record_norm(tape, self.norm, y), y, add=True)
        if self.mlp is not None and self.mlp_norm is not None:
            _record_mlp(tape, self.mlp, _record_norm(tape, self.mlp_norm, y), y)

    def _add(self, x: Tensor, y: Tensor) -> Tensor:
        if not self.residual:
            return y
        x = x + self.dropout(y)
        if self.mlp is not None and self.mlp_norm is not None:
            x = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return x


class _StackStep:
    """The steps of all layers as one, which the backbone records."""

    def __init__(self, steps: list[Step[Any]]) -> None:
        self.steps = steps

    def open(self, tape: Tape) -> None:
        for step in self.steps:
            step.open(tape)

    def bind(self, state: Any) -> State | None:
        if type(state) is not tuple or len(state) != len(self.steps):
            return None
        after = []
        for step, before in zip(self.steps, state, strict=True):
            bound = step.bind(before)
            if bound is None:
                return None
            after.append(bound)
        return tuple(after)


def _record_norm(tape: Tape, norm: RMSNorm, x: Tensor, y: Tensor | None = None) -> Tensor:
    if y is None:
        y = tape.buffer("norm", *x.shape, dtype=x.dtype)
    return rms_norm_cpu.record(tape, x, norm.weight, norm.eps, y)


def _record_mlp(tape: Tape, mlp: GatedMLP, x: Tensor, y: Tensor) -> None:
    """Record ``y += mlp(x)``."""
    gate, up = (tape.buffer(use, len(x), mlp.gate.out_features, dtype=x.dtype) for use in ("gate", "up"))
    linear_step.record(tape, x, mlp.gate.weight, None, gate)
    linear_step.record(tape, x, mlp.up.weight, None, up)
    linear_step.record(tape, tape.silu_gate(gate, up, gate), mlp.down.weight, y, y)


class Backbone(nn.Module):
    """``config.layers`` mixers in the order of ``config.pattern``, as one causal map of vectors.

    Residual form: dropout, blocks (see `Block`), final RMSNorm. Stack form: mixers one after the other with
    dropout between them, as ``torch.nn.LSTM`` does it. The batch comes padded (``x (B, T, D)``, optional
    ``lengths (B,)``; outputs at t >= length are 0) or packed (``x (1, total, D)``, ``cu_seqlens (S+1,)``,
    states of batch S). A state is a tuple with one mixer state per layer; it is a value: nothing is stored in
    the module, no argument is changed.

    With ``config.checkpoint_layers``, training keeps only each layer's input and recomputes the rest in the
    backward
    pass: the same numbers, dropout masks included, for about one more forward pass of time.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(Block(config, kind) for kind in config.kinds)
        self.norm = RMSNorm(config.width, config.norm_eps) if config.form == "residual" else None
        self._recorded = Recorded()

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        lengths: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        *,
        keep_state: bool = True,
    ) -> tuple[Tensor, State | None]:
        """Whole sequences: ``(B, T, D) -> (B, T, D)`` and the state after the last valid step of each.

        Without ``keep_state`` the second result is None, and attention keeps no keys and values alive.

        Raises:
            ShapeError: x is not (B >= 1, T >= 1, D).
            StateError: the state has another number of layers or another batch size.
        """
        self._check_input(x, state, cu_seqlens)
        if self.norm is not None:
            x = self.dropout(x)
        states = []
        recompute = self.config.checkpoint_layers and self.training and torch.is_grad_enabled()
        for index, layer in enumerate(self.layers):
            if index > 0 and self.norm is None:
                x = self.dropout(x)
            arguments = (x, None if state is None else state[index], lengths, cu_seqlens, keep_state)
            x, after = checkpoint(layer, *arguments, use_reentrant=False) if recompute else layer(*arguments)
            states.append(after)
        if self.norm is not None:
            x = self.norm(x)
            if lengths is not None:  # a plain stack ends in a mixer, which does this itself
                valid = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
                x = x.masked_fill(~valid[:, :, None], 0)
        return x, tuple(states) if keep_state else None

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One token: ``(B, D) -> (B, D)`` and the state after it. Raises StateError for a foreign state."""
        if not (torch.compiler.is_compiling() or (self.training and (self.dropout.p or self.config.draws))):
            done: tuple[Tensor, State] | None = self._recorded.step(self, self.config.width, x, state)
            if done is not None:
                return done
        self._check_layers(state)
        if self.norm is not None and self.training:
            x = self.dropout(x)
        states = []
        for index, (layer, before) in enumerate(zip(self.blocks, state, strict=True)):
            if index > 0 and self.norm is None and self.training:
                x = self.dropout(x)
            x, after = layer.step(x, before)
            states.append(after)
        return (x if self.norm is None else self.norm(x)), tuple(states)

    def like_new(self) -> "Backbone":
        """A backbone of the same config with weights of its own."""
        return Backbone(self.config)

    def _recorded_step(self, batch: int, dtype: torch.dtype) -> Bindable[Any] | None:
        if len(self.blocks) != len(self.layers) or (self.norm is not None and type(self.norm) is not RMSNorm):
            return None
        steps = [block._recorded_step(batch, dtype) for block in self.blocks]
        found = [step for step in steps if step is not None]
        return _StackStep(found) if len(found) == len(steps) else None

    def _record(self, tape: Tape, step: _StackStep, x: Tensor, y: Tensor) -> None:
        self.record(tape, step.steps, x, y)

    def record(self, tape: Tape, steps: Sequence[Recordable], x: Tensor, y: Tensor) -> None:
        """Record ``y = step(x)``, both (B, D), with a recorded step for each layer's mixer."""
        if self.norm is not None:
            stream = tape.copy(x, tape.buffer("stream", *x.shape, dtype=x.dtype))
            for block, step in zip(self.blocks, steps, strict=True):
                block.record(tape, step, stream, stream)
            _record_norm(tape, self.norm, stream, y)
            return
        turns = [tape.buffer(use, *x.shape, dtype=x.dtype) for use in ("even", "odd")]
        for index, (block, step) in enumerate(zip(self.blocks, steps, strict=True)):
            out = y if index + 1 == len(steps) else turns[index % 2]  # no layer writes what it reads
            block.record(tape, step, x, out)
            x = out

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The layers, typed."""
        return tuple(layer for layer in self.layers if isinstance(layer, Block))

    def initial_state(self, batch: int) -> State:
        """The state before the first token, on the parameters' device."""
        if batch < 1:
            raise ShapeError(f"batch = {batch}: must be at least 1")
        return tuple(layer.mixer.initial_state(batch) for layer in self.blocks)

    def state_bytes(self, batch: int, time: int) -> int:
        """Live bytes of the state of ``batch`` sequences after ``time`` tokens each."""
        return sum(layer.mixer.state_bytes(batch, time) for layer in self.blocks)

    def flops_per_token(self, context: int) -> int:
        """Operations of a forward pass for one token that sees ``context``, itself included: mixers, MLPs."""
        mixers = sum(layer.mixer.flops_per_token(context) for layer in self.blocks)
        return mixers + sum(layer.mlp.flops_per_token() for layer in self.blocks if layer.mlp is not None)

    def _check_input(self, x: Tensor, state: State | None, cu_seqlens: Tensor | None) -> None:
        width = self.config.width
        if x.ndim != 3 or x.shape[2] != width or 0 in x.shape:
            raise ShapeError(f"x: shape {tuple(x.shape)}: must be (B, T, {width}) with B and T at least 1")
        if state is None:
            return
        self._check_layers(state)
        batch = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
        for index, layer in enumerate(state):
            for tensor in layer:
                if tensor.shape[:1] != (batch,):
                    raise StateError(
                        f"state: layer {index} holds a batch of {tensor.shape[0] if tensor.ndim else 0}; "
                        f"the input has {batch} sequences"
                    )

    def _check_layers(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != len(self.layers):
            count = f"{len(state)} layers" if isinstance(state, tuple) else f"a {type(state).__name__}"
            raise StateError(f"state: {count}: must be a tuple with the states of {len(self.layers)} layers")
