"""What a table shows of a test: the metrics, their names in words, and their values. Loads no torch."""

from collections.abc import Mapping
from math import exp, log
from typing import Any, Literal

Metric = Literal["token_accuracy", "sequence_accuracy", "loss", "perplexity", "bits"]
METRICS: Mapping[str, str] = {
    "token_accuracy": "token accuracy",
    "sequence_accuracy": "sequence accuracy",
    "loss": "loss",
    "perplexity": "perplexity",
    "bits": "bits a step",
}


def value_of(row: Mapping[str, Any], metric: str) -> float:
    """A metric of a row "tested"; perplexity and bits are its loss, which is in nats, in other units."""
    if metric == "perplexity":
        return exp(row["loss"])
    return float(row["loss"] / log(2) if metric == "bits" else row[metric])


def best_rate(found: Mapping[float, Mapping[str, Any]]) -> float | None:
    """The learning rate whose cell, a row "cell" or its outcome, is best on validation; of equals the lowest.

    None where there is none.
    """
    return min(found, key=lambda rate: (found[rate]["merit"], found[rate]["valid_loss"], rate), default=None)
