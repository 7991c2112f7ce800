"""How many numbers a model learns, exactly; from a config alone, without allocating them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from quatrain.model.config import ModelConfig
from quatrain.model.fit import fit_size

if TYPE_CHECKING:
    from quatrain.model.sequence import SequenceModel

__all__ = ["Counts", "fit_size", "parameters"]


@dataclass(frozen=True)
class Counts:
    """Parameters of a model, each stored number once.

    Attributes:
        embedding: what the data decides: embedding or input projection, and the head where it is not tied.
        rest: everything else; what a model's size means in a comparison.
    """

    embedding: int
    rest: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.embedding + self.rest


def parameters(model: "SequenceModel | ModelConfig") -> Counts:
    """Count a model's parameters, or those that a model of this config would have."""
    if isinstance(model, ModelConfig):
        from quatrain.model.sequence import SequenceModel

        with torch.device("meta"):
            model = SequenceModel(model)
    tables = [table for table in (model.embedding, model.head) if table is not None]
    embedding = sum(parameter.numel() for table in tables for parameter in table.parameters())
    return Counts(embedding, sum(p.numel() for p in model.parameters()) - embedding)
