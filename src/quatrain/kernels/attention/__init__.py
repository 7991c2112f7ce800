"""Softmax attention: causal or not, grouped-query, sliding window, ragged and packed."""

from math import inf

import torch
from torch import Tensor

from quatrain.errors import ShapeError
from quatrain.kernels._batch import check_batch, check_index, check_lengths
from quatrain.kernels._check import Checker
from quatrain.kernels._example import Draw
from quatrain.kernels._op import Arguments, Case, Impl, Op
from quatrain.kernels.attention import cpu
from quatrain.kernels.attention.reference import attention_reference
from quatrain.kernels.attention.sdpa import attend


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    window: float = inf,
    q_start: Tensor | None = None,
    k_lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """softmax(q k / sqrt(K)) v over the visible keys; a row that sees none gives 0.

    Query t of row b stands at position p = q_start_b + t among the keys. It sees key s if s < k_lengths_b,
    s <= p (only with ``causal``) and p - s < window.

    Args:
        q: (B, T, H, K).
        k, v: (B, S, G, K); G divides H, and H / G consecutive query heads share a key and value head.
        causal: whether keys after the query are hidden.
        window: positions a query looks back, itself included: a whole number of at least 1, or inf.
        q_start: (B,) integers, position of the first query; None is S - T, queries at the end.
        k_lengths: (B,) integers in [0, S], valid keys of each row; None is S. What lies past them is ignored.
        cu_seqlens: (sequences + 1,) bounds of packed sequences, B = 1 and S = T: none sees another. Goes
            with neither ``q_start`` nor ``k_lengths``.
        impl: ``"auto"``, an implementation's name, or ``"reference"``.

    Returns:
        (B, T, H, K) in q's dtype.

    Raises:
        ShapeError: an argument's shape, dtype, device or content is wrong; T or S is 0.
        NoKernelError: ``impl`` cannot run these arguments.

    Where q is narrower than float32 an implementation may round the weights, and the cotangent of the scores,
    to q's dtype: they are operands of matrix products.

    Cost: 4 B H K operations per visible pair of query and key, 3.5 times that with the backward pass.

    Source: Vaswani et al., arXiv:1706.03762; grouped-query: Ainslie et al., arXiv:2305.13245.
    """
    check = Checker("attention", "q", q, "B T H K")
    check.data("k", k, "B S G K")
    heads, groups, size = (check.sizes[n] for n in "HGS")
    if groups == 0 or heads % groups:
        check.refuse("k", k, f"G = {groups} must divide H = {heads}")
    if size == 0:
        check.refuse("k", k, "S must be at least 1")
    check.data("v", v, "B S G K")
    if not (window == inf or (window >= 1 and window == int(window))):
        raise ShapeError(f"attention: window = {window!r}: must be a whole number of at least 1, or inf")
    _check_indices(q, k, q_start, k_lengths, cu_seqlens)
    (y,) = OP.run(
        {
            "q": q,
            "k": k,
            "v": v,
            "causal": causal,
            "window": window,
            "q_start": q_start,
            "k_lengths": k_lengths,
            "cu_seqlens": cu_seqlens,
        },
        impl,
    )
    return y


def _check_indices(
    q: Tensor, k: Tensor, q_start: Tensor | None, k_lengths: Tensor | None, cu_seqlens: Tensor | None
) -> None:
    if cu_seqlens is not None:
        for name, index in (("q_start", q_start), ("k_lengths", k_lengths)):
            if index is not None:
                raise ShapeError(f"attention: {name}: given together with cu_seqlens: must be one of the two")
        if q.shape[1] != k.shape[1]:
            raise ShapeError(
                f"attention: k: shape {tuple(k.shape)}: with cu_seqlens S must be T = {q.shape[1]}"
            )
    check_batch(q, cu_seqlens=cu_seqlens, op="attention")
    if k_lengths is not None:
        check_lengths(k_lengths, k, op="attention", name="k_lengths", letter="S")
    if q_start is not None:
        check_index(q_start, q, op="attention", name="q_start")


def _example(case: Case, rng: torch.Generator) -> Arguments:
    draw = Draw(case, rng)
    size = case.dims.get("S", case.dims["T"])
    groups = case.dims.get("G", case.dims["H"])
    batch = case.dims["B"]
    ragged = Draw(Case({"B": batch, "T": size}), rng)
    return {
        "q": draw.normal("B", "T", "H", "K"),
        "k": draw.normal("B", size, groups, "K"),
        "v": draw.normal("B", size, groups, "K"),
        "causal": case.flags.get("causal", True),
        "window": case.flags.get("window", inf),
        "q_start": draw.maybe("q_start", lambda: torch.randint(-1, size + 2, (batch,), generator=rng)),
        "k_lengths": draw.maybe("k_lengths", ragged.lengths),
        "cu_seqlens": draw.batch_form()["cu_seqlens"],
    }


_SELF = {"B": 2, "T": 19, "H": 2, "K": 4}
_GROUPED = {"B": 2, "T": 9, "S": 21, "H": 6, "G": 2, "K": 8}
_RAGGED = {"B": 4, "T": 9, "S": 14, "H": 2, "K": 4}
_ROW = {"B": 1, "T": 37, "H": 4, "G": 2, "K": 4}
_BOTH_WAYS = {"causal": False}

OP = Op(
    name="attention",
    reference=attention_reference,
    impls=(Impl("cpp", cpu.attend, cpu.why_not), Impl("torch", attend)),
    example=_example,
    cases=(
        Case({"B": 1, "T": 1, "H": 1, "K": 1}),
        Case(_SELF),
        Case(_SELF, (), _BOTH_WAYS),
        Case(_SELF, (), {"window": 5}),
        Case(_SELF, (), {"window": 2}),
        Case(_SELF, (), {"causal": False, "window": 5}),
        Case(_GROUPED),
        Case(_GROUPED, (), {"window": 6}),
        Case({**_GROUPED, "T": 1}),
        Case({**_GROUPED, "T": 21, "S": 9}),
        Case(_RAGGED, ("k_lengths",)),
        Case(_RAGGED, ("k_lengths",), _BOTH_WAYS),
        Case(_RAGGED, ("q_start",)),
        Case(_RAGGED, ("q_start", "k_lengths"), {"window": 4}),
        Case(_ROW, ("cu_seqlens",)),
        Case(_ROW, ("cu_seqlens",), _BOTH_WAYS),
        Case(_ROW, ("cu_seqlens",), {"window": 3}),
    ),
    outputs=("y",),
    operand_rounding=True,
)
