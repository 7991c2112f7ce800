"""Attention of one query per sequence by the C++ core: keys and values are read once, in order."""

from math import inf
from struct import Struct

import torch
from torch import Tensor

from quatrain.kernels import _core
from quatrain.kernels._autograd import recomputed, recorded
from quatrain.kernels._core.tape import Tape, call, lined
from quatrain.kernels._op import Arguments
from quatrain.kernels.attention import sdpa

_CODES = {torch.float32: 1, torch.bfloat16: 3}
_pack = Struct("6P17qd").pack
_pack_append = Struct("7P6qd").pack


def available(dtype: torch.dtype) -> bool:
    """Whether the core is there and takes this dtype."""
    return _core.missing() is None and dtype in _CODES


def _arguments(
    q: Tensor,  # (B, H, K)
    k: Tensor,  # (B, S, G, K)
    v: Tensor,
    y: Tensor,  # (B, H, K), dense
    causal: bool,
    window: float,
    q_start: Tensor | None,  # (B,) int64
    k_lengths: Tensor | None,
) -> bytes:
    return _pack(
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        y.data_ptr(),
        0 if q_start is None else q_start.data_ptr(),
        0 if k_lengths is None else k_lengths.data_ptr(),
        _CODES[q.dtype],
        *q.shape,
        *k.shape[1:3],
        0 if window == inf else int(window),
        causal,
        *q.stride()[:2],
        *k.stride()[:3],
        *v.stride()[:3],
        torch.get_num_threads(),
        q.shape[2] ** -0.5,
    )


def why_not(arguments: Arguments) -> str | None:
    """Why the core cannot or should not do it."""
    q = arguments["q"]
    missing: str | None = _core.missing()
    if missing is not None:
        return missing
    if q.device.type != "cpu":
        return f"device {q.device.type}: runs on the CPU"
    if q.dtype not in _CODES:
        return f"dtype {q.dtype}: takes float32 and bfloat16"
    if q.shape[1] != 1:
        return f"T = {q.shape[1]}: takes one query per sequence"
    if recorded(q, arguments["k"], arguments["v"]):
        return "gradients are recorded: only the forward pass is here"
    if torch.compiler.is_compiling():
        return "torch is tracing: torch's own can be compiled"
    return None


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    window: float = inf,
    q_start: Tensor | None = None,
    k_lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor]:
    """See `attention_reference`, for T = 1; a packed row of one token sees itself alone, as it must."""
    start, lengths = (None if x is None else x.to(torch.int64).contiguous() for x in (q_start, k_lengths))

    def fast(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor]:
        q, k, v = lined(q[:, 0]), lined(k), lined(v)
        y = torch.empty(q.shape, dtype=q.dtype)
        call("qt_attention_step", _arguments(q, k, v, y, causal, window, start, lengths))
        return (y[:, None],)

    def slow(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor]:
        return sdpa.attend(
            q, k, v, causal=causal, window=window, q_start=q_start, k_lengths=k_lengths, cu_seqlens=cu_seqlens
        )

    y: tuple[Tensor] = recomputed(fast, slow, q, k, v)
    return y


class Cache:
    """Keys and values of a batch in columns 0 .. C - 1; with a ``keep``, of the last tokens in a ring.

    Row b has written ``count_b`` tokens, the next one goes to column ``count_b % C``. Keys are turned
    already, so their order in a ring does not matter.

    Attributes:
        k, v: (B, C, G, K), dense.
        position: (B,) int64, of the next token.
        count: (B,) int64, tokens written.
        held: (B,) int64, columns that hold one.
    """

    def __init__(self, k: Tensor, v: Tensor, position: Tensor, count: Tensor, columns: int) -> None:
        batch, filled, groups, width = k.shape
        self.k, self.v = (x.new_empty(batch, columns, groups, width) for x in (k, v))
        self.k[:, :filled], self.v[:, :filled] = k, v
        self.position, self.count, self.held = position.clone(), count.clone(), count.clone()

    def append_arguments(self, qkv: Tensor, q: Tensor, rotary_base: float) -> bytes:
        """Of ``qt_attention_append``: each row's key and value go to their column, its query to q (B, H, K).

        Query and key are turned by ``position`` unless ``rotary_base`` is 0. Afterwards ``position``,
        ``count`` and ``held`` are those of the next token. qkv (B, (H + 2 G) K) is dense.
        """
        batch, columns, groups, width = self.k.shape
        return _pack_append(
            qkv.data_ptr(),
            self.k.data_ptr(),
            self.v.data_ptr(),
            q.data_ptr(),
            self.position.data_ptr(),
            self.count.data_ptr(),
            self.held.data_ptr(),
            _CODES[qkv.dtype],
            batch,
            q.shape[1],
            groups,
            width,
            columns,
            rotary_base,
        )

    def record(self, tape: Tape, qkv: Tensor, heads: int, rotary_base: float) -> Tensor:
        """Record one step of attention: projections qkv (B, (H + 2 G) K) to values (B, H K)."""
        batch, width = len(qkv), self.k.shape[3]
        q = tape.buffer("query", batch, heads, width, dtype=qkv.dtype)
        y = tape.buffer("attention", batch, heads, width, dtype=qkv.dtype)
        kept = (self.k, self.v, self.position, self.count, self.held)
        tape.add("qt_attention_append", self.append_arguments(qkv, q, rotary_base), qkv, q, *kept)
        attend = _arguments(q, self.k, self.v, y, False, inf, None, self.held)
        tape.add("qt_attention_step", attend, q, y, *kept)
        return y.view(batch, -1)
