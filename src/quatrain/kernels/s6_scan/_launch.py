"""How the CUDA kernels of the S6 scan are configured, given their arguments, and launched."""

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from quatrain.kernels import _nvrtc

if TYPE_CHECKING:
    from quatrain.kernels.s6_scan.cuda import Inputs

_LEAST_CHUNK = 512  # steps; below it a chunk's tail costs as much as the chunk
_LEAST_LINK = 256  # steps of a chained chunk
_POINTERS = [
    "u",
    "delta",
    "b",
    "c",
    "gate",
    "dy",
    "a",
    "skip",
    "bias",
    "h0",
    "dh",
    "lengths",
    "bounds",
    "y",
    "last",
    "marks",
    "carry",
    "total",
    "du",
    "ddelta",
    "dgate",
    "db",
    "dc",
    "part_maps",
    "part_a",
    "part_width",
    "dh0",
    "ready",
]
_LONGS = [
    "u_row",
    "delta_row",
    "gate_row",
    "dy_row",
    "b_row",
    "c_row",
    "b_group",
    "c_group",
    "dgate_row",
    "batch",
    "time",
    "chunk",
]
_INTS = [
    "u_step",
    "delta_step",
    "gate_step",
    "dy_step",
    "b_step",
    "c_step",
    "dgate_step",
    "width",
    "states",
    "groups",
    "parts",
    "chunks",
    "sequences",
]
_MOST_STEP = 1 << 25  # numbers from one step to the next: a tile's offsets fit into 32 bits


class Args(ctypes.Structure):
    """The kernels' argument: the same fields in the same order as in common.cuh."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_longlong) for name in _LONGS),
        *((name, ctypes.c_int) for name in _INTS),
    )


@dataclass(frozen=True)
class Shape:
    """How a kernel's threads share channels and states; see common.cuh."""

    lanes: int
    own: int
    channels: int
    warps: int
    tile: int
    blocks: int  # resident on a multiprocessor

    @property
    def threads(self) -> int:
        return 32 * self.warps

    @property
    def states(self) -> int:
        """Of a channel, padding included."""
        return self.lanes * self.own

    @property
    def width(self) -> int:
        """Channels of a block."""
        return self.warps * (32 // self.lanes) * self.channels

    def defines(self) -> tuple[tuple[str, int], ...]:
        names = ("lanes", "own", "channels", "warps", "tile", "blocks")
        return tuple((name.upper(), getattr(self, name)) for name in names)

    def forward_bytes(self) -> int:
        rows = 2 * self.width * (self.tile + 4)
        return 4 * (rows + 2 * self.tile * self.states + self.tile)

    def backward_bytes(self) -> int:
        rows = 4 * self.width * (self.tile + 4)
        kept = self.tile // 4 * self.channels * self.own * self.threads
        maps = 2 * self.tile * self.states * (1 + self.warps)
        return 4 * (rows + kept + maps + self.tile)


@cache
def shapes(states: int) -> tuple[Shape, Shape]:
    """Of the forward and the backward kernels for N states; both pad N alike."""
    padded = next(padded for padded in (4, 8, 16, 32, 64, 128, 256) if states <= padded)
    back_tile = 32 if padded in (16, 32) else 16 if padded <= 128 else 8
    tile = min(16, back_tile)  # the forward pass marks states at the backward pass's tiles
    if padded == 4:
        forward = Shape(lanes=1, own=4, channels=2, warps=4, tile=tile, blocks=4)
    else:
        forward = Shape(lanes=padded // 8, own=8, channels=1, warps=4, tile=tile, blocks=4)
    own = 8 if padded == 256 else 4
    backward = Shape(lanes=padded // own, own=own, channels=2, warps=4, tile=back_tile, blocks=2)
    return forward, backward


@dataclass(frozen=True)
class Plan:
    """How time is cut.

    Attributes:
        chunks, steps: number of chunks and their steps.
        chained: a chunk waits for the one before it, else all run side by side after a pass over their tails.
    """

    chunks: int
    steps: int
    chained: bool


@cache
def plan(time: int, blocks: int, room: int, unit: int) -> Plan:
    """Cut time where blocks of channels do not fill the chip, or leave a good part of it idle at the end.

    ``room`` blocks run at once. More take turns; then shorter, chained chunks even out the last turn.
    """
    chunks = max(1, min(room // blocks, time // _LEAST_CHUNK)) if 3 * blocks <= room else 1
    chained = blocks > room

    def idle(count: int) -> float:
        return -(-blocks * count // room) * room / (blocks * count)

    if chained:
        chunks = min(range(1, max(1, min(8, time // _LEAST_LINK)) + 1), key=lambda n: idle(n) + 0.01 * n)
    steps = -(-time // chunks)
    steps = -(-steps // unit) * unit
    chunks = -(-time // steps)
    return Plan(chunks, steps, chained and chunks > 1)


class Launch:
    """One call's arguments, ready for the kernels."""

    def __init__(self, inputs: "Inputs") -> None:
        u = self.u = inputs.u
        self.inputs = inputs
        self.batch, self.time, self.width = u.shape
        self.states = inputs.a.shape[1]
        self.groups = inputs.b.shape[2] if inputs.b.ndim == 4 else 1
        self.shapes = shapes(self.states)
        self.padded_states = self.shapes[0].states
        self.device = u.device
        self._held: list[Tensor] = []  # until the kernels are queued
        self.args = Args()
        self._fill()

    @staticmethod
    def mark_steps(states: int) -> int:
        """Steps between the states that the forward pass keeps for the backward pass."""
        return shapes(states)[1].tile

    @staticmethod
    def padding(states: int) -> int:
        """N and the states that pad it."""
        return shapes(states)[0].states

    def _fill(self) -> None:
        x, args = self.inputs, self.args
        args.batch, args.time, args.width, args.states = self.batch, self.time, self.width, self.states
        args.groups = self.groups
        each = self.width // self.groups
        self._paired = each % 2 == 0
        for name, data in (("u", x.u), ("delta", x.delta), ("gate", x.gate)):
            self._rows(name, data)
        for name, data in (("b", x.b), ("c", x.c)):
            maps = _dense(data.unsqueeze(2) if data.ndim == 3 else data)
            self._set(name, maps)
            for letter, stride in zip(("row", "step", "group"), maps.stride(), strict=False):
                setattr(args, f"{name}_{letter}", stride)
        for name, parameter in (("a", x.a), ("skip", x.skip), ("bias", x.delta_bias), ("h0", x.h0)):
            self._set(name, None if parameter is None else parameter.to(torch.float32).contiguous())
        for name, index in (("lengths", x.lengths), ("bounds", x.cu_seqlens)):
            self._set(name, None if index is None else index.to(torch.int64).contiguous())
        args.sequences = 0 if x.cu_seqlens is None else len(x.cu_seqlens) - 1

    def _set(self, name: str, x: Tensor | None) -> None:
        if x is not None:
            self._held.append(x)
            setattr(self.args, name, x.data_ptr())

    def _rows(self, name: str, x: Tensor | None) -> None:
        """A (B, T, E) tensor. Channels are read in pairs where all of them lie at even places."""
        if x is None:
            return
        x = _dense(x)
        self._set(name, x)
        row, step = x.stride(0) if self.batch > 1 else 0, x.stride(1) if self.time > 1 else 0
        setattr(self.args, f"{name}_row", row)
        setattr(self.args, f"{name}_step", step)
        even = row % 2 == 0 and step % 2 == 0 and x.data_ptr() % (2 * x.element_size()) == 0
        self._paired = self._paired and even

    def _prepare(self, shape: Shape, file: str) -> "_nvrtc.Kernels":
        """Set what depends on the kernels' shape, and compile them."""
        args = self.args
        each = self.width // self.groups
        args.parts = -(-each // shape.width)
        self.blocks = self.groups * args.parts * self.batch
        room = _nvrtc.processors(self.device) * shape.blocks
        self.plan = cut = plan(self.time, self.blocks, room, self.shapes[1].tile)
        args.chunks, args.chunk = cut.chunks, cut.steps
        slots = (args.chunks - 1) * self.batch * self.width
        if slots:
            self._set("carry", self.u.new_empty(slots * self.padded_states, dtype=torch.float32))
            if cut.chained:
                flags = (args.chunks - 1) * self.blocks
                self._set("ready", torch.zeros(flags, dtype=torch.int32, device=self.device))
            else:
                self._set("total", self.u.new_empty(slots, dtype=torch.float32))
        x = self.inputs
        defines = (
            ("DATA", _nvrtc.DATA[x.u.dtype]),
            ("MARK", self.shapes[1].tile),
            ("GATE", int(x.gate is not None)),
            ("SOFTPLUS", int(x.softplus)),
            ("ZOH", int(x.zoh)),
            ("PACKED", int(x.cu_seqlens is not None)),
            ("PAIRED", int(self._paired)),
            ("CHAINED", int(cut.chained)),
            *shape.defines(),
        )
        return _nvrtc.kernels(_source(file), defines, self.device.index or 0)

    def forward(self, y: Tensor, last: Tensor, marks: Tensor | None) -> None:
        """Queue the forward pass."""
        shape = self.shapes[0]
        kernels = self._prepare(shape, "forward.cu")
        self._set("y", y)
        self._set("last", last)
        self._set("marks", marks)
        args, size = self.args, shape.forward_bytes()
        if args.chunks > 1 and not self.plan.chained:
            kernels.launch("s6_tail", self.blocks * (args.chunks - 1), shape.threads, size, args)
            kernels.launch("s6_link", self._blocks_of(shape), shape.threads, 0, args)
        kernels.launch("s6_forward", self.blocks * args.chunks, shape.threads, size, args)

    def backward(
        self,
        dy: Tensor,
        dh: Tensor | None,
        marks: Tensor,
        *,
        dgate: Tensor | None = None,
        ddelta: Tensor | None = None,
        y: Tensor | None = None,
    ) -> list[Tensor]:
        """Queue the backward pass; gradients of the nine tensors, an absent one's is empty.

        Results may have places given: ``dgate`` of any strides but the last, dense ``ddelta`` and, where
        there is a gate, dense ``y`` for the forward pass's result. A block reads a tile before it writes
        there, so ddelta may lie where delta does and y where dy does.
        """
        shape, x = self.shapes[1], self.inputs
        self._rows("dy", dy.to(self.u.dtype))
        self._set("y", y)
        args: Any = self.args
        wide: Any = {"dtype": torch.float32, "device": self.device}
        self._set("marks", marks)
        dh = None if dh is None else dh.to(torch.float32).contiguous()
        self._set("dh", dh)
        grads = {
            name: torch.empty(data.shape, dtype=data.dtype, device=self.device)
            for name, data in (("du", x.u), ("db", x.b), ("dc", x.c))
        }
        grads["ddelta"] = x.delta.new_empty(x.delta.shape) if ddelta is None else ddelta
        if x.gate is not None:
            given = x.gate.new_empty(x.gate.shape) if dgate is None else dgate
            grads["dgate"] = given
            self._rows("dgate", given)
        if x.h0 is not None:  # an empty sequence passes its cotangent on
            dh0 = torch.zeros(x.h0.shape, **wide) if dh is None else dh.clone()
            grads["dh0"] = dh0
        for name, grad in grads.items():
            self._set(name, grad)
        kernels = self._prepare(shape, "backward.cu")
        maps = torch.empty(args.parts, self.batch, self.time, self.groups, 2, self.states, **wide)
        part_a = torch.empty(self.batch * args.chunks, self.width, self.padded_states, **wide)
        part_width = torch.empty(self.batch * args.chunks, 2, self.width, **wide)
        for name, part in (("part_maps", maps), ("part_a", part_a), ("part_width", part_width)):
            self._set(name, part)
        size = shape.backward_bytes()
        if args.chunks > 1 and not self.plan.chained:
            tail = shape.forward_bytes()
            kernels.launch("s6_tail_back", self.blocks * (args.chunks - 1), shape.threads, tail, args)
            kernels.launch("s6_link_back", self._blocks_of(shape), shape.threads, 0, args)
        kernels.launch("s6_backward", self.blocks * args.chunks, shape.threads, size, args)
        each = maps[0].numel()
        kernels.launch("s6_maps", -(-each // shape.threads), shape.threads, 0, args)
        da = part_a.sum(0)[:, : self.states].contiguous()
        dskip, dbias = part_width.sum(0)
        found = (
            grads["du"], grads["ddelta"], da, grads["db"], grads["dc"], dskip, grads.get("dgate"), dbias,
            grads.get("dh0"),
        )  # fmt: skip
        return [
            self.u.new_empty(0) if given is None or grad is None else grad.to(given.dtype)
            for given, grad in zip(x[:9], found, strict=True)
        ]

    def _blocks_of(self, shape: Shape) -> int:
        return -(-self.batch * self.width * self.padded_states // shape.threads)


@cache
def _source(file: str) -> str:
    here = "quatrain.kernels.s6_scan"
    names = (f"{here}:common.cuh", f"{here}:steps.cuh", f"{here}:{file}")
    return _nvrtc.source("quatrain.kernels:_device.cuh", *names)


def _dense(x: Tensor) -> Tensor:
    """x itself if its last dimension is dense in memory and a step's stride is no monster, else a copy."""
    dense = x.stride(-1) == 1 or x.shape[-1] == 1
    return x if dense and x.stride(1) <= _MOST_STEP else x.contiguous()
