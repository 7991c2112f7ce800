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

# What people call them: said in error messages, so that a kind has one name everywhere else.
_CALLED = {"transformer": "attention", "gpt": "attention", "mamba": "s6", "s4": "s4d", "elman": "rnn"}


def did_you_mean(kind: str) -> str:
    """`` (did you mean s6?)`` for a word that is no kind, or nothing where none is near."""
    called = _CALLED.get(kind.lower())
    return f" (did you mean {called}?)" if called else closest(kind, MIXERS)


def mixer_class(kind: str) -> "type[Causal[Any]]":
    """The mixer class registered as ``kind``.

    Raises:
        ConfigError: no such kind; the message lists the known ones.
    """
    if kind not in MIXERS:
        raise ConfigError(f"mixer = {kind!r}: must be one of {', '.join(MIXERS)}{did_you_mean(kind)}")
    module, name = MIXERS[kind].split(":")
    cls: type[Causal[Any]] = getattr(import_module(f"{__name__}.{module}"), name)
    return cls


__all__ = ["MIXERS", "did_you_mean", "mixer_class"]
