"""Sequence mixers. To add one: write its file, then name it in the table below. Importing this package loads
no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from quatrain.config.check import closest
from quatrain.errors import ConfigError

if TYPE_CHECKING:
    from quatrain.mixers._base import Causal as Causal

MIXERS = {
    "rnn": "rnn:RNN",
    "lstm": "lstm:LSTM",
    "gru": "gru:GRU",
    "attention": "attention:Attention",
    "s6": "s6:S6",
    "s4d": "s4d:S4D",
}


def mixer_class(kind: str) -> "type[Causal[Any]]":
    """The mixer class registered as ``kind``.

    Raises:
        ConfigError: no such kind; the message lists the known ones.
    """
    if kind not in MIXERS:
        raise ConfigError(f"mixer = {kind!r}: must be one of {', '.join(MIXERS)}{closest(kind, MIXERS)}")
    module, name = MIXERS[kind].split(":")
    cls: type[Causal[Any]] = getattr(import_module(f"{__name__}.{module}"), name)
    return cls


__all__ = ["MIXERS", "mixer_class"]
