"""A step recorded once for a module and made again with other inputs and states: what makes `step` quick.

Nothing of a sequence is kept: a record is calls of the core with the addresses of the module's parameters and
of scratch memory; input, output and states are put in each time. Before each step the parameters are looked
at again: same modules, same memory, same layout. Values may change, since nothing is derived from them.
"""

from collections.abc import Callable, Sequence
from ctypes import c_int64
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.parameter import Parameter

from quatrain.kernels import _core
from quatrain.kernels._core.tape import Tape
from quatrain.kernels.linear_step import cpu as linear_step

S = TypeVar("S", bound=tuple[Tensor, ...])
Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]
_TYPES = (torch.float32, torch.bfloat16)


class Recordable(Protocol):
    """A mixer's step that can be recorded."""

    def record(self, tape: Tape, x: Tensor, y: Tensor, add: bool) -> None:
        """Record ``y (B, D) = mixer(x (B, D))``, added to y with ``add``."""


class Bindable(Protocol[S]):
    """A recorded step for one batch size, into which any state can be put."""

    def open(self, tape: Tape) -> None:
        """Note where states stand in the tape, which is complete."""

    def bind(self, state: S) -> S | None:
        """Put a state in; the new state, which the next run fills, or None where this one is not taken."""


class Step(Recordable, Bindable[S], Protocol[S]):
    """One step of a mixer for one batch size, with any state."""


class Write(Protocol):
    """How the step of a mixer is recorded, given its state before and after."""

    def __call__(
        self, tape: Tape, x: Tensor, y: Tensor, add: bool, before: Sequence[Tensor], after: Sequence[Tensor]
    ) -> None: ...


class FixedStep(Generic[S]):
    """`Step` of a mixer whose state has always the same shapes."""

    def __init__(self, kind: type[S], layout: Layout, write: Write) -> None:
        self._kind, self._write = kind, write
        self._fields = tuple(layout.values())
        self._before, self._after = (
            [torch.empty(*shape, dtype=dtype, device="cpu") for shape, dtype in self._fields]
            for _ in range(2)
        )

    def record(self, tape: Tape, x: Tensor, y: Tensor, add: bool) -> None:
        self._write(tape, x, y, add, self._before, self._after)

    def open(self, tape: Tape) -> None:
        places = tape.places(*self._before, *self._after)
        size = len(self._fields)
        self._places = tuple(
            (*field, was, will)
            for field, was, will in zip(self._fields, places[:size], places[size:], strict=True)
        )
        del self._before, self._after, self._write

    def bind(self, state: S) -> S | None:
        if type(state) is not self._kind:
            return None
        new = []
        for x, (shape, dtype, was, will) in zip(state, self._places, strict=True):
            if not (
                type(x) is Tensor and x.dtype is dtype and x.is_cpu and x.shape == shape and x.is_contiguous()
            ):
                return None
            after = torch.empty_like(x)
            new.append(after)
            put(x, was)
            put(after, will)
        return self._kind(*new)


class _Record:
    """One recorded step of a module."""

    def __init__(self, module: Any, step: Bindable[Any], batch: int, width: int, dtype: torch.dtype) -> None:
        tape = Tape()
        x, y = torch.empty(2, batch, width, dtype=dtype, device="cpu").unbind(0)
        module._record(tape, step, x, y)
        step.open(tape)
        self._x, self._y = tape.places(x, y)
        self._step, self._tape, self._shape = step, tape, x.shape
        parts = list(module.modules())
        self._children = [(m._modules, name, child) for m in parts for name, child in m._modules.items()]
        self._weights = [
            (m._parameters, name, p.data_ptr(), p.dtype, p.shape)
            for m in parts
            for name, p in m._parameters.items()
            if p is not None
        ]
        self._hooks = hooks(parts)

    def holds(self) -> bool:
        """Whether the module still is what was recorded."""
        if any(self._hooks):
            return False
        for children, name, child in self._children:
            if children.get(name) is not child:
                return False
        for parameters, name, address, dtype, shape in self._weights:
            p = parameters.get(name)
            if (
                type(p) is not Parameter
                or p.data_ptr() != address
                or p.dtype is not dtype
                or p.shape != shape
                or not p.is_contiguous()
            ):
                return False
        return True

    def run(self, x: Tensor, state: Any) -> Any:
        if x.shape != self._shape or not x.is_cpu or not x.is_contiguous():
            return None
        after = self._step.bind(state)
        if after is None:
            return None
        y = torch.empty_like(x)
        put(x, self._x)
        put(y, self._y)
        self._tape.run()
        return y, after


class Recorded:
    """The records of one module, by batch size and dtype; a copied or saved module starts with none.

    A record is out of the table while it runs, since its scratch memory serves one step at a time: threads
    that step the same module at once get one each.
    """

    def __init__(self) -> None:
        self._free: dict[tuple[Any, ...], list[_Record]] = {}
        self._built: dict[str, torch.Size] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "Recorded":
        return Recorded()

    def __reduce__(self) -> tuple[type["Recorded"], tuple[()]]:
        return Recorded, ()

    def step(self, module: Any, width: int, x: Any, state: Any) -> Any:
        """(y, state) of the module's step, or None where it has to be made, or refused, in the ordinary way.

        Without gradients, on a CPU with the core. Only shapes, dtypes and layouts that are right get through.
        """
        if (
            torch.is_grad_enabled()
            or type(x) is not Tensor
            or x.ndim != 2
            or x.shape[1] != width
            or torch.is_autocast_enabled("cpu")
            or x.dtype not in _TYPES
            or _core.missing() is not None
        ):
            return None
        key = (len(x), x.dtype, _core.threads(), *_core._forced)
        free = self._free.get(key)
        try:
            record = None if free is None else free.pop()
        except IndexError:  # another thread has it
            record = None
        if record is None or not record.holds():
            record = self._new(module, x)
            if record is None:
                return None
        done = record.run(x, state)
        self._free.setdefault(key, []).append(record)
        return done

    def _new(self, module: Any, x: Tensor) -> _Record | None:
        if not 1 <= len(x) <= linear_step.MOST_ROWS or not x.is_cpu:
            return None
        weights = list(module.parameters())
        fit = all(
            type(p) is Parameter and p.dtype is x.dtype and p.is_cpu and p.is_contiguous() for p in weights
        )
        if not fit or any(hooks(module.modules())):
            return None
        step = module._recorded_step(len(x), x.dtype)
        if step is None:
            return None
        if not self._built:
            self._built = shapes_of(module.like_new)
        if self._built != shapes(module):  # a part was exchanged: its own step says what does not fit
            return None
        return _Record(module, step, len(x), x.shape[1], x.dtype)


def put(x: Tensor, places: Sequence[c_int64]) -> None:
    """Write the address of x where it belongs."""
    address = x.data_ptr()
    for place in places:
        place.value = address


def plain(*modules: nn.Module) -> bool:
    """Whether these are linear maps as torch made them: nothing computes their weights."""
    return all(type(module) is nn.Linear for module in modules)


def shapes(module: nn.Module) -> dict[str, torch.Size]:
    """The shapes of a module's parameters by name."""
    return {name: p.shape for name, p in module.named_parameters()}


def shapes_of(build: Callable[[], nn.Module]) -> dict[str, torch.Size]:
    """The shapes of the parameters that a module has when it is built: recorded calls rely on them, since the
    core gets addresses alone. Takes no memory and draws no numbers.
    """
    with torch.device("meta"):
        return shapes(build())


def hooks(modules: Any) -> list[dict[int, Any]]:
    """What would be called around a module's forward pass, which a record does not call."""
    everywhere = (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)
    return [*everywhere, *(h for m in modules for h in (m._forward_hooks, m._forward_pre_hooks))]
