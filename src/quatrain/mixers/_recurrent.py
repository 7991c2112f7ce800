"""What RNN, LSTM and GRU share: weights of one direction or of two, and dropout of the recurrent input."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.config.check import check
from quatrain.errors import ConfigError, StateError
from quatrain.kernels._batch import reversal, reverse
from quatrain.kernels._recurrent import KINDS
from quatrain.kernels._recurrent_layer import Run, layer
from quatrain.kernels.recurrent_step import step
from quatrain.mixers import _recurrent_run, _run, mixer_class
from quatrain.mixers._base import Causal, Layout
from quatrain.mixers._check import boolean, plain_state, positive_int
from quatrain.mixers._recorded import Step
from quatrain.mixers._recurrent_run import RecurrentRun

S = TypeVar("S", bound=tuple[Tensor, ...])
Starts = tuple[Tensor | None, ...]  # a state's tensors, or None for each


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig:
    """Settings that all three have. Raises ConfigError for a value outside its range."""

    width: Annotated[int, "numbers per token, in and out"] = 256
    causal: Annotated[
        bool, "false: half the width reads forwards, half backwards, for encoders; width is even then"
    ] = True
    recurrent_dropout: Annotated[
        float, "probability of dropping a unit of h_{t-1}, the same units at all steps, in [0, 1)"
    ] = 0.0
    impl: Annotated[str, "implementation of the scan"] = "auto"

    def __post_init__(self) -> None:
        positive_int("width", self.width)
        boolean("causal", self.causal)
        even = self.causal or self.width % 2 == 0
        check(even, "causal", False, f"needs an even width, not {self.width}: half for each direction")
        p = self.recurrent_dropout
        number = isinstance(p, (int, float)) and not isinstance(p, bool)
        check(number and 0 <= p < 1, "recurrent_dropout", p, "is a probability in [0, 1)")


class Direction(nn.Module):
    """The weights that read a sequence backwards; `Recurrent` has those that read it forwards itself."""

    in_proj: nn.Linear
    recurrent: nn.Parameter
    recurrent_bias: nn.Parameter | None


class Recurrent(Causal[S]):
    """A gated or plain recurrence with ``in_proj (G H, D)`` and ``recurrent (G H, H)``.

    Causal: H = D. With ``causal=False`` a second set of weights, ``reverse``, reads each sequence from its
    last valid step to its first; both have H = D / 2 and y_t is their outputs side by side, as that of
    ``torch.nn.LSTM(D, D // 2, bidirectional=True)``. A state is that of both then, its halves side by side
    too: what goes in is where each direction starts (forwards before the first step, backwards after the
    last), what comes out where each ends. It does not go on from one piece of a sequence to the next, and
    ``step`` and ``run`` raise StateError. Cost: two scans, and two reorderings of the batch, with ``lengths``
    or ``cu_seqlens`` by an index that is computed on the device.

    Recurrent dropout (Gal and Ghahramani, arXiv:1512.05287), in training: products with h_{t-1} take
    m * h_{t-1} instead, where m is 0 with probability p and else 1 / (1 - p), and the same at all steps. A
    call of ``forward`` draws one m for each direction, which the sequences of the batch share, since
    R (m * h) = (R diag(m)) h: the scan runs as ever, on another matrix, and may keep it in registers; an m
    for each sequence would change the operand of every step. The gradient of R is masked with m. In an LSTM
    all gates have the same m; in a GRU z h_{t-1} stays whole, for it is no product with a matrix. ``step``
    and ``run`` would draw at every step and raise ConfigError in training.
    """

    gates: ClassVar[int]  # G
    in_proj: nn.Linear
    recurrent: nn.Parameter
    recurrent_bias: nn.Parameter | None

    def __init__(self, config: Any = None, **fields: object) -> None:
        super().__init__(config, **fields)
        self._add_weights(self)
        self.reverse: Direction | None = None
        if not self.config.causal:
            self.reverse = Direction()
            self._add_weights(self.reverse)

    def _add_weights(self, to: Any) -> None:
        hidden = self._hidden
        to.in_proj = nn.Linear(self.config.width, self.gates * hidden)
        to.recurrent = nn.Parameter(torch.empty(self.gates * hidden, hidden))
        to.recurrent_bias = nn.Parameter(torch.zeros(hidden)) if self._has_bias else None
        self._draw(to)

    @abstractmethod
    def _draw(self, weights: Any) -> None:
        """Draw the first values of `Direction`'s parameters."""

    @abstractmethod
    def _scan(
        self,
        drive: Tensor,
        matrix: Tensor,
        bias: Tensor | None,
        starts: Starts,
        lengths: Tensor | None,
        cu_seqlens: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """The op on projected inputs: y and the tensors of the state."""

    @property
    def _core(self) -> tuple[str, int]:
        """What the core calls it: key in `KINDS`, variant."""
        return self.kind, 0

    @property
    def _has_bias(self) -> bool:
        return False

    @property
    def _hidden(self) -> int:
        """H, the width of one direction."""
        width: int = self.config.width
        return width if self.config.causal else width // 2

    def step(self, x: Tensor, state: S) -> tuple[Tensor, S]:
        self._check_steps()
        return super().step(x, state)

    def run(self, state: S) -> _run.Run[S]:
        self._check_steps()
        if not RecurrentRun.fits(self, state):
            return super().run(state)
        key, variant = self._core
        return RecurrentRun(self, state, KINDS[key], variant, self.recurrent_bias)

    def _check_steps(self) -> None:
        config = self.config
        if not config.causal:
            rule = "with causal = false it has no steps: one direction starts at the end of the sequence"
            raise StateError(f"{self.kind}: {rule}")
        if self.training and config.recurrent_dropout:
            rule = "a step in training would draw a mask of its own: call eval(), or forward on all steps"
            raise ConfigError(f"recurrent_dropout = {config.recurrent_dropout}: {rule}")

    def _recorded_step(self, batch: int, dtype: torch.dtype) -> Step[S] | None:
        fits = self.config.causal and self._is_recordable(mixer_class(self.kind), self.in_proj)
        if not fits:
            return None
        key, variant = self._core
        return _recurrent_run.step(self, batch, KINDS[key], variant, self.recurrent_bias)

    def _forward(
        self,
        x: Tensor,
        state: S | None,
        lengths: Tensor | None,
        cu_seqlens: Tensor | None,
        keep_state: bool,
    ) -> tuple[Tensor, S]:
        starts: Starts = (None,) * len(self.State._fields) if state is None else tuple(state)
        if self.reverse is None:
            y, *after = self._pass(self, x, starts, lengths, cu_seqlens)
            return y, self.State(*after)
        halves = [(None, None) if start is None else start.chunk(2, -1) for start in starts]
        ahead, behind = zip(*halves, strict=True)
        order = reversal(x, lengths, cu_seqlens)
        y, *after = self._pass(self, x, ahead, lengths, cu_seqlens)
        z, *before = self._pass(self.reverse, reverse(x, order), behind, lengths, cu_seqlens)
        both = [torch.cat(pair, -1) for pair in zip(after, before, strict=True)]
        return torch.cat((y, reverse(z, order)), -1), self.State(*both)

    def _pass(
        self,
        weights: "Direction | Recurrent[S]",
        x: Tensor,
        starts: Starts,
        lengths: Tensor | None,
        cu_seqlens: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """One direction: y (B, T, H) and the tensors of the state."""
        matrix: Tensor = weights.recurrent
        if self.training and self.config.recurrent_dropout:
            matrix = matrix * F.dropout(matrix.new_ones(self._hidden), self.config.recurrent_dropout)
        if lengths is None and cu_seqlens is None:
            done = self._in_core(layer, weights, matrix, x, starts)
            if done is not None:
                return done
        # (B, T, G H); of low precision under autocast, and the recurrent parameters with it
        drive, bias = weights.in_proj(x), None
        if weights.recurrent_bias is not None:
            bias = weights.recurrent_bias.to(drive.dtype)
        return self._scan(drive, matrix.to(drive.dtype), bias, starts, lengths, cu_seqlens)

    def _step(self, x: Tensor, state: S) -> tuple[Tensor, S]:
        done = self._in_core(step, self, self.recurrent, x, state)
        return super()._step(x, state) if done is None else (done[0], self.State(*done[1:]))

    def _in_core(
        self, run: Run, weights: "Direction | Recurrent[S]", matrix: Tensor, x: Tensor, starts: Starts
    ) -> tuple[Tensor, ...] | None:
        """Projection and scan together, where the C++ core or a GPU kernel does it."""
        key, variant = self._core
        project = weights.in_proj
        return run(
            KINDS[key],
            x,
            project.weight,
            project.bias,
            matrix,
            weights.recurrent_bias,
            starts[0],
            starts[1] if len(starts) > 1 else None,
            variant=variant,
            impl=self.config.impl,
        )

    def _check_state(self, state: S, batch: int) -> None:
        if not plain_state(state, self.State, (batch, self.config.width), self.recurrent):
            super()._check_state(state, batch)

    def _layout(self, batch: int, time: int) -> Layout:
        return dict.fromkeys(self.State._fields, ((batch, self.config.width), self._wide))

    def flops_per_token(self, context: int) -> int:
        width: int = self.config.width
        ways = 1 if self.config.causal else 2
        return ways * 2 * self.gates * self._hidden * (width + self._hidden)
