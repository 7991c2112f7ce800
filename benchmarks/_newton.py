"""Newton iterations over a whole sequence for tanh RNNs and LSTMs: the method of `parallel_in_time`.

The states of all steps solve h_t = f(h_{t-1}, x_t). From an iterate h, all steps are evaluated at once (one
matrix product, then elementwise work) and linearised with the diagonal of their Jacobians (an LSTM: a block
of 2 x 2 a unit, of h and c), J_t. The next iterate h' solves
h'_t = f(h_{t-1}, x_t) + J_t (h'_{t-1} - h_{t-1}), a linear recurrence, by a scan. For a cell whose recurrent
matrix is diagonal that is Newton's method. For others it is a quasi-Newton method, and with J of zero (an
LSTM: of the path through c alone) a fixed-point iteration.

Source: Lim et al., DEER, arXiv:2309.12252; Danieli et al., ParaRNN, arXiv:2510.21450.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from quatrain.kernels import _nvrtc

Parts = tuple[Tensor, ...]
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2**-6}  # of the largest |h|; bfloat16 has units of 2^-8
JACOBIANS = ("diagonal", "none", "whole")
_POINTERS = ("x", "z", "weight", "h", "c", "new_h", "new_c", "maps", "states", "change")
_NUMBERS = ("batch", "time", "width", "chunks", "chunk")
_THREADS = 128
_WORKERS = 1 << 18  # threads that keep a large GPU's memory busy
_LEAST_CHUNK = 16


class Problem(NamedTuple):
    """h_t = cell(x_t + weight h_{t-1}) from zero states."""

    cell: str  # "rnn" or "lstm"
    x: Tensor  # (B, T, G D)
    weight: Tensor  # (G D, D), or (G, D) for a diagonal cell
    diagonal: bool

    @property
    def width(self) -> int:
        return self.weight.shape[-1]

    def diagonals(self) -> Tensor:
        """(G, D)."""
        if self.diagonal:
            return self.weight
        return self.weight.view(-1, self.width, self.width).diagonal(dim1=1, dim2=2).contiguous()

    def matrix(self) -> Tensor:
        """(G D, D)."""
        return torch.cat([torch.diag(w) for w in self.weight]) if self.diagonal else self.weight


class Solved(NamedTuple):
    """``h`` (B, T, D); ``converged`` is false at the cap."""

    h: Tensor
    iterations: int
    converged: bool


def solve(problem: Problem, jacobian: str = "diagonal", cap: int = 100) -> Solved:
    """Iterate until the largest change is within tolerance of the largest |h|. The first iterate is zero."""
    x, width = problem.x, problem.width
    shape = (x.shape[0], x.shape[1] + 1, width)
    iterate = _on_gpu(problem, jacobian) if x.is_cuda and jacobian != "whole" else _plainly(problem, jacobian)
    hs = [x.new_zeros(shape), x.new_empty(shape)]
    cs = [s.to(torch.float32, copy=True) if problem.cell == "lstm" else None for s in hs]
    for states in (hs[1], cs[1]):
        if states is not None:
            states[:, 0] = 0
    z = x if problem.diagonal else torch.zeros_like(x)  # not read for a diagonal cell
    turned = problem.weight.t().expand(x.shape[0], -1, -1)
    for count in range(1, cap + 1):
        if count > 1 and not problem.diagonal:  # of the first iterate the product is zero
            torch.bmm(hs[0][:, :-1], turned, out=z)
        change, most = iterate(z, hs[0], cs[0], hs[1], cs[1])
        hs.reverse()
        cs.reverse()
        if change <= TOLERANCE[x.dtype] * most:
            return Solved(hs[0][:, 1:], count, True)
    return Solved(hs[0][:, 1:], cap, False)


Iterate = Callable[[Tensor, Tensor, Tensor | None, Tensor, Tensor | None], tuple[float, float]]


# -- on any device


def evaluate(cell: str, z: Parts, w: Parts, c: Tensor | None) -> tuple[Parts, Parts]:
    """Values of a step and its Jacobian a unit: (h,) and (dh/dh,), or (h, c) and the 2 x 2 block by rows."""
    if cell == "rnn":
        h = torch.tanh(z[0])
        return (h,), ((1 - h * h) * w[0],)
    i, f, g, o = (torch.tanh(z[n]) if n == 2 else torch.sigmoid(z[n]) for n in range(4))
    cell_ = f * c + i * g
    squashed = torch.tanh(cell_)
    slope = o * (1 - squashed * squashed)
    through = c * f * (1 - f) * w[1] + g * i * (1 - i) * w[0] + i * (1 - g * g) * w[2]
    block = (squashed * o * (1 - o) * w[3] + slope * through, slope * f, through, f)
    return (o * squashed, cell_), block


def scan(maps: Parts, adds: Parts, times: Callable[..., Parts], act: Callable[..., Parts]) -> Parts:
    """All states of s_t = maps_t s_{t-1} + adds_t from s_{-1} = 0, time in dimension 1, in log2(T) levels.

    Pairs of steps become one step, the scan of those gives every second state, one more step the others.
    """
    time = adds[0].shape[1]
    if time == 1:
        return adds
    first, second = slice(0, time - 1, 2), slice(1, None, 2)
    late = tuple(m[:, second] for m in maps)
    early = tuple(m[:, first] for m in maps)
    pairs = act(late, tuple(a[:, first] for a in adds), tuple(a[:, second] for a in adds))
    odd = scan(times(late, early), pairs, times, act)
    even = act(
        tuple(m[:, 2::2] for m in maps),
        tuple(s[:, : (time - 1) // 2] for s in odd),
        tuple(a[:, 2::2] for a in adds),
    )
    results = tuple(torch.empty_like(a) for a in adds)
    for result, o, e, a in zip(results, odd, even, adds, strict=True):
        result[:, 1::2], result[:, 2::2], result[:, 0] = o, e, a[:, 0]
    return results


def _times(a: Parts, b: Parts) -> Parts:
    """Products of n x n blocks, each a tuple of n n tensors by rows."""
    if len(a) == 1:
        return (a[0] * b[0],)
    return tuple(a[i] * b[j] + a[i + 1] * b[2 + j] for i in (0, 2) for j in (0, 1))


def _act(a: Parts, s: Parts, add: Parts) -> Parts:
    if len(s) == 1:
        return (torch.addcmul(add[0], a[0], s[0]),)
    return tuple(add[i] + a[2 * i] * s[0] + a[2 * i + 1] * s[1] for i in (0, 1))


def _times_whole(a: Parts, b: Parts) -> Parts:
    return (a[0] @ b[0],)


def _act_whole(a: Parts, s: Parts, add: Parts) -> Parts:
    return (add[0] + (a[0] @ s[0][..., None])[..., 0],)


def _plainly(problem: Problem, jacobian: str) -> Iterate:
    cell, x, weight, width = problem.cell, problem.x, problem.matrix(), problem.width
    w = problem.diagonals().float() * (jacobian != "none")

    def step(state: Tensor, drive: Tensor) -> Tensor:
        """One step of one row, for the whole Jacobian: (h, c) in one vector."""
        h, c = state[:width], state[width:]
        z = drive + weight @ h
        return torch.cat(evaluate(cell, z.split(width), tuple(w), c)[0])

    def iterate(
        z: Tensor, h: Tensor, c: Tensor | None, new_h: Tensor, new_c: Tensor | None
    ) -> tuple[float, float]:
        last = tuple(s[:, :-1].float() for s in (h, c) if s is not None)
        if jacobian == "whole":
            state = torch.cat(last, -1)
            maps = torch.func.vmap(torch.func.vmap(torch.func.jacrev(step)))(state, x)
            value = torch.func.vmap(torch.func.vmap(step))(state, x)
            adds = _act_whole((-maps,), (state,), (value,))
            (found,) = scan((maps,), adds, _times_whole, _act_whole)
            values, states = value.split(width, -1), found.split(width, -1)
        else:
            drive = x.float() if problem.diagonal else x.float() + z.float()
            gates = drive.unflatten(-1, (-1, width)).unbind(2)
            if problem.diagonal:
                gates = tuple(gate + v * last[0] for gate, v in zip(gates, problem.weight, strict=True))
            values, block = evaluate(cell, gates, tuple(w), last[-1])
            adds = _act(tuple(-m for m in block), last, values)
            states = scan(block, adds, _times, _act)
        # Safeguards: h lies in [-1, 1] whatever the guess; where the recurrence overflowed, plain evaluation.
        states = tuple(torch.where(s.abs() < 1e30, s, v) for s, v in zip(states, values, strict=True))
        new_h[:, 1:] = states[0].clamp_(-1, 1)
        change = (states[0] - h[:, 1:]).abs().max()
        if c is not None and new_c is not None:
            new_c[:, 1:] = states[1]
            moved = (states[1] - c[:, 1:]).abs() / states[1].abs().clamp(min=1)
            change = torch.maximum(change, moved.max())
        return float(change), float(new_h.abs().max())

    return iterate


# -- on a GPU


class _Args(ctypes.Structure):
    """struct Args of _newton.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_longlong) for name in _NUMBERS),
    )


def _arguments(problem: Problem, weight: Tensor) -> tuple[_Args, Callable[..., None]]:
    """The arguments that all kernels of a problem share, and what launches one for so many threads."""
    x, width = problem.x, problem.width
    batch, time = x.shape[:2]
    lstm, narrow = problem.cell == "lstm", x.dtype == torch.bfloat16
    defines = (("LSTM", int(lstm)), ("DIAGONAL", int(problem.diagonal)), ("NARROW", int(narrow)))
    text = Path(__file__).with_name("_newton.cu").read_text("utf-8")
    kernels = _nvrtc.kernels(text, defines, x.device.index or 0)
    args = _Args(x=x.data_ptr(), weight=weight.data_ptr(), batch=batch, time=time, width=width)

    def launch(name: str, threads: int) -> None:
        kernels.launch(name, -(-threads // _THREADS), _THREADS, 0, args)

    return args, launch


def _on_gpu(problem: Problem, jacobian: str) -> Iterate:
    x, width = problem.x, problem.width
    batch, time = x.shape[:2]
    if not problem.diagonal and jacobian == "none":
        weight = torch.zeros(problem.diagonals().shape, device=x.device)
    else:
        weight = problem.diagonals().float()
    args, launch = _arguments(problem, weight)
    args.chunks = max(1, min(-(-_WORKERS // (batch * width)), time // _LEAST_CHUNK))
    args.chunk = -(-time // args.chunks)
    args.chunks = -(-time // args.chunk)
    states = 2 if problem.cell == "lstm" else 1
    sizes = (batch, args.chunks, states, width)
    maps, carried = (torch.empty(*sizes, n, device=x.device) for n in (states, 1))
    change = torch.zeros(2, device=x.device)
    args.change = change.data_ptr()

    def iterate(
        z: Tensor, h: Tensor, c: Tensor | None, new_h: Tensor, new_c: Tensor | None
    ) -> tuple[float, float]:
        named = {"z": z, "h": h, "c": c, "new_h": new_h, "new_c": new_c}
        named |= {"weight": weight, "maps": maps, "states": carried}  # also kept alive by being named here
        for name, value in named.items():
            setattr(args, name, None if value is None else value.data_ptr())
        change.zero_()
        launch("reduce", batch * args.chunks * width)
        launch("carry", batch * width)
        launch("apply", batch * args.chunks * width)
        moved, most = change.tolist()
        return moved, most

    return iterate


def step_by_step(problem: Problem) -> Tensor:
    """A diagonal cell on a GPU, one thread a unit: what a scan over time has to beat."""
    x, weight = problem.x, problem.weight.float()
    shape = (x.shape[0], x.shape[1] + 1, problem.width)
    args, launch = _arguments(problem, weight)
    h, c = x.new_zeros(shape), torch.zeros(shape if problem.cell == "lstm" else 0, device=x.device)
    args.h = args.new_h = h.data_ptr()
    args.c = args.new_c = c.data_ptr()
    launch("sequential", x.shape[0] * problem.width)
    return h[:, 1:]
