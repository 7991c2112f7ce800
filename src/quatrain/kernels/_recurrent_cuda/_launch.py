"""How the kernels of the recurrent scans get their arguments and are launched."""

import ctypes
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quatrain.kernels import _nvrtc
from quatrain.kernels._recurrent_cuda._plan import GATES, KEPT, KINDS, Plan, Problem, plan

_POINTERS = (
    *("x", "dy", "weight", "bias", "h0", "c0", "dh", "dc", "order", "lengths", "bounds"),
    *("y", "dx", "dinner", "last_h", "last_c", "cells", "dh0", "dc0", "dbias", "gates"),
    *("exchange", "arrived", "status"),
)
_LONGS = ("x_step", "dy_step", "time", "tokens", "patience")
_INTS = ("width", "sequences", "groups")
MUCH = 1 << 20  # numbers that are kept of the gates
PATIENCE = 5_000_000_000  # ns that a block waits for another before it gives up


class Args(ctypes.Structure):
    """The kernel's argument: the same fields in the same order as in layout.cuh."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_longlong) for name in _LONGS),
        *((name, ctypes.c_int) for name in _INTS),
    )


class Inputs(NamedTuple):
    """Arguments of both ops, in their order."""

    kind: str
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    h0: Tensor | None
    c0: Tensor | None
    lengths: Tensor | None
    cu_seqlens: Tensor | None

    @property
    def sequences(self) -> int:
        return self.x.shape[0] if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1


class Results(NamedTuple):
    """Of a forward pass; empty where a kind has no such thing or it is not kept."""

    y: Tensor
    h: Tensor
    c: Tensor
    gates: Tensor  # (B T, kept, D), in 16 bits where `is_narrow`
    cells: Tensor  # (B T, D), c of an LSTM or h of a GRU


def is_narrow(inputs: Inputs) -> bool:
    """Whether what is kept of the gates takes 16 bits: beside bfloat16 data, where there is much of it.

    Their error is a fraction of what rounding the operands gives, but for single numbers by chance: few
    sequences may have a largest error that happens to be small. What is small costs nothing in full.
    """
    x, kept = inputs.x, KEPT[KINDS[inputs.kind]]
    return x.dtype is torch.bfloat16 and x.shape[0] * x.shape[1] * kept * inputs.weight.shape[1] > MUCH


def results(inputs: Inputs, keep: bool) -> Results:
    """Memory for the results, with zeros where the kernel writes nothing."""
    x, width, number = inputs.x, inputs.weight.shape[1], KINDS[inputs.kind]
    wide: Any = {"dtype": torch.float32}
    y = (x.new_empty if inputs.lengths is None else x.new_zeros)(*x.shape[:2], width)
    h = x.new_empty(inputs.sequences, width, **wide)
    c = x.new_empty(inputs.sequences if inputs.kind == "lstm" else 0, width, **wide)
    tokens = x.shape[0] * x.shape[1] if keep else 0
    saved = torch.int16 if is_narrow(inputs) else torch.float32
    gates = x.new_empty(tokens, KEPT[number], width, dtype=saved)
    cells = x.new_empty(tokens if number >= 2 else 0, width, **wide)
    return Results(y, h, c, gates, cells)


def problem(inputs: Inputs, back: bool, residents: tuple[int, ...]) -> Problem:
    """What is to be planned for these arguments; reads metadata only."""
    size = inputs.x.dtype.itemsize
    sequences = max(inputs.sequences, 1)
    ragged = inputs.lengths is not None or inputs.cu_seqlens is not None
    return Problem(KINDS[inputs.kind], inputs.weight.shape[1], sequences, size, back, residents, ragged)


class Launch:
    """One pass of one call, ready for the kernel. Keeps the tensors alive that it has made."""

    def __init__(self, inputs: Inputs, back: bool, made: Plan | None = None) -> None:
        self.inputs, self.back = inputs, back
        self.device = inputs.x.device
        found = made or plan(problem(inputs, back, _nvrtc.residents(self.device.index or 0)))
        if isinstance(found, str):
            raise RuntimeError(found)
        self.plan: Plan = found
        self.number = KINDS[inputs.kind]
        self.gates = GATES[self.number]
        self.width = inputs.weight.shape[1]
        self._held: list[Tensor] = []
        args: Any = Args()
        self.args = args
        args.width, args.sequences, args.groups = self.width, inputs.sequences, self.plan.groups
        args.time, args.tokens = inputs.x.shape[1], inputs.x.shape[0] * inputs.x.shape[1]
        args.patience = PATIENCE
        self.set("weight", arrange(inputs.weight.to(inputs.x.dtype), self.gates, self.plan, back))
        for name in ("bias", "h0", "c0"):
            self.wide(name, getattr(inputs, name))
        self._schedule()

    def set(self, name: str, x: Tensor | None) -> None:
        """Pass a dense tensor."""
        if x is not None and x.numel():
            self._held.append(x)
            setattr(self.args, name, x.data_ptr())

    def wide(self, name: str, x: Tensor | None) -> None:
        """Pass a state or parameter in float32."""
        self.set(name, None if x is None else x.detach().to(torch.float32).contiguous())

    def steps(self, name: str, x: Tensor) -> None:
        """Pass data (B, T, F) whose steps lie equally far apart, or a copy that does."""
        batch, time = x.shape[:2]
        even = batch == 1 or time == 1 or x.stride(0) == time * x.stride(1)
        if not even or (x.shape[2] > 1 and x.stride(2) != 1):
            x = x.contiguous()
        self.set(name, x)
        apart = x.stride(0) if time == 1 else x.stride(1)
        setattr(self.args, f"{name}_step", apart)

    def _schedule(self) -> None:
        """Sequences of different lengths go longest first, so that each row gets its share."""
        lengths, bounds = self.inputs.lengths, self.inputs.cu_seqlens
        if lengths is not None:
            lengths = lengths.to(torch.int64).contiguous()
            self.set("lengths", lengths)
        elif bounds is not None:
            bounds = bounds.to(torch.int64).contiguous()
            self.set("bounds", bounds)
            lengths = bounds.diff()
        if lengths is not None:
            self.set("order", lengths.argsort(descending=True, stable=True))

    def kernel(self, keep: bool, flush: bool, empty: bool = False) -> _nvrtc.Kernels:
        """The compiled kernel. ``empty``: without product and data, for measuring the exchange."""
        defines = (
            ("DATA", _nvrtc.DATA[self.inputs.x.dtype]),
            ("KIND", self.number),
            ("BACK", int(self.back)),
            *self.plan.defines(),
            ("FULL", int(self.plan.blocks * self.plan.units == self.width)),
            ("NARROW", int((keep or self.back) and is_narrow(self.inputs))),
            ("KEEP", int(keep)),
            ("FLUSH", int(flush)),
            ("EMPTY", int(empty)),
        )
        return _nvrtc.kernels(_source(self.back), defines, self.device.index or 0)

    def run(self, keep: bool, flush: bool, empty: bool = False) -> None:
        """Queue the kernel."""
        made, x = self.plan, self.inputs.x
        kernels = self.kernel(keep, flush, empty)
        if made.grid:
            vector = made.vector(self.gates if self.back else 1)
            room = made.places * made.groups * vector * x.element_size() // 4
            exchange = x.new_empty(room, dtype=torch.int32)
            self.set("exchange", exchange.fill_(-1) if made.polled else exchange)
            self.set("arrived", x.new_zeros(made.groups + 1, dtype=torch.int32))
        self.args.status = status(self.device).data_ptr()
        kernels.launch(
            "recurrent_scan",
            made.groups * made.blocks,
            made.threads,
            made.shared_bytes,
            self.args,
            cluster=made.cluster,
            cooperative=made.grid,
        )


def arrange(weight: Tensor, gates: int, made: Plan, back: bool) -> Tensor:
    """The recurrent matrix (G D, D), or its transpose, in the order in which lanes read tiles.

    Blocks, tiles of rows, tiles of columns, lanes, then a lane's numbers as `multiply` of cluster.cuh wants
    them; units that pad are zero.
    """
    width, padded = weight.shape[1], made.blocks * made.units
    square = weight.detach().view(gates, width, width)
    if padded != width:
        square = torch.nn.functional.pad(square, (0, padded - width, 0, padded - width))
    members, tiles = made.blocks, made.units // 16
    if not back:
        cut = square.view(gates, members, tiles, 2, 8, padded // 16, 2, 4, 2)
        return cut.permute(1, 0, 2, 5, 4, 7, 6, 3, 8).contiguous()
    cut = square.view(gates, members, tiles, 2, 4, 2, members, tiles, 2, 8)
    return cut.permute(6, 7, 1, 0, 2, 9, 4, 3, 8, 5).contiguous()


@cache
def status(device: torch.device) -> Tensor:
    """What kernels of a device report: 1 if one gave up waiting. Lies where both sides reach it."""
    return torch.zeros(1, dtype=torch.int32, pin_memory=device.type == "cuda")


@cache
def _source(back: bool) -> str:
    here = "quatrain.kernels._recurrent_cuda"
    own = "backward.cu" if back else "forward.cu"
    names = ("cluster.cuh", "cells.cuh", "layout.cuh", "exchange.cuh", "product.cuh", own, "scan.cuh")
    first, *others = (f"{here}:{name}" for name in names)
    shared = ("quatrain.kernels:_device.cuh", first, "quatrain.kernels:_polled.cuh")
    return _nvrtc.source(*shared, *others)
