"""Kernel ops. ``OPS`` is what the kernel test, the benchmark and the docs iterate over."""

from quatrain.kernels._op import Case, Impl, Op
from quatrain.kernels.attention import OP as _ATTENTION
from quatrain.kernels.attention import attention
from quatrain.kernels.causal_conv import OP as _CAUSAL_CONV
from quatrain.kernels.causal_conv import causal_conv
from quatrain.kernels.cross_entropy import OP as _CROSS_ENTROPY
from quatrain.kernels.cross_entropy import cross_entropy
from quatrain.kernels.gru_scan import OP as _GRU_SCAN
from quatrain.kernels.gru_scan import gru_scan
from quatrain.kernels.linear_step import OP as _LINEAR_STEP
from quatrain.kernels.linear_step import linear_step
from quatrain.kernels.lstm_scan import OP as _LSTM_SCAN
from quatrain.kernels.lstm_scan import lstm_scan
from quatrain.kernels.lti_conv import OP as _LTI_CONV
from quatrain.kernels.lti_conv import lti_conv
from quatrain.kernels.recurrent_step import OP as _RECURRENT_STEP
from quatrain.kernels.recurrent_step import recurrent_step
from quatrain.kernels.rms_norm import OP as _RMS_NORM
from quatrain.kernels.rms_norm import rms_norm
from quatrain.kernels.rnn_scan import OP as _RNN_SCAN
from quatrain.kernels.rnn_scan import rnn_scan
from quatrain.kernels.s6_block_step import OP as _S6_BLOCK_STEP
from quatrain.kernels.s6_block_step import s6_block_step
from quatrain.kernels.s6_scan import OP as _S6_SCAN
from quatrain.kernels.s6_scan import s6_scan
from quatrain.kernels.s6_step import OP as _S6_STEP
from quatrain.kernels.s6_step import s6_step

OPS: dict[str, Op] = {
    op.name: op
    for op in (
        _RNN_SCAN,
        _LSTM_SCAN,
        _GRU_SCAN,
        _RECURRENT_STEP,
        _S6_SCAN,
        _S6_STEP,
        _S6_BLOCK_STEP,
        _CAUSAL_CONV,
        _ATTENTION,
        _LTI_CONV,
        _LINEAR_STEP,
        _RMS_NORM,
        _CROSS_ENTROPY,
    )
}

__all__ = [
    "OPS",
    "Case",
    "Impl",
    "Op",
    "attention",
    "causal_conv",
    "cross_entropy",
    "gru_scan",
    "linear_step",
    "lstm_scan",
    "lti_conv",
    "recurrent_step",
    "rms_norm",
    "rnn_scan",
    "s6_block_step",
    "s6_scan",
    "s6_step",
]
