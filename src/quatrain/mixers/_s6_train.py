"""A Mamba block in training on a GPU: everything after its first projection, as one op.

It keeps in_proj's result, the step sizes' low-rank form, b, c and the scan's marks; the convolution's result
and the step sizes, both cheap, are made again in the backward pass, whose scan gives its own forward result
again, and gradients of u and gate are written into one tensor. The result is that of the same ops one after
the other.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from quatrain.kernels._autograd import no_autocast, recorded
from quatrain.kernels._core._register import register
from quatrain.kernels.causal_conv import cuda as convolution
from quatrain.kernels.s6_scan import cuda as scan
from quatrain.kernels.s6_scan._launch import Launch

if TYPE_CHECKING:
    from quatrain.mixers.s6 import S6

Optional = Tensor | None


def fits(layer: "S6", both: Tensor) -> bool:
    """Whether the op takes in_proj's result ``both``: gradients are recorded and the kernels can run."""
    if layer.config.impl not in ("auto", "nvrtc") or not recorded(both):
        return False
    width = torch.promote_types(both.dtype, torch.float32)
    narrow = {layer.a_log.dtype, layer.conv_weight.dtype, layer.skip.dtype} <= {both.dtype, width}
    return narrow and scan.why_not({"u": both, "a": layer.a_log}) is None


def run(layer: "S6", both: Tensor, lengths: Optional, cu_seqlens: Optional) -> Tensor:
    """The block's result (B, T, D) from ``both (B, T, 2 E)``, by the parameters of ``layer``."""
    weights = (layer.conv_weight, layer.conv_bias, layer.x_proj.weight, layer.dt_proj.weight)
    parameters = (layer._system(), layer.skip, layer.dt_proj.bias, layer.out_proj.weight)
    with torch.autocast(both.device.type, enabled=False):
        y, _, _ = torch.ops.quatrain.s6_inner(
            both, *weights, *parameters, layer.config.zoh, lengths, cu_seqlens
        )
    return y  # type: ignore[no-any-return]


def _parts(maps: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    states = (maps.shape[-1] - rank) // 2
    low, b, c = maps.split_with_sizes((rank, states, states), -1)
    return low, b, c


def _inputs(u: Tensor, gate: Tensor, low: Tensor, b: Tensor, c: Tensor, rest: Any) -> "scan.Inputs":
    dt_proj, a, skip, bias, _, zoh, lengths, cu_seqlens = rest
    delta = F.linear(low, dt_proj.to(u.dtype))
    return scan.Inputs(u, delta, a, b, c, skip, gate, bias, None, True, zoh, lengths, cu_seqlens)


def _forward(
    both: Tensor, conv_weight: Tensor, conv_bias: Tensor, x_proj: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    first, gate = both.chunk(2, dim=-1)
    u, _ = convolution.forward(first, conv_weight, conv_bias, None, True, *rest[-2:])
    maps = F.linear(u, x_proj.to(u.dtype))
    low, b, c = _parts(maps, rest[0].shape[1])
    y, _, marks = scan.forward(*_inputs(u, gate, low, b, c, rest), True)
    return F.linear(y, rest[4].to(y.dtype)), maps, marks


def _backward(
    dz: Tensor,
    maps: Tensor,
    marks: Tensor,
    both: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_proj: Tensor,
    *rest: Any,
) -> list[Tensor]:
    """Gradients of the nine tensors."""
    dt_proj, out_proj = rest[0], rest[4]
    dz = dz.to(both.dtype)
    first, gate = both.chunk(2, dim=-1)
    d_both = torch.empty(both.shape, dtype=both.dtype, device=both.device)
    d_first, d_gate = d_both.chunk(2, dim=-1)
    u, _ = convolution.forward(first, conv_weight, conv_bias, None, True, *rest[-2:])
    low, b, c = _parts(maps, dt_proj.shape[1])
    inputs = _inputs(u, gate, low, b, c, rest)
    y = dz.matmul(out_proj.to(u.dtype))  # its cotangent at first
    grads = Launch(inputs).backward(y, None, marks, dgate=d_gate, ddelta=inputs.delta, y=y)
    du, d_delta, da, db, dc, d_skip, _, d_bias, _ = grads
    d_low = d_delta.matmul(dt_proj.to(u.dtype))
    d_maps = torch.cat((d_low, db, dc), -1).flatten(0, 1)
    d_dt = d_delta.flatten(0, 1).T @ low.flatten(0, 1)
    d_x = d_maps.T @ u.flatten(0, 1)
    d_out = dz.flatten(0, 1).T @ y.flatten(0, 1)
    du.flatten(0, 1).addmm_(d_maps, x_proj.to(u.dtype))
    launch = convolution.Launch(first, conv_weight, conv_bias, None, True, *rest[-2:])
    _, d_weight, d_conv_bias, _ = launch.backward(du, None, False, d_first)
    assert d_weight is not None
    assert d_conv_bias is not None
    return [
        *(d_both, d_weight, d_conv_bias, d_x.to(x_proj.dtype), d_dt.to(dt_proj.dtype)),
        *(da, d_skip, d_bias, d_out.to(out_proj.dtype)),
    ]


def _fake_forward(both: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    batch, time, width = both.shape
    maps, states, model = args[2].shape[0], int(args[4].shape[1]), args[7].shape[0]
    count = -(-time // Launch.mark_steps(states))
    marks = both.new_empty(count, batch, width // 2, Launch.padding(states), dtype=torch.float32)
    return both.new_empty(batch, time, model), both.new_empty(batch, time, maps), marks


def _fake_backward(dz: Tensor, maps: Tensor, marks: Tensor, *args: Any) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in args[:9]]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, zoh, lengths, cu_seqlens = inputs
    ctx.zoh = zoh
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, lengths, cu_seqlens, *output[1:])


def _traced_backward(ctx: Any, dz: Tensor, *_: Any) -> tuple[Optional, ...]:
    *tensors, lengths, cu_seqlens, maps, marks = ctx.saved_tensors
    with no_autocast(dz):
        grads = torch.ops.quatrain.s6_inner_backward(dz, maps, marks, *tensors, ctx.zoh, lengths, cu_seqlens)
    return *grads, None, None, None


_ARGUMENTS = (
    "Tensor both, Tensor conv_weight, Tensor conv_bias, Tensor x_proj, Tensor dt_proj, Tensor a, "
    "Tensor skip, Tensor delta_bias, Tensor out_proj, bool zoh, Tensor? lengths, Tensor? cu_seqlens"
)
register(
    f"s6_inner({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
    _forward,
    _fake_forward,
    _setup,
    _traced_backward,
    device="CUDA",
)
register(
    f"s6_inner_backward(Tensor dz, Tensor maps, Tensor marks, {_ARGUMENTS}) -> Tensor[]",
    _backward,
    _fake_backward,
    device="CUDA",
)
