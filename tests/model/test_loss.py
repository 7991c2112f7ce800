"""Cross-entropy in chunks: against the plain one, its gradients, narrow dtypes, memory and bad input."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from quatrain.errors import ShapeError
from quatrain.model.loss import chunked_cross_entropy


def tokens(*shape: int, vocab: int) -> Tensor:
    return torch.randint(0, vocab, shape, generator=torch.Generator().manual_seed(2))


def close(got: Tensor, wanted: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(got, wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("biased", [False, True])
def test_gradients_of_the_chunked_loss(chunk: int, biased: bool) -> None:
    torch.manual_seed(0)
    arguments = [
        torch.randn(*shape, dtype=torch.float64) for shape in ((2, 4, 5), (7, 5), (7,))[: 2 + biased]
    ]
    y = tokens(2, 4, vocab=7)
    y[1, 1] = -100

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return chunked_cross_entropy(hidden, weight, y, bias, chunk)

    leaves = [tensor.requires_grad_() for tensor in arguments]
    assert torch.autograd.gradcheck(loss, leaves)
    got = torch.autograd.grad(3 * loss(*leaves), leaves)
    hidden, weight, bias = (*leaves, None)[:3]
    plain = 3 * F.cross_entropy(F.linear(hidden, weight, bias).flatten(0, 1), y.flatten())
    for one, other in zip(got, torch.autograd.grad(plain, leaves), strict=True):
        close(one, other)


def test_the_chunked_loss_gives_gradients_only_where_they_are_wanted() -> None:
    hidden, weight = torch.randn(4, 5), torch.randn(7, 5, requires_grad=True)
    chunked_cross_entropy(hidden, weight, tokens(4, vocab=7)).backward()
    assert hidden.grad is None
    assert weight.grad is not None
    with torch.no_grad():
        assert chunked_cross_entropy(hidden, weight, tokens(4, vocab=7)).grad_fn is None


def test_no_target_means_no_loss() -> None:
    hidden = torch.randn(4, 5, requires_grad=True)
    loss = chunked_cross_entropy(hidden, torch.randn(7, 5), torch.full((4,), -100))
    loss.backward()
    assert loss == 0
    assert hidden.grad is not None
    assert hidden.grad.abs().sum() == 0


def test_the_chunked_loss_under_autocast() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(64, 32, requires_grad=True), torch.randn(500, 32, requires_grad=True)
    y = tokens(64, vocab=500)
    with torch.autocast("cpu", torch.bfloat16):
        loss = chunked_cross_entropy(hidden, weight, y, chunk=20)
        logits = F.linear(hidden, weight)
    assert loss.dtype == torch.float32
    assert logits.dtype == torch.bfloat16
    close(loss, F.cross_entropy(logits.float(), y), 1e-4)
    exact = F.cross_entropy(F.linear(hidden, weight), y)
    for leaf, wanted in zip((hidden, weight), torch.autograd.grad(exact, (hidden, weight)), strict=True):
        (got,) = torch.autograd.grad(loss, leaf, retain_graph=True)
        assert got.dtype == torch.float32
        assert (got - wanted).norm() < 0.02 * wanted.norm()


def test_a_narrow_loss_is_summed_in_float32() -> None:
    hidden, weight = torch.zeros(5000, 2, dtype=torch.bfloat16), torch.zeros(3, 2, dtype=torch.bfloat16)
    loss = chunked_cross_entropy(hidden, weight, tokens(5000, vocab=3), chunk=1)
    assert loss.dtype == torch.float32
    assert abs(loss.item() - math.log(3)) < 1e-4  # 5000 sums in bfloat16 would stop at 256


def test_logits_never_exist_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    real = torch.Tensor.__matmul__

    def watched(self: Tensor, other: Tensor) -> Tensor:
        nonlocal largest
        product = real(self, other)
        largest = max(largest, product.numel())
        return product

    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    hidden, weight = torch.randn(2000, 4, requires_grad=True), torch.randn(5000, 4, requires_grad=True)
    chunked_cross_entropy(hidden, weight, tokens(2000, vocab=5000)).backward()
    assert 0 < largest <= 256 * 5000


def test_a_wrong_head_or_chunk_is_named() -> None:
    hidden, weight, y = torch.randn(4, 5), torch.randn(7, 5), tokens(4, vocab=7)
    with pytest.raises(
        ShapeError, match=r"hidden \(4, 5\), weight \(5, 7\): must be \(\.\.\., D\) and \(V, D\)"
    ):
        chunked_cross_entropy(hidden, weight.T, y)
    with pytest.raises(ShapeError, match=r"bias: shape \(5,\): must be \(7,\)"):
        chunked_cross_entropy(hidden, weight, y, torch.zeros(5))
    with pytest.raises(ShapeError, match=r"chunk = 0: must be at least 1"):
        chunked_cross_entropy(hidden, weight, y, chunk=0)
