"""Backbone, sequence models, initialisation and counting; imported on use: configs need no torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quatrain.model.backbone import Backbone as Backbone
    from quatrain.model.config import ModelConfig as ModelConfig
    from quatrain.model.count import Counts as Counts
    from quatrain.model.count import parameters as parameters
    from quatrain.model.fit import fit_size as fit_size
    from quatrain.model.init import initialise as initialise
    from quatrain.model.lm import LanguageModel as LanguageModel
    from quatrain.model.loss import chunked_cross_entropy as chunked_cross_entropy
    from quatrain.model.sequence import SequenceModel as SequenceModel

_PUBLIC = {
    "Backbone": "backbone",
    "Counts": "count",
    "LanguageModel": "lm",
    "ModelConfig": "config",
    "SequenceModel": "sequence",
    "chunked_cross_entropy": "loss",
    "fit_size": "fit",
    "initialise": "init",
    "parameters": "count",
}

__all__ = [
    "Backbone",
    "Counts",
    "LanguageModel",
    "ModelConfig",
    "SequenceModel",
    "chunked_cross_entropy",
    "fit_size",
    "initialise",
    "parameters",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'quatrain.model' has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
