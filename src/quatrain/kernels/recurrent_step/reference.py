"""One step of a recurrent layer: the input projection, then the definition of its scan at T = 1."""

import torch
from torch import Tensor

from quatrain.kernels._check import wide_dtype
from quatrain.kernels._rounding import recurrent_product
from quatrain.kernels.gru_scan.reference import gru_scan_reference
from quatrain.kernels.lstm_scan.reference import lstm_scan_reference
from quatrain.kernels.rnn_scan.reference import rnn_scan_reference


def recurrent_step_reference(
    x: Tensor,
    in_weight: Tensor,
    weight: Tensor,
    h0: Tensor,
    c0: Tensor | None = None,
    in_bias: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    kind: str,
    operand_dtype: torch.dtype | None = None,
) -> tuple[Tensor, ...]:
    """See `quatrain.kernels.recurrent_step`.

    With ``operand_dtype`` the operands of both products are rounded to it, as a matrix unit of that type
    does. Sums, gates and states stay wide.
    """
    wide = wide_dtype(x.dtype)
    drive = recurrent_product(x.to(wide), in_weight.to(wide), operand_dtype)
    if in_bias is not None:
        drive = drive + in_bias.to(wide)
    steps, matrix = drive[:, None], weight.to(wide)
    if kind == "lstm":
        y, *states = lstm_scan_reference(steps, matrix, h0, c0, operand_dtype=operand_dtype)
    elif kind in ("gru", "gru_before"):
        reset = "after" if kind == "gru" else "before"
        y, *states = gru_scan_reference(steps, matrix, bias, h0, reset=reset, operand_dtype=operand_dtype)
    else:
        bent = kind.removeprefix("rnn_")
        y, *states = rnn_scan_reference(steps, matrix, h0, nonlinearity=bent, operand_dtype=operand_dtype)
    return y[:, 0].to(x.dtype), *states
