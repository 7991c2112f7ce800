"""Readable GRU scan: the definition every other implementation is tested against."""

from typing import Any

import torch
from torch import Tensor

from quatrain.kernels._batch import by_sequence
from quatrain.kernels._check import wide_dtype
from quatrain.kernels._rounding import recurrent_product


def gru_scan_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    reset: str = "after",
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    operand_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The GRU recurrence one step at a time; see `quatrain.kernels.gru_scan`.

    With ``operand_dtype`` both operands of each recurrent product are rounded to it, forward and backward, as
    a matrix unit of that type does. The sums and the state stay wide.
    """
    wide = wide_dtype(x.dtype)
    width = weight.shape[1]
    of_gates, of_candidate = weight.to(wide).split_with_sizes((2 * width, width))
    inside = None if bias is None else bias.to(wide)

    def run(data: list[Any], states: list[Any]) -> tuple[Tensor, Tensor]:
        (drive,), (h,) = data, states
        if h is None:
            h = drive.new_zeros(drive.shape[0], width)
        outputs = [h[:, None][:, :0]]
        for t in range(drive.shape[1]):
            x_rz, x_n = drive[:, t].split_with_sizes((2 * width, width), dim=-1)
            r, z = torch.sigmoid(x_rz + recurrent_product(h, of_gates, operand_dtype)).chunk(2, dim=-1)
            if reset == "after":
                product = recurrent_product(h, of_candidate, operand_dtype)
                n = torch.tanh(x_n + r * (product if inside is None else product + inside))
            else:
                n = torch.tanh(x_n + recurrent_product(r * h, of_candidate, operand_dtype))
            h = (1 - z) * n + z * h
            outputs.append(h[:, None])
        return torch.cat(outputs, dim=1), h

    start = None if h0 is None else h0.to(wide)
    y, h = by_sequence(run, [x.to(wide)], [start], lengths, cu_seqlens)
    return y.to(x.dtype), h
