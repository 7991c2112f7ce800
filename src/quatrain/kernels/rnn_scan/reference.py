"""Readable Elman scan: the definition every other implementation is tested against."""

from typing import Any

import torch
from torch import Tensor

from quatrain.kernels._batch import by_sequence
from quatrain.kernels._check import wide_dtype
from quatrain.kernels._rounding import recurrent_product


def rnn_scan_reference(
    x: Tensor,
    weight: Tensor,
    h0: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    operand_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """h_t = f(x_t + weight h_{t-1}), y_t = h_t, one step at a time; see `quatrain.kernels.rnn_scan`.

    With ``operand_dtype`` both operands of the recurrent product are rounded to it, forward and backward, as
    a matrix unit of that type does. The sum stays wide.
    """
    wide = wide_dtype(x.dtype)
    matrix = weight.to(wide)
    f = {"tanh": torch.tanh, "relu": torch.relu}[nonlinearity]

    def run(data: list[Any], states: list[Any]) -> tuple[Tensor, Tensor]:
        (drive,), (h,) = data, states
        if h is None:
            h = drive.new_zeros(drive.shape[0], drive.shape[2])
        outputs = [drive[:, :0]]
        for t in range(drive.shape[1]):
            h = f(drive[:, t] + recurrent_product(h, matrix, operand_dtype))
            outputs.append(h[:, None])
        return torch.cat(outputs, dim=1), h

    start = None if h0 is None else h0.to(wide)
    y, h = by_sequence(run, [x.to(wide)], [start], lengths, cu_seqlens)
    return y.to(x.dtype), h
