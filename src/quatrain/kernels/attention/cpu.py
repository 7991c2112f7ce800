"""Attention of one query per sequence by the C++ core: keys and values are read once, in order."""

from collections.abc import Callable
from functools import cache
from math import inf
from struct import Struct

import torch
from torch import Tensor

from quatrain.kernels import _core
from quatrain.kernels._autograd import recomputed, recorded
from quatrain.kernels._op import Arguments
from quatrain.kernels.attention import sdpa

_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
_pack = Struct("6P17qd").pack
_pack_append = Struct("5P6qd").pack


@cache
def _entry() -> Callable[[bytes], None] | None:
    return _core.entry("qt_attention_step")


@cache
def _append_entry() -> Callable[[bytes], None] | None:
    return _core.entry("qt_attention_append")


def available(dtype: torch.dtype) -> bool:
    """Whether the core is there and takes this dtype."""
    return _entry() is not None and dtype in _DTYPES


def attend_step(
    q: Tensor,  # (B, H, K)
    k: Tensor,  # (B, S, G, K)
    v: Tensor,
    *,
    causal: bool,
    window: float,
    q_start: Tensor | None,  # (B,) int64
    k_lengths: Tensor | None,
) -> Tensor:
    """``attention`` of one query per row; nothing is checked. The last dimension of each must be dense."""
    entry = _entry()
    assert entry is not None
    y = torch.empty(q.shape, dtype=q.dtype)
    entry(
        _pack(
            q.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
            y.data_ptr(),
            0 if q_start is None else q_start.data_ptr(),
            0 if k_lengths is None else k_lengths.data_ptr(),
            _DTYPES[q.dtype],
            *q.shape[:2],
            *k.shape[2:],
            k.shape[1],
            0 if window == inf else int(window),
            causal,
            *q.stride()[:2],
            *k.stride()[:3],
            *v.stride()[:3],
            torch.get_num_threads(),
            q.shape[2] ** -0.5,
        )
    )
    return y


def why_not(arguments: Arguments) -> str | None:
    """Why the core cannot or should not do it."""
    q = arguments["q"]
    if _entry() is None:
        return _core.missing()
    if q.device.type != "cpu":
        return f"device {q.device.type}: runs on the CPU"
    if q.dtype not in _DTYPES:
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
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        y = attend_step(q[:, 0], k, v, causal=causal, window=window, q_start=start, k_lengths=lengths)
        return (y[:, None],)

    def slow(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor]:
        return sdpa.attend(
            q, k, v, causal=causal, window=window, q_start=q_start, k_lengths=k_lengths, cu_seqlens=cu_seqlens
        )

    y: tuple[Tensor] = recomputed(fast, slow, q, k, v)
    return y


def append(
    qkv: Tensor,  # (B, (H + 2 G) K)
    k: Tensor,  # (B, C, G, K) dense
    v: Tensor,
    counts: Tensor,  # (3, B) int64
    *,
    heads: int,
    rotary_base: float,
) -> Tensor:
    """Write each row's key and value into column ``counts[1] % C`` and return its query (B, H, K).

    Query and key are turned by position ``counts[0]`` unless ``rotary_base`` is 0. Afterwards ``counts`` are
    those of the next token: position, tokens written, and columns of the row that hold one.
    """
    entry = _append_entry()
    assert entry is not None
    batch, size, groups, width = k.shape
    q = torch.empty(batch, heads, width, dtype=qkv.dtype)
    entry(
        _pack_append(
            qkv.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
            q.data_ptr(),
            counts.data_ptr(),
            _DTYPES[qkv.dtype],
            batch,
            heads,
            groups,
            width,
            size,
            rotary_base,
        )
    )
    return q
