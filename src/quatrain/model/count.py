"""How many numbers a model learns, exactly; from a config alone, without allocating them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from quatrain.model.config import ModelConfig
from quatrain.model.fit import fit_size

if TYPE_CHECKING:
    from quatrain.model.lm import LanguageModel

__all__ = ["Counts", "fit_size", "parameters"]


@dataclass(frozen=True)
class Counts:
    """Parameters of a model, each stored number once.

    Attributes:
        embedding: what grows with the vocabulary: embedding, and the head where it is not tied.
        rest: everything else; what a model's size means in a comparison.
    """

    embedding: int
    rest: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.embedding + self.rest


def parameters(model: "LanguageModel | ModelConfig") -> Counts:
    """Count a model's parameters, or those that a model of this config would have."""
    if isinstance(model, ModelConfig):
        from quatrain.model.lm import LanguageModel

        with torch.device("meta"):
            model = LanguageModel(model)
    tables = [model.embedding.weight] + ([] if model.head is None else [model.head.weight])
    embedding = sum(table.numel() for table in tables)
    return Counts(embedding, sum(p.numel() for p in model.parameters()) - embedding)
