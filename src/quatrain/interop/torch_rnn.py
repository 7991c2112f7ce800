"""``torch.nn.RNN``, ``LSTM`` and ``GRU`` as a stack on Quatrain's scans, and back with the same bits."""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.errors import ConfigError, StateError
from quatrain.kernels import gru_scan, lstm_scan, rnn_scan
from quatrain.kernels._batch import check_batch, mask, reversal, reverse
from quatrain.mixers._check import check_input, check_state
from quatrain.mixers.gru import GRUState
from quatrain.mixers.lstm import LSTMState
from quatrain.mixers.rnn import RNNState

State = tuple[tuple[Tensor, ...], ...]  # one per layer and direction: RNNState, LSTMState or GRUState
TorchRNN = nn.RNN | nn.LSTM | nn.GRU

_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")  # of one layer's parameters, as torch calls them
_CLASSES: dict[str, type[TorchRNN]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
_STATES: dict[str, type[Any]] = {"rnn": RNNState, "lstm": LSTMState, "gru": GRUState}
_GATES = {"rnn": 1, "lstm": 4, "gru": 3}


class Settings(NamedTuple):
    """What a module of torch was built with, beside its parameters' dtype and device."""

    kind: str  # rnn, lstm or gru
    input_size: int
    hidden_size: int
    num_layers: int
    nonlinearity: str  # tanh or relu; tanh but for an RNN
    bias: bool
    batch_first: bool  # of the torch module; a stack is always (B, T, D)
    dropout: float
    bidirectional: bool = False

    @property
    def ways(self) -> int:
        """Directions of a layer: 1 or 2."""
        return 2 if self.bidirectional else 1


class Layer(nn.Module):
    """One direction of a layer: input projection of all steps, then the scan. Keeps both of torch's biases.

    ``x (B, T, I) -> (B, T, D)`` and the state after each sequence.
    """

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None

    def __init__(self, settings: Settings, input_size: int, impl: str) -> None:
        super().__init__()
        self.settings, self.impl = settings, impl
        width, rows = settings.hidden_size, _GATES[settings.kind] * settings.hidden_size
        shapes = ((rows, input_size), (rows, width), (rows,), (rows,))
        for name, shape in zip(_NAMES, shapes, strict=True):
            absent = name.startswith("bias") and not settings.bias
            self.register_parameter(name, None if absent else nn.Parameter(torch.empty(shape)))

    def forward(
        self, x: Tensor, state: Any, lengths: Tensor | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        kind = self.settings.kind
        bias, inside = self._biases()
        drive = F.linear(x, self.weight_ih, bias)
        weight, starts = self.weight_hh.to(drive.dtype), (None, None) if state is None else tuple(state)
        if kind == "lstm":
            y, *after = lstm_scan(
                drive, weight, starts[0], starts[1], lengths=lengths, cu_seqlens=cu_seqlens, impl=self.impl
            )
        elif kind == "gru":
            inside = None if inside is None else inside.to(drive.dtype)
            y, *after = gru_scan(
                drive, weight, inside, starts[0], lengths=lengths, cu_seqlens=cu_seqlens, impl=self.impl
            )
        else:
            y, *after = rnn_scan(
                drive,
                weight,
                starts[0],
                nonlinearity="relu" if self.settings.nonlinearity == "relu" else "tanh",
                lengths=lengths,
                cu_seqlens=cu_seqlens,
                impl=self.impl,
            )
        return y, _STATES[kind](*after)

    def _biases(self) -> tuple[Tensor | None, Tensor | None]:
        """The bias of the input projection, and that of the product inside a GRU's reset gate."""
        if self.bias_ih is None or self.bias_hh is None:
            return None, None
        if self.settings.kind != "gru":
            return self.bias_ih + self.bias_hh, None
        width = self.settings.hidden_size
        of_gates, inside = self.bias_hh.split_with_sizes((2 * width, width))
        return self.bias_ih + F.pad(of_gates, (0, width)), inside


class Stack(nn.Module):
    """The layers of a ``torch.nn.RNN``, ``LSTM`` or ``GRU``, one after the other, dropout between them.

    ``stack(x) -> (y, state)`` with x (B, T, I), y (B, T, D) and one state per layer, an explicit value. Made
    by `from_torch`. ``forward`` and ``step`` are one function, as in every Quatrain mixer; batches may be
    padded (``lengths``) or packed (``cu_seqlens``). Cost: that of the scans, see docs/lstm.md.

    Bidirectional: y (B, T, 2D), forwards then backwards, each sequence read backwards from its own last valid
    step; two states per layer, in torch's order, from and to which each direction goes. There is no ``step``
    then: one direction starts at the end.

    Attributes:
        settings: what the torch module was built with.
        layers: a `Layer` for each layer and direction, in torch's order.
    """

    def __init__(self, settings: Settings, impl: str = "auto") -> None:
        super().__init__()
        self.settings = settings
        ways = settings.ways
        sizes = (settings.input_size, *(ways * settings.hidden_size,) * (settings.num_layers - 1))
        self.layers = nn.ModuleList(Layer(settings, size, impl) for size in sizes for _ in range(ways))
        self.dropout = nn.Dropout(settings.dropout)

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        lengths: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Whole sequences: ``(B, T, I) -> (B, T, D)`` and the state after the last valid step of each.

        (B, T, 2D) where it is bidirectional; what reads backwards ends at the first step.

        Args and errors as those of `quatrain.mixers._base.Causal.forward`: padded with ``lengths (B,)`` or
        packed with ``cu_seqlens (S + 1,)``; ShapeError, StateError.
        """
        check_input(x, self.settings.input_size, 3, self._like)
        batch = check_batch(x, lengths=lengths, cu_seqlens=cu_seqlens)
        if state is not None:
            self._check_state(state, batch)
        if lengths is not None:  # padding may hold anything, NaN included
            x = x.masked_fill(~mask(lengths, x.shape[1])[..., None], 0)
        return self._run(x, state, lengths, cu_seqlens)

    if TYPE_CHECKING:  # calling the module is typed as forward is, where torch says Any
        __call__ = forward

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One token: ``(B, I) -> (B, D)`` and the state after it. Raises ShapeError, StateError."""
        if self.settings.bidirectional:
            rule = "a bidirectional stack has no steps: one direction starts at the end of the sequence"
            raise StateError(f"bidirectional = True: {rule}")
        check_input(x, self.settings.input_size, 2, self._like)
        self._check_state(state, x.shape[0])
        y, after = self._run(x[:, None], state, None, None)
        return y[:, 0], after

    def initial_state(self, batch: int) -> State:
        """Zeros, on the parameters' device, float32 or wider."""
        layout, device = self._layout(batch), self._like.device
        zeros = [
            {name: torch.zeros(shape, dtype=dtype, device=device) for name, (shape, dtype) in layout.items()}
            for _ in self.layers
        ]
        return tuple(_STATES[self.settings.kind](**fields) for fields in zeros)

    def _run(
        self, x: Tensor, state: State | None, lengths: Tensor | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, State]:
        ways, after = self.settings.ways, []
        order = reversal(x, lengths, cu_seqlens) if ways == 2 else None
        for first in range(0, len(self.layers), ways):
            if first > 0:
                x = self.dropout(x)
            found = []
            for index in range(first, first + ways):
                back = index > first
                start = None if state is None else state[index]
                y, last = self.layers[index](reverse(x, order) if back else x, start, lengths, cu_seqlens)
                found.append(reverse(y, order) if back else y)
                after.append(last)
            x = torch.cat(found, -1) if ways == 2 else found[0]
        return x, tuple(after)

    def _check_state(self, state: Any, batch: int) -> None:
        if not isinstance(state, tuple) or len(state) != len(self.layers):
            got = f"{len(state)} layers" if isinstance(state, tuple) else f"a {type(state).__name__}"
            wanted = f"{self.settings.num_layers} layers"
            wanted += f" x {self.settings.ways} directions" if self.settings.bidirectional else ""
            raise StateError(f"state: {got}: must be a tuple with the states of {wanted}")
        for layer in state:
            check_state(layer, _STATES[self.settings.kind], self._layout(batch), "", self._like)

    def _layout(self, batch: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        wide = torch.promote_types(self._like.dtype, torch.float32)
        one = ((batch, self.settings.hidden_size), wide)
        return dict.fromkeys(_STATES[self.settings.kind]._fields, one)

    @property
    def _like(self) -> Tensor:
        return next(self.parameters())

    def extra_repr(self) -> str:
        """The settings, in the module's printed form."""
        return str(self.settings)


def from_torch(module: TorchRNN, *, impl: str = "auto") -> Stack:
    """The same layers on Quatrain's scans, with copies of the parameters, on their device and in their dtype.

    ``stack(x)`` gives what ``module(x)`` gives, up to the order of sums: y (B, T, D) whatever ``batch_first``
    was, and a state per layer and direction in the place of torch's stacked ones. Training mode, dropout
    between layers and ``requires_grad`` are taken over.

    Args:
        module: a ``torch.nn.RNN``, ``LSTM`` or ``GRU``.
        impl: implementation of the scans.

    Raises:
        ConfigError: another module, or one with ``proj_size``, which the scans do not have.
    """
    kind = next((kind for kind, cls in _CLASSES.items() if type(module) is cls), None)
    if kind is None:
        raise ConfigError(f"module: a {type(module).__name__}: must be a torch.nn.RNN, LSTM or GRU")
    if module.proj_size:
        raise ConfigError(f"module.proj_size = {module.proj_size}: must be 0: the scans have no projection")
    settings = Settings(
        kind,
        module.input_size,
        module.hidden_size,
        module.num_layers,
        module.nonlinearity if isinstance(module, nn.RNN) else "tanh",
        module.bias,
        module.batch_first,
        float(module.dropout),
        module.bidirectional,
    )
    with torch.device("meta"):
        stack = Stack(settings, impl)
    like = module.weight_ih_l0
    assert isinstance(like, Tensor)
    stack = stack.to(like.dtype).to_empty(device=like.device).train(module.training)
    _copy(dict(module.named_parameters()), _torch_names(stack))
    return stack


def to_torch(stack: Stack) -> TorchRNN:
    """The ``torch.nn`` module that `from_torch` would turn into this stack: the same bits in every parameter.

    Undoes `from_torch`, ``batch_first``, dropout, training mode and ``requires_grad`` included. Raises
    ConfigError for anything but a `Stack`.
    """
    if not isinstance(stack, Stack):
        raise ConfigError(f"stack: a {type(stack).__name__}: must be a quatrain.interop.torch_rnn.Stack")
    named = _torch_names(stack)
    like, settings = next(iter(named.values())), stack.settings
    more = {"nonlinearity": settings.nonlinearity} if settings.kind == "rnn" else {}
    module: TorchRNN = _CLASSES[settings.kind](  # on the meta device first: draws nothing
        settings.input_size,
        settings.hidden_size,
        settings.num_layers,
        bias=settings.bias,
        batch_first=settings.batch_first,
        dropout=settings.dropout,
        bidirectional=settings.bidirectional,
        dtype=like.dtype,
        device="meta",
        **more,
    ).to_empty(device=like.device)
    _copy(named, dict(module.named_parameters()))
    return module.train(stack.training)


def _torch_names(stack: Stack) -> dict[str, nn.Parameter]:
    """The parameters of a stack by the names that they have in torch's module."""
    ways = stack.settings.ways
    return {
        f"{name}_l{index // ways}{'_reverse' if index % ways else ''}": parameter
        for index, layer in enumerate(stack.layers)
        for name, parameter in layer.named_parameters()
    }


def _copy(source: dict[str, nn.Parameter], target: dict[str, nn.Parameter]) -> None:
    assert source.keys() == target.keys()
    with torch.no_grad():
        for name, parameter in target.items():
            parameter.copy_(source[name])
            parameter.requires_grad_(source[name].requires_grad)
