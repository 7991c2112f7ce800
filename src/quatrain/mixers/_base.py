"""What every causal mixer promises, and the checks that they share."""

from abc import abstractmethod
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar, overload

import torch
from torch import Tensor, nn

from quatrain.config.schema import from_dict
from quatrain.errors import ConfigError, ShapeError
from quatrain.kernels._batch import check_batch, mask
from quatrain.kernels._core.tape import Tape
from quatrain.mixers._check import check_input, check_state
from quatrain.mixers._recorded import Recorded, Step, plain
from quatrain.mixers._run import Run

S = TypeVar("S", bound=tuple[Tensor, ...])  # each mixer's own NamedTuple, batch first
Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]  # field of a state -> shape and dtype


class Causal(nn.Module, Generic[S]):
    """Maps a sequence to a sequence, causally, with all memory in an explicit state.

    ``forward`` and ``step`` are one function: for every split point, ``forward(x)`` equals ``forward`` on the
    head followed by ``step`` over the tail. The module holds parameters only. States are values: no method
    changes its argument, so a state may be kept, copied, sent to another process, or used to branch.

    Build one from its config or from the fields of its config: ``LSTM(LSTMConfig(width=256))``,
    ``LSTM(width=256)``.

    Attributes:
        Config: frozen dataclass of the settings; ``Config(width=D)`` alone is valid.
        State: NamedTuple of tensors, batch first.
        kind: name in `quatrain.mixers.MIXERS`.
        rewindable: whether a state can be cut back to a shorter prefix.
        gated_mlp: whether a block around this mixer has an MLP when the model's ``mlp`` is ``"auto"``.
    """

    Config: ClassVar[type[Any]]
    State: ClassVar[type[Any]]
    kind: ClassVar[str]
    rewindable: ClassVar[bool] = False
    gated_mlp: ClassVar[bool] = False
    _free: ClassVar[str] = ""  # fields of the state whose second dimension grows with time

    config: Any

    def __init__(self, config: Any = None, **fields: object) -> None:
        super().__init__()
        if config is None:
            config = from_dict(self.Config, fields)
        elif not isinstance(config, self.Config):
            raise ConfigError(f"config = {config!r}: must be a {self.Config.__name__}")
        elif fields:
            raise ConfigError(f"{next(iter(fields))}: give either a config or its fields, not both")
        self.config = config
        self._recorded = Recorded()

    @overload
    def forward(
        self,
        x: Tensor,
        state: S | None = None,
        lengths: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        *,
        keep_state: Literal[True] = True,
    ) -> tuple[Tensor, S]: ...

    @overload
    def forward(
        self,
        x: Tensor,
        state: S | None = None,
        lengths: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        *,
        keep_state: bool,
    ) -> tuple[Tensor, S | None]: ...

    def forward(
        self,
        x: Tensor,
        state: S | None = None,
        lengths: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        *,
        keep_state: bool = True,
    ) -> tuple[Tensor, S | None]:
        """Whole sequences: ``(B, T, D) -> (B, T, D)``, and the state after the last valid step of each.

        Args:
            x: (B, T, D) padded on the right, or (1, total, D) packed; B and T at least 1.
            state: state before the first step, of batch B (packed: S); None is the initial state.
            lengths: (B,) integers in [0, T]: valid steps of each row. Outputs past them are 0, and what x
                holds there does not matter. A row of length 0 keeps its state.
            cu_seqlens: (S + 1,) integers from 0 to total, never falling: where each packed sequence starts.
                The state is reset at every boundary, and there is one state per sequence, in and out.
            keep_state: False gives None in the place of the state, for training: attention then keeps no keys
                alive.

        Raises:
            ShapeError: x, lengths or cu_seqlens has a wrong shape, dtype, device or content.
            StateError: the state is of another mixer, batch size or configuration.
        """
        check_input(x, self.config.width, 3, self._like)
        batch = check_batch(x, lengths=lengths, cu_seqlens=cu_seqlens)
        if state is not None:
            self._check_state(state, batch)
        if lengths is not None:
            x = x.masked_fill(
                ~mask(lengths, x.shape[1])[..., None], 0
            )  # padding may hold anything, NaN included
        y, after = self._forward(x, state, lengths, cu_seqlens, keep_state)
        return y, (after if keep_state else None)

    if TYPE_CHECKING:  # calling the module is typed as forward is, where torch says Any
        __call__ = forward

    def step(self, x: Tensor, state: S) -> tuple[Tensor, S]:
        """One token: ``(B, D) -> (B, D)`` and the state after it; the same numbers as `forward` gives.

        Raises:
            ShapeError: x has a wrong shape, dtype or device.
            StateError: the state is of another mixer, batch size or configuration.
        """
        if not torch.compiler.is_compiling():
            done: tuple[Tensor, S] | None = self._recorded.step(self, self.config.width, x, state)
            if done is not None:
                return done
        check_input(x, self.config.width, 2, self._like)
        self._check_state(state, x.shape[0])
        return self._step(x, state)

    def step_residual(self, x: Tensor, state: S, norm_weight: Tensor, eps: float) -> tuple[Tensor, S] | None:
        """The step of a residual block, x + step(rms_norm(x)), where one op makes it; else None.

        Raises what `step` does.
        """
        return None

    def run(self, state: S) -> Run[S]:
        """Steps from ``state`` on for generation, with memory of their own; see `Run`.

        The state must be this mixer's: it is not checked.
        """
        return Run(self._step, state)

    def initial_state(self, batch: int) -> S:
        """State before the first token, on the parameters' device. Raises ShapeError unless ``batch`` is at
        least 1.
        """
        layout = self._layout(_count("batch", batch, 1), 0)
        device = self._like.device
        state: S = self.State(
            **{
                name: torch.zeros(shape, dtype=dtype, device=device)
                for name, (shape, dtype) in layout.items()
            }
        )
        return state

    def state_bytes(self, batch: int, time: int) -> int:
        """Live bytes of the state of ``batch`` sequences after ``time`` tokens each, outside autocast."""
        layout = self._layout(_count("batch", batch, 0), _count("time", time, 0))
        return sum(prod(shape) * dtype.itemsize for shape, dtype in layout.values())

    @abstractmethod
    def flops_per_token(self, context: int) -> int:
        """Operations of a forward pass for one token with ``context`` tokens to look at, itself included.

        Multiplications and additions of matrix products and scans; norms, gates and biases are left out.
        """

    @abstractmethod
    def _layout(self, batch: int, time: int) -> Layout:
        """Shape and dtype of each tensor of the state after ``time`` tokens."""

    @abstractmethod
    def _forward(
        self, x: Tensor, state: S | None, lengths: Tensor | None, cu_seqlens: Tensor | None, keep_state: bool
    ) -> tuple[Tensor, S | None]:
        """`forward` on checked arguments; padding is 0. The state may be None where ``keep_state`` is
        False.
        """

    def _step(self, x: Tensor, state: S) -> tuple[Tensor, S]:
        """`step` on checked arguments."""
        y, after = self._forward(x[:, None], state, None, None, True)
        assert after is not None
        return y[:, 0], after

    def _recorded_step(self, batch: int, dtype: torch.dtype) -> Step[S] | None:
        """The step as calls of the core, for parameters of ``dtype``, dense and on the CPU; None if it has
        others.
        """
        return None

    def _record(self, tape: Tape, step: Step[S], x: Tensor, y: Tensor) -> None:
        step.record(tape, x, y, add=False)

    def like_new(self) -> "Causal[S]":
        """A mixer of the same config with weights of its own."""
        return type(self)(self.config)

    def _is_recordable(self, kind: type["Causal[Any]"], *maps: nn.Module) -> bool:
        """Whether this is a ``kind`` itself with plain linear maps, whose choice of implementation allows the
        core.
        """
        return type(self) is kind and self.config.impl in ("auto", "cpp") and plain(*maps)

    def _check_state(self, state: S, batch: int) -> None:
        check_state(state, self.State, self._layout(batch, 0), self._free, self._like)

    @property
    def _like(self) -> Tensor:
        """A parameter: the dtype and device of this mixer."""
        return next(self.parameters())

    @property
    def _wide(self) -> torch.dtype:
        """Dtype of what is summed over time: float32 or wider."""
        return torch.promote_types(self._like.dtype, torch.float32)

    def extra_repr(self) -> str:
        return str(self.config)


def _count(name: str, value: int, least: int) -> int:
    if type(value) is not int or value < least:
        raise ShapeError(f"{name} = {value!r}: must be an integer of at least {least}")
    return value
