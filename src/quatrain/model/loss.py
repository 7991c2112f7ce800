"""Cross-entropy of a linear head, in chunks of tokens: the logits of a large vocabulary never exist whole."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from quatrain.errors import ShapeError
from quatrain.kernels._autograd import first_order
from quatrain.kernels.cross_entropy import cuda, reference

IGNORE = reference.IGNORE


def chunked_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None, chunk: int | None = None
) -> Tensor:
    r"""Mean of -log softmax(hidden @ weight^T + bias)[target] in nats, over targets that are not -100.

    Logits are made for ``chunk`` tokens at a time, turned into gradients in place and thrown away: working
    memory is chunk * V numbers instead of tokens * V. Gradients are computed in the forward pass (which has
    the logits at hand) and scaled in the backward pass, so they exist only where gradients are recorded, and
    once.

    Args:
        hidden: activations, ``(..., D)``.
        weight: head, ``(V, D)``; may be the embedding.
        targets: int64 ``(...)``, each in [0, V) or -100. Contents are checked on the CPU only.
        bias: ``(V,)`` or absent.
        chunk: tokens per chunk; absent: as many as make 2^20 logits, at least 256 (on a GPU 2^27, at least
            1024).

    Returns:
        A scalar in float32 or wider; 0 (with zero gradients) if every target is -100.
        Matrix products run in the autocast dtype where autocast is on, else in the wider dtype of hidden and
        weight; softmax, loss, and the sums over tokens in float32 or wider. Gradients have the dtypes of
        their arguments.

    Raises:
        ShapeError: shapes or dtypes disagree, a target is out of range, or chunk < 1.

    Cost: 2 tokens * V * D operations for the loss, three times that with both gradients.
    """
    _check(hidden, weight, targets, bias, chunk)
    vocab, width = weight.shape
    device = hidden.device.type
    rows = chunk if chunk is not None else _rows(vocab, device)
    operand = torch.promote_types(hidden.dtype, weight.dtype)
    if torch.is_autocast_enabled(device) and operand != torch.float64:
        operand = torch.get_autocast_dtype(device)
    flat = (hidden.reshape(-1, width), weight, bias, targets.reshape(-1))
    apply: Callable[..., Tensor] = _ChunkedCrossEntropy.apply
    return apply(*flat, rows, operand, torch.is_grad_enabled())


def _rows(vocab: int, device: str) -> int:
    return max(256, 2**20 // vocab) if device == "cpu" else max(1024, 2**27 // vocab // 256 * 256)


def _check(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, chunk: int | None) -> None:
    if weight.ndim != 2 or hidden.ndim < 1 or hidden.shape[-1] != weight.shape[1]:
        shapes = f"hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)}"
        raise ShapeError(f"cross-entropy: {shapes}: must be (..., D) and (V, D)")
    if targets.shape != hidden.shape[:-1]:
        got, want = tuple(targets.shape), tuple(hidden.shape[:-1])
        raise ShapeError(f"cross-entropy: targets: shape {got}: must be {want}, one for each hidden vector")
    if targets.dtype != torch.int64:
        raise ShapeError(f"cross-entropy: targets: dtype {targets.dtype}: must be torch.int64")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(f"cross-entropy: bias: shape {tuple(bias.shape)}: must be ({weight.shape[0]},)")
    if chunk is not None and chunk < 1:
        raise ShapeError(f"cross-entropy: chunk = {chunk}: must be at least 1")
    if targets.device.type == "cpu":
        wrong = targets[((targets < 0) & (targets != IGNORE)) | (targets >= weight.shape[0])]
        if wrong.numel():
            raise ShapeError(f"targets: {int(wrong[0])}: must lie in [0, {weight.shape[0]}) or be {IGNORE}")


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,  # (N, D)
        weight: Tensor,  # (V, D)
        bias: Tensor | None,
        targets: Tensor,  # (N,)
        rows: int,
        operand: torch.dtype,
        record: bool,
    ) -> Tensor:
        wide = torch.promote_types(operand, torch.float32)
        wants = [record and need for need in ctx.needs_input_grad[:3]]
        grads = [
            torch.zeros_like(tensor, dtype=wide) if want and tensor is not None else None
            for want, tensor in zip(wants, (hidden, weight, bias), strict=True)
        ]
        total = torch.zeros((), dtype=wide, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = weight.to(operand)
            for at in range(0, len(hidden), rows):
                part = slice(at, at + rows)
                total += _chunk(hidden[part].to(operand), matrix, bias, targets[part], part, grads)
        scale = 1 / (targets != IGNORE).sum().clamp(min=1).to(wide)
        ctx.save_for_backward(scale, *grads)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (hidden, weight, bias)]
        return total * scale

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scale, *grads = ctx.saved_tensors
        factor = grad * scale
        scaled = [
            None if one is None else (one * factor).to(dtype)
            for one, dtype in zip(grads, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None, None, None)


def _chunk(
    hidden: Tensor,  # (C, D)
    weight: Tensor,  # (V, D)
    bias: Tensor | None,
    targets: Tensor,  # (C,)
    part: slice,
    grads: list[Tensor | None],
) -> Tensor:
    """Sum of the losses of one chunk; adds to the gradients (of that sum) that are wanted."""
    logits = hidden @ weight.T  # (C, V)
    wanted = any(grad is not None for grad in grads)
    if bias is None and cuda.why_not({"logits": logits}) is None:
        loss = cuda.losses(logits, targets, logits if wanted else None).sum()
        _add_gradients(logits, None, hidden, weight, part, grads)
        return loss
    loss, slope = _losses(logits, bias, targets, wanted)
    if slope is not None:
        _add_gradients(slope.to(hidden.dtype), slope, hidden, weight, part, grads)
    return loss


def _losses(
    logits: Tensor, bias: Tensor | None, targets: Tensor, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """Sum of the losses, and their slopes where they are wanted, in float32 or wider."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if bias is not None:
        logits += bias.to(logits.dtype)
    valid = targets != IGNORE
    index = targets.clamp(min=0)[:, None]
    lse = logits.logsumexp(1, keepdim=True)
    loss = (lse - logits.gather(1, index))[:, 0].masked_fill(~valid, 0).sum()
    if not wanted:
        return loss, None
    slope = logits.sub_(lse).exp_()  # softmax, in the memory of the logits
    slope.scatter_add_(1, index, torch.full_like(lse, -1))
    return loss, slope.masked_fill_(~valid[:, None], 0)


def _add_gradients(
    narrow: Tensor,  # (C, V): slopes as an operand of products
    slope: Tensor | None,  # the same, not rounded; only a bias needs it
    hidden: Tensor,
    weight: Tensor,
    part: slice,
    grads: list[Tensor | None],
) -> None:
    of_hidden, of_weight, of_bias = grads
    if of_hidden is not None:
        of_hidden[part] = narrow @ weight
    if of_weight is not None:
        if narrow.dtype == of_weight.dtype:
            of_weight.addmm_(narrow.T, hidden)
        elif narrow.device.type == "cuda":
            torch.addmm(of_weight, narrow.T, hidden, out_dtype=of_weight.dtype, out=of_weight)
        else:
            of_weight += narrow.T @ hidden
    if of_bias is not None and slope is not None:
        of_bias += slope.sum(0)
