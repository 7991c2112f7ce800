"""What a model does inside on one input: norms, gates, step sizes, attention maps, and how long it remembers.

Everything is computed again from a layer's parameters by its definition, in float32 or wider: no hook is set
and nothing is kept on a module. `inside` looks into one mixer, `look` into every layer of a model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from quatrain.config.check import check
from quatrain.errors import ShapeError
from quatrain.kernels._batch import check_batch
from quatrain.mixers._base import Causal
from quatrain.mixers._check import check_input
from quatrain.model.mode import evaluating
from quatrain.model.sequence import SequenceModel

LIMIT = 512  # steps that are looked at unless more are asked for: a map of T steps holds T^2 numbers a head
_STARTS, _REACH = 16, 256  # of an RNN's memory: places where it is measured, and steps it is followed


@dataclass(frozen=True, eq=False)
class Inside:
    """What one mixer does on ``x (B, T, D)``; whatever its kind has not is empty or None.

    Attributes:
        kind: name in `quatrain.mixers.MIXERS`.
        gates: LSTM: ``input``, ``forget``, ``output``; GRU: ``reset``, ``update`` (near 1 it keeps the
            state); each ``(B, T, D)`` in (0, 1). S6 and S4D: ``output``, SiLU(z) ``(B, T, E)``, which is at
            least -0.28 and has no upper end.
        step: step size ``(B, T, E)``, S6: softplus(dt_proj(s)), S4D: the same at all steps.
        state: what the layer carries on, after each step ``(B, T, D)``: RNN and GRU: the hidden vector, LSTM:
            the cell.
        attention: weights ``(B, H, T, T)``: row t says how much step t reads of each step; rows sum to 1.
        memory: steps until what was written has faded to about 1/e, ``(B, ...)``; see ``memory_by``. It may
            hold inf: not faded within the input.
        memory_by: how ``memory`` was found, and per what, in words.
        parts: what else the layer's rule takes, for whoever wants to recompute it: LSTM and GRU
            ``candidate``, S6 ``input``, ``b``, ``c``, S4D ``input``, attention ``value``.
    """

    kind: str
    gates: Mapping[str, Tensor] = field(default_factory=dict)
    step: Tensor | None = None
    state: Tensor | None = None
    attention: Tensor | None = None
    memory: Tensor | None = None
    memory_by: str = ""
    parts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Layer:
    """What one layer of a model does on one sequence of T steps; the tensors lie on the CPU.

    ``gates``, ``step``, ``state``, ``attention``, ``memory`` and ``memory_by`` are those of `Inside` without
    the batch: ``(T, E)``, ``(T, E)``, ``(T, D)``, ``(H, T, T)``.

    Attributes:
        index: 0 is the layer that reads the embedding.
        kind: name in `quatrain.mixers.MIXERS`.
        before, hidden: Euclidean norm ``(T,)`` of what enters the layer, and of what leaves it.
        added: norm ``(T,)`` of the mixer's output: what it adds to the residual stream; in a plain stack,
            where nothing is added up, the norm of the output itself.
        mlp: norm ``(T,)`` of what the MLP adds; None where there is none.
    """

    index: int
    kind: str
    before: Tensor
    hidden: Tensor
    added: Tensor
    mlp: Tensor | None
    gates: Mapping[str, Tensor]
    step: Tensor | None
    state: Tensor | None
    attention: Tensor | None
    memory: Tensor | None
    memory_by: str


def look(model: SequenceModel, inputs: Tensor, *, limit: int = LIMIT) -> list[Layer]:
    """Every layer of a model on one sequence, from the first to the last.

    Args:
        model: of any task, pattern and form; read in evaluation mode and left in the mode it was in.
        inputs: ``(T,)`` tokens or ``(T, C)`` numbers, as the model takes them for one sequence.
        limit: only the first so many steps are looked at.

    Raises:
        ShapeError: inputs of another shape or kind, none, or a token that the model does not know.
        ConfigError: limit below 1.

    Cost: two passes over each mixer, one of them step by step where it is recurrent; attention holds T^2
    numbers a head; an RNN of width D also multiplies matrices D x D, at most 4096, until nothing is left.
    """
    check(type(limit) is int and limit >= 1, "limit", limit, "must be an integer of at least 1")
    ndim = 2 if model.config.channels else 1
    if inputs.ndim != ndim or 0 in inputs.shape:
        shape = f"(T, {model.config.channels})" if model.config.channels else "(T,)"
        raise ShapeError(f"inputs: shape {tuple(inputs.shape)}: must be {shape} with T at least 1")
    found = []
    with torch.no_grad(), evaluating(model):
        x = model.embed(inputs[None, :limit].to(model.device))
        for index, block in enumerate(model.backbone.blocks):
            inner = x if block.norm is None else block.norm(x)
            y, _ = block.mixer(inner, keep_state=False)
            after = block._add(x, y)
            mlp = None
            if block.mlp is not None and block.mlp_norm is not None:
                mlp = _norm(block.mlp(block.mlp_norm(x + y)))
            found.append(_layer(index, inside(block.mixer, inner), _norm(x), _norm(after), _norm(y), mlp))
            x = after
    return found


def _norm(x: Tensor) -> Tensor:
    wide = x[0].to(torch.promote_types(x.dtype, torch.float32))
    norm: Tensor = torch.linalg.vector_norm(wide, dim=-1)
    return norm.cpu()


def _layer(
    index: int, found: Inside, before: Tensor, hidden: Tensor, added: Tensor, mlp: Tensor | None
) -> Layer:
    def one(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[0].cpu()

    gates = {name: gate[0].cpu() for name, gate in found.gates.items()}
    return Layer(
        index=index,
        kind=found.kind,
        before=before,
        hidden=hidden,
        added=added,
        mlp=mlp,
        gates=gates,
        step=one(found.step),
        state=one(found.state),
        attention=one(found.attention),
        memory=one(found.memory),
        memory_by=found.memory_by,
    )


def inside(mixer: Causal[Any], x: Tensor) -> Inside:
    """One mixer, of a model or bare, on ``x (B, T, D)`` from its initial state.

    A kind that this module does not know, or one that reads both ways step by step, gives an `Inside` with
    nothing but its kind. Gradients are not recorded. Raises ShapeError as the mixer's ``forward`` does. Cost:
    see `look`.
    """
    check_input(x, mixer.config.width, 3, mixer._like)
    check_batch(x, lengths=None, cu_seqlens=None)
    read = None if getattr(mixer, "reverse", None) is not None else _KINDS.get(mixer.kind)
    with torch.no_grad():
        return Inside(mixer.kind) if read is None else read(mixer, x)


def _lstm(mixer: Any, x: Tensor) -> Inside:
    """i, f, o and the candidate of each step: h_{t-1} is needed for them, so the recurrence is run again."""
    drive, matrix = mixer.in_proj(x).to(mixer._wide), mixer.recurrent.to(mixer._wide).T
    c = h = drive.new_zeros(len(x), mixer.config.width)
    rows = []
    for t in range(x.shape[1]):
        i, f, g, o = (drive[:, t] + h @ matrix).chunk(4, dim=-1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c = f * c + i * g
        h = o * c.tanh()
        rows.append((i, f, o, g, c))
    i, f, o, g, c = (torch.stack(column, 1) for column in zip(*rows, strict=True))
    return Inside(
        mixer.kind,
        {"input": i, "forget": f, "output": o},
        state=c,
        memory=1 / (1 - f).mean(1),
        memory_by="1 / (1 - forget gate), averaged over the input, per cell",
        parts={"candidate": g},
    )


def _gru(mixer: Any, x: Tensor) -> Inside:
    width, before = mixer.config.width, mixer.config.reset == "before"
    drive, matrix = mixer.in_proj(x).to(mixer._wide), mixer.recurrent.to(mixer._wide).T
    inner = 0.0 if mixer.recurrent_bias is None else mixer.recurrent_bias.to(mixer._wide)
    of_gates, of_candidate = matrix[:, : 2 * width], matrix[:, 2 * width :]
    h = drive.new_zeros(len(x), width)
    rows = []
    for t in range(x.shape[1]):
        both, new = drive[:, t].split_with_sizes((2 * width, width), dim=-1)
        r, z = (both + h @ of_gates).sigmoid().chunk(2, dim=-1)
        n = (new + ((r * h) @ of_candidate if before else r * (h @ of_candidate + inner))).tanh()
        h = (1 - z) * n + z * h
        rows.append((r, z, n, h))
    r, z, n, h = (torch.stack(column, 1) for column in zip(*rows, strict=True))
    return Inside(
        mixer.kind,
        {"reset": r, "update": z},
        state=h,
        memory=1 / (1 - z).mean(1),
        memory_by="1 / (1 - update gate), averaged over the input, per unit; what comes back through the new "
        "value is not counted",
        parts={"candidate": n},
    )


def _rnn(mixer: Any, x: Tensor) -> Inside:
    h, _ = mixer(x, keep_state=False)
    memory = _rnn_memory(h.to(mixer._wide), mixer.recurrent.to(mixer._wide), mixer.config.nonlinearity)
    by = (
        "no gate to read it off: measured as the steps after which a small change of one unit has shrunk to "
        f"1/e of its size, per unit, from up to {_STARTS} places in the first half of the input"
    )
    if memory is None:
        by = "no gate to read it off, and the input is too short to measure it"
    return Inside(mixer.kind, state=h.to(mixer._wide), memory=memory, memory_by=by)


def _rnn_memory(h: Tensor, matrix: Tensor, nonlinearity: str) -> Tensor | None:
    """(B, D): the first k at which column j of d h_{t+k} / d h_t is shorter than 1/e.

    d h_t / d h_{t-1} = diag(f'(a_t)) W; f' is 1 - h^2 for tanh, 1 where h > 0 for ReLU. Between two steps the
    crossing is interpolated on the logarithm; over the starts t, 1/k is averaged, so that one start from
    which nothing fades (k = inf) does not decide alone.
    """
    batch, time, width = h.shape
    if time < 2:
        return None
    slope = 1 - h.square() if nonlinearity == "tanh" else (h > 0).to(h.dtype)
    starts = torch.linspace(0, (time - 1) // 2, min(_STARTS, 1 + (time - 1) // 2), device=h.device).long()
    product = torch.eye(width, dtype=h.dtype, device=h.device).repeat(batch, len(starts), 1, 1)
    memory, last = h.new_full((batch, len(starts), width), inf), h.new_zeros(batch, len(starts), width)
    for k in range(1, min(time, 1 + _REACH)):
        there = starts + k < time
        if not (memory.isinf() & there[:, None]).any():
            break
        product = slope[:, (starts + k).clamp(max=time - 1), :, None] * (matrix @ product)
        size = torch.linalg.vector_norm(product, dim=2).log()  # (B, S, D)
        crossed = (size < -1) & memory.isinf() & there[:, None]
        memory = torch.where(crossed, k - 1 + (last + 1) / (last - size), memory)
        last = size
    return 1 / (1 / memory).mean(1)


def _attention(mixer: Any, x: Tensor) -> Inside:
    """softmax(q_t k_s / sqrt(K)) over the visible s, as `quatrain.kernels.attention` defines it."""
    config, time = mixer.config, x.shape[1]
    mixer._check_reach(time)
    step = torch.arange(time, device=x.device)
    q, k, v = mixer._project(x, step[None])
    share = config.heads // config.groups
    q, k = q.to(mixer._wide).transpose(1, 2), k.to(mixer._wide).repeat_interleave(share, 2)
    back = step[:, None] - step  # (T, T)
    hidden = back >= config.window
    if config.causal:
        hidden = hidden | (back < 0)
    score = (q @ k.permute(0, 2, 3, 1)) * config.head_width**-0.5
    weights = score.masked_fill(hidden, -inf).softmax(-1)
    away = (weights * back.abs()).sum(-1).mean(-1)  # (B, H)
    by = "mean distance between a step and what it reads, weighted by attention, per head"
    return Inside(mixer.kind, attention=weights, memory=away, memory_by=by, parts={"value": v})


def _block(mixer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The convolution's output and SiLU(z), both (B, T, E)."""
    u, z = mixer.in_proj(x).chunk(2, dim=-1)
    u, _ = mixer._convolve(u, None)
    return u, F.silu(z.to(mixer._wide))


def _s6(mixer: Any, x: Tensor) -> Inside:
    u, gate = _block(mixer, x)
    low, b, c = mixer._select(u)
    low = low.to(mixer._wide) + mixer.dt_proj.bias.to(mixer._wide)
    step = torch.logaddexp(low, torch.zeros_like(low))
    return Inside(
        mixer.kind,
        {"output": gate},
        step,
        memory=1 / (step.mean(1)[:, :, None] * mixer._system().abs()),
        memory_by="1 / (step size x |A|), averaged over the input, per channel and state number",
        parts={"input": u.to(mixer._wide), "b": b.to(mixer._wide), "c": c.to(mixer._wide)},
    )


def _s4d(mixer: Any, x: Tensor) -> Inside:
    u, gate = _block(mixer, x)
    rate, _, _ = mixer._system()
    step = F.softplus(mixer.dt_bias.to(mixer._wide))
    return Inside(
        mixer.kind,
        {"output": gate},
        step.expand(u.shape),
        memory=(1 / rate.real.abs()).expand(len(x), *rate.shape),
        memory_by="1 / (step size x |Re A|), whatever the input, per channel and state number",
        parts={"input": u.to(mixer._wide)},
    )


_KINDS: Mapping[str, Callable[[Any, Tensor], Inside]] = {
    "rnn": _rnn,
    "lstm": _lstm,
    "gru": _gru,
    "attention": _attention,
    "s6": _s6,
    "s4d": _s4d,
}
