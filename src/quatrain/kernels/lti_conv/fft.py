"""Long causal convolution through the FFT; autograd follows it."""

import torch
from torch import Tensor

from quatrain.kernels._batch import mask, pack, unpack
from quatrain.kernels._check import wide_dtype


def convolve(
    u: Tensor,
    kernel: Tensor,
    *,
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor]:
    """See `lti_conv_reference`. Packed sequences are padded: the longest one's length is read on the host."""
    wide = wide_dtype(u.dtype)
    if cu_seqlens is not None:
        padded, _ = unpack(u, cu_seqlens)
        return (pack(_whole(padded.to(wide), kernel.to(wide)).to(u.dtype), cu_seqlens),)
    if lengths is None:
        return (_whole(u.to(wide), kernel.to(wide)).to(u.dtype),)
    past = ~mask(lengths, u.shape[1])[..., None]
    y = _whole(u.to(wide).masked_fill(past, 0), kernel.to(wide))
    return (y.masked_fill(past, 0).to(u.dtype),)


def _whole(u: Tensor, kernel: Tensor) -> Tensor:
    time = u.shape[1]
    kernel = kernel[:, :time]
    size = fast_size(time + kernel.shape[1] - 1)  # no wrap-around
    product = torch.fft.rfft(u.transpose(1, 2), n=size) * torch.fft.rfft(kernel, n=size)
    y: Tensor = torch.fft.irfft(product, n=size)[..., :time].transpose(1, 2)
    return y


def fast_size(least: int) -> int:
    """The smallest even 2^i 3^j 5^k that is at least ``least``: sizes that FFT libraries do well."""
    best = 2
    while best < least:
        best *= 2
    five = 1
    while five < best:
        three = five
        while three < best:
            size = 2 * three
            while size < least:
                size *= 2
            best = min(best, size)
            three *= 3
        five *= 5
    return best
