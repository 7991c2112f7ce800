"""Readable LSTM scan: the definition every other implementation is tested against."""

from typing import Any

import torch
from torch import Tensor

from quatrain.kernels._batch import by_sequence
from quatrain.kernels._check import wide_dtype
from quatrain.kernels._rounding import recurrent_product


def lstm_scan_reference(
    x: Tensor,
    weight: Tensor,
    h0: Tensor | None = None,
    c0: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    operand_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The LSTM recurrence one step at a time; see `quatrain.kernels.lstm_scan`.

    With ``operand_dtype`` both operands of the recurrent product are rounded to it, forward and backward, as
    a matrix unit of that type does. The sum and the cell stay wide.
    """
    wide = wide_dtype(x.dtype)
    matrix = weight.to(wide)

    def run(data: list[Any], states: list[Any]) -> tuple[Tensor, Tensor, Tensor]:
        (drive,), (h, c) = data, states
        zeros = drive.new_zeros(drive.shape[0], drive.shape[2] // 4)
        h, c = zeros if h is None else h, zeros if c is None else c
        outputs = [h[:, None][:, :0]]
        for t in range(drive.shape[1]):
            i, f, g, o = (drive[:, t] + recurrent_product(h, matrix, operand_dtype)).chunk(4, dim=-1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h[:, None])
        return torch.cat(outputs, dim=1), h, c

    starts = [None if s is None else s.to(wide) for s in (h0, c0)]
    y, h, c = by_sequence(run, [x.to(wide)], starts, lengths, cu_seqlens)
    return y.to(x.dtype), h, c
