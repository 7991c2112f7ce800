"""RNN, LSTM, Transformer and Mamba behind one interface: train, compare, stream.

Importing this package loads no torch: each public name is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quatrain.api import compare as compare
    from quatrain.api import inspect as inspect
    from quatrain.checkpoint import load as load
    from quatrain.infer.judge import evaluate as evaluate
    from quatrain.infer.predict import predict as predict
    from quatrain.mixers.attention import Attention as Attention
    from quatrain.mixers.gru import GRU as GRU
    from quatrain.mixers.lstm import LSTM as LSTM
    from quatrain.mixers.rnn import RNN as RNN
    from quatrain.mixers.s4d import S4D as S4D
    from quatrain.mixers.s6 import S6 as S6

__version__ = "0.1.0"

_PUBLIC = {
    "RNN": "quatrain.mixers.rnn",
    "LSTM": "quatrain.mixers.lstm",
    "GRU": "quatrain.mixers.gru",
    "Attention": "quatrain.mixers.attention",
    "S6": "quatrain.mixers.s6",
    "S4D": "quatrain.mixers.s4d",
    "compare": "quatrain.api",
    "evaluate": "quatrain.infer.judge",
    "inspect": "quatrain.api",
    "load": "quatrain.checkpoint",
    "predict": "quatrain.infer.predict",
}

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "S4D",
    "S6",
    "Attention",
    "__version__",
    "compare",
    "evaluate",
    "inspect",
    "load",
    "predict",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'quatrain' has no attribute {name!r}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
