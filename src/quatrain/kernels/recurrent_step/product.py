"""One step of a recurrent layer in torch's operations; autograd follows them."""

from torch import Tensor

from quatrain.kernels._autograd import linear
from quatrain.kernels._check import wide_dtype
from quatrain.kernels.gru_scan import steps as gru
from quatrain.kernels.lstm_scan import steps as lstm
from quatrain.kernels.rnn_scan import steps as rnn


def step(
    x: Tensor,
    in_weight: Tensor,
    weight: Tensor,
    h0: Tensor,
    c0: Tensor | None = None,
    in_bias: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    kind: str,
) -> tuple[Tensor, ...]:
    """See `recurrent_step_reference`; operands and sums are float32 or wider."""
    wide = wide_dtype(x.dtype)
    drive = linear(x.to(wide), in_weight.to(wide))
    drive = (drive if in_bias is None else drive + in_bias.to(wide))[:, None]
    if kind == "lstm":
        y, *states = lstm.scan(drive, weight, h0, c0)
    elif kind in ("gru", "gru_before"):
        y, *states = gru.scan(drive, weight, bias, h0, reset="after" if kind == "gru" else "before")
    else:
        y, *states = rnn.scan(drive, weight, h0, nonlinearity=kind.removeprefix("rnn_"))
    return y[:, 0].to(x.dtype), *states
