"""One step of a Mamba block in CUDA C++, compiled at run time; block.cu holds the kernel."""

import ctypes
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quatrain.kernels import _nvrtc
from quatrain.kernels._autograd import recomputed, recorded, traced
from quatrain.kernels._core._register import register
from quatrain.kernels._op import Arguments
from quatrain.kernels._recurrent_cuda._launch import PATIENCE, status
from quatrain.kernels.s6_block_step._plan import HEADER, MOST_ROWS, WARPS, Block, Plan, plan
from quatrain.kernels.s6_block_step.parts import step as torch_step

_DATA = (
    *("x", "norm_weight", "in_weight", "conv_weight", "conv_bias", "x_weight", "dt_weight", "dt_bias"),
    *("a_log", "skip", "out_weight", "conv0"),
)
_POINTERS = (*_DATA, "h0", "y", "conv", "h", "space", "status")
_INTS = ("batch", "width", "inner", "states", "rank", "blocks")
_LEAST_SPACE = 1 << 14  # of a half of the exchange's memory, 16 bytes each
_spaces: dict[tuple[int, int], tuple[int, Tensor]] = {}


class Args(ctypes.Structure):
    """The kernel's argument: the same fields in the same order as in block.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_longlong) for name in ("x_row", "patience", "half")),
        *((name, ctypes.c_int) for name in _INTS),
        ("eps", ctypes.c_float),
    )


def why_not(arguments: Arguments) -> str | None:
    """Why the kernel cannot or should not run these arguments; reads metadata only."""
    x: Tensor = arguments["x"]
    if (reason := _nvrtc.why_not_for(x)) is not None:
        return reason
    if len(x) > MOST_ROWS:
        return f"a batch of {len(x)}: must be at most {MOST_ROWS}: products of all rows at once do better"
    (inner, conv), rank = arguments["conv_weight"].shape, arguments["dt_weight"].shape[1]
    sizes = x.shape[1], inner, arguments["a_log"].shape[1], rank, conv, x.dtype.itemsize
    reason_here: str | None = _why_not_on(x.device.index or 0, *sizes)
    return reason_here


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _why_not_on(device: int, *sizes: int) -> str | None:
    """Why not a block of these sizes, as `Block` has them, on a device. A batch is cut to what fits, so one
    sequence decides; its size is a symbol where shapes are dynamic."""
    found = _plan_on(Block(*sizes), 1, device)
    return found if isinstance(found, str) else None


def _plan_on(block: Block, batch: int, device: int) -> Plan | str:
    return plan(block, batch, _nvrtc.processors(torch.device("cuda", device)), _nvrtc.shared_bytes(device))


def _block_of(x: Tensor, conv_weight: Tensor, dt_weight: Tensor, a_log: Tensor) -> Block:
    (inner, conv), rank = conv_weight.shape, dt_weight.shape[1]
    return Block(x.shape[1], inner, a_log.shape[1], rank, conv, x.dtype.itemsize)


def step(
    x: Tensor,
    in_weight: Tensor,
    conv_weight: Tensor,
    x_weight: Tensor,
    dt_weight: Tensor,
    a_log: Tensor,
    out_weight: Tensor,
    h0: Tensor,
    conv0: Tensor,
    norm_weight: Tensor | None = None,
    conv_bias: Tensor | None = None,
    dt_bias: Tensor | None = None,
    skip: Tensor | None = None,
    *,
    eps: float = 1e-5,
    zoh: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `s6_block_step_reference`; operands of 16 bits are rounded in the products, sums and the state are
    float32. Gradients by running torch's again.

    Raises RuntimeError if an earlier call's thread blocks have waited too long for each other.
    """
    tensors = (x, in_weight, conv_weight, x_weight, dt_weight, a_log, out_weight, h0, conv0)
    tensors_more = (norm_weight, conv_bias, dt_bias, skip)

    def fast(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
        if not traced(x):
            return run(Inputs(*given), eps, zoh)
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.quatrain.s6_block_step_cuda(*given, eps, zoh)
        return found

    def slow(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
        return torch_step(*given, eps=eps, zoh=zoh)

    if torch.compiler.is_compiling():
        return (slow if recorded(*tensors, *tensors_more) else fast)(*tensors, *tensors_more)
    results: tuple[Tensor, Tensor, Tensor] = recomputed(fast, slow, *tensors, *tensors_more)
    return results


class Inputs(NamedTuple):
    """Tensors of `step`, in its order."""

    x: Tensor
    in_weight: Tensor
    conv_weight: Tensor
    x_weight: Tensor
    dt_weight: Tensor
    a_log: Tensor
    out_weight: Tensor
    h0: Tensor
    conv0: Tensor
    norm_weight: Tensor | None
    conv_bias: Tensor | None
    dt_bias: Tensor | None
    skip: Tensor | None


def run(given: Inputs, eps: float, zoh: bool, own_space: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """y, h and the convolution's state of arguments that fit, without a gradient.

    With ``own_space`` the exchange's memory is the call's own: one kernel more, which clears it.
    """
    x = given.x if given.x.stride(1) == 1 or given.x.shape[1] == 1 else given.x.contiguous()
    weights = {
        name: None if w is None else w.contiguous()
        for name, w in given._asdict().items()
        if name not in ("x", "h0", "conv0")
    }
    h0, conv0 = given.h0.to(torch.float32).contiguous(), given.conv0.contiguous()
    h0 = h0 if h0.data_ptr() % 16 == 0 else h0.clone()
    y, h, conv = _results(x, h0, conv0)
    made = _plan_on(
        _block_of(x, given.conv_weight, given.dt_weight, given.a_log), len(x), x.device.index or 0
    )
    if isinstance(made, str):
        raise RuntimeError(f"s6_block_step: {made}")
    for first in range(0, len(x), made.batch):
        rows = slice(first, first + made.batch)
        states = {"conv0": conv0[rows], "h0": h0[rows], "y": y[rows], "conv": conv[rows], "h": h[rows]}
        part = replace(made, batch=len(x[rows]))
        _launch(part, {"x": x[rows], **weights, **states}, eps, zoh, own_space)
    return y, h, conv


def _launch(made: Plan, tensors: dict[str, Any], eps: float, zoh: bool, own_space: bool) -> None:
    x, block, device = tensors["x"], made.block, tensors["x"].device.index or 0
    args: Any = Args()
    for name, tensor in tensors.items():
        setattr(args, name, None if tensor is None else tensor.data_ptr())
    space = _new_space(x, made.exchanged) if own_space else _space(x, made.exchanged)
    mark = status(x.device)
    if mark.item() and not _nvrtc.capture(device):
        mark.zero_()
        raise RuntimeError(
            "s6_block_step: an earlier call's thread blocks waited too long for each other and its results "
            "are NaN: another process may hold a part of the GPU; impl = 'torch' needs no such waits"
        )
    args.space, args.status = space.data_ptr(), mark.data_ptr()
    args.half, args.patience, args.x_row = (space.numel() // 4 - HEADER) // 2, PATIENCE, x.stride(0)
    args.batch, args.width, args.inner, args.states = len(x), block.width, block.inner, block.states
    args.rank, args.blocks, args.eps = block.rank, made.blocks, eps
    wide = [tensors[name] for name in ("x", "norm_weight", "in_weight", "out_weight")]
    dense = block.width % 8 == block.inner % 8 == x.stride(0) % 8 == 0
    even = dense and not any(w is not None and w.data_ptr() % 16 for w in wide)
    defines = (
        ("DATA", _nvrtc.DATA[x.dtype]),
        ("VEC", int(even)),
        *made.defines(),
        ("NORM", int(tensors["norm_weight"] is not None)),
        ("ZOH", int(zoh)),
    )
    kernels = _nvrtc.kernels(_source(), defines, device)
    kernels.launch(
        "s6_block_step", made.blocks, 32 * WARPS, made.shared_bytes, args, cluster=1, cooperative=True
    )


def _space(x: Tensor, exchanged: int) -> Tensor:
    """Memory for the exchange. Launches of a stream share it, within a graph too: they run one after the
    other, and each leaves it as the next one wants it.
    """
    stream, graph = _order(x.device)
    key = (x.device.index or 0, stream)
    of, found = _spaces.get(key, (0, None))
    if found is None or of != graph or found.numel() < 4 * (HEADER + 2 * exchanged):
        found = _new_space(x, max(exchanged, _LEAST_SPACE))
        _spaces[key] = (graph, found)
    return found


def _order(device: torch.device) -> tuple[int, int]:
    """What orders launches: torch's current stream, and the graph that it is captured for."""
    stream: int = torch.cuda.current_stream(device).cuda_stream
    return stream, _nvrtc.capture(device.index or 0)


def _new_space(x: Tensor, exchanged: int) -> Tensor:
    return torch.full((4 * (HEADER + 2 * exchanged),), -1, dtype=torch.int32, device=x.device)


def _results(x: Tensor, h0: Tensor, conv0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    h = torch.empty(h0.shape, dtype=torch.float32, device=x.device)
    return y, h, torch.empty(conv0.shape, dtype=x.dtype, device=x.device)


def _run_traced(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    *tensors, eps, zoh = given
    return run(
        Inputs(*tensors), eps, zoh, own_space=True
    )  # compiled code's graph keeps no memory from outside


def _fake(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    inputs = Inputs(*given[:-2])
    return _results(inputs.x, inputs.h0, inputs.conv0)


@cache
def _source() -> str:
    cluster = "quatrain.kernels._recurrent_cuda:cluster.cuh"
    eights, polled = (f"quatrain.kernels:{name}.cuh" for name in ("_eights", "_polled"))
    shared = ("quatrain.kernels:_device.cuh", cluster, eights, polled)
    return _nvrtc.source(*shared, "quatrain.kernels.s6_block_step:block.cu")


register(
    "s6_block_step_cuda(Tensor x, Tensor in_weight, Tensor conv_weight, Tensor x_weight, Tensor dt_weight, "
    "Tensor a_log, Tensor out_weight, Tensor h0, Tensor conv0, Tensor? norm_weight, Tensor? conv_bias, "
    "Tensor? dt_bias, Tensor? skip, float eps, bool zoh) -> (Tensor, Tensor, Tensor)",
    _run_traced,
    _fake,
    device="CUDA",
)
