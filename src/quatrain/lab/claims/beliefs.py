"""The table that everybody knows: four architectures, five aspects. Each cell points to its claims."""

from typing import NamedTuple

ASPECTS = ("Core idea", "Way of processing", "Long-range dependence", "Cost", "Strengths")


class Belief(NamedTuple):
    """One cell: what is said, and the ids of the claims that measure it."""

    mixer: str
    aspect: str
    text: str
    claims: tuple[str, ...]


BELIEFS = (
    Belief("rnn", ASPECTS[0], "A hidden state that every step renews", ("rnn-state",)),
    Belief("rnn", ASPECTS[1], "One step after the other", ("transformer-parallel", "speed-batch")),
    Belief("rnn", ASPECTS[2], "Weak: gradients vanish and explode", ("rnn-gradient",)),
    Belief("rnn", ASPECTS[3], "Linear in the length", ("rnn-cost",)),
    Belief(
        "rnn", ASPECTS[4], "Simple; quick on short sequences; keeps count", ("loses-short", "loses-parity")
    ),
    Belief("lstm", ASPECTS[0], "A cell that three gates write, keep and show", ("lstm-gates",)),
    Belief("lstm", ASPECTS[1], "One step after the other", ("transformer-parallel", "speed-batch")),
    Belief(
        "lstm",
        ASPECTS[2],
        "Good: the cell carries values, gates let gradients through",
        ("lstm-cell", "lstm-gradient", "lstm-long"),
    ),
    Belief("lstm", ASPECTS[3], "Linear in the length", ("lstm-cost",)),
    Belief(
        "lstm", ASPECTS[4], "Robust; keeps count; quick on short sequences", ("loses-parity", "loses-short")
    ),
    Belief(
        "attention",
        ASPECTS[0],
        "Every position looks at every other, in several ways",
        ("transformer-heads",),
    ),
    Belief("attention", ASPECTS[1], "All positions at once", ("transformer-parallel",)),
    Belief(
        "attention", ASPECTS[2], "Strong: any distance is one step", ("transformer-reach", "loses-recall")
    ),
    Belief(
        "attention",
        ASPECTS[3],
        "Quadratic in the length; a cache that grows",
        ("transformer-quadratic", "transformer-memory", "transformer-cache"),
    ),
    Belief(
        "attention", ASPECTS[4], "Exact recall; the best quality at scale", ("loses-recall", "quality-equal")
    ),
    Belief(
        "s6",
        ASPECTS[0],
        "A state space that selects what to remember",
        ("mamba-ssm", "mamba-selection", "mamba-steps"),
    ),
    Belief(
        "s6",
        ASPECTS[1],
        "A scan in training, a recurrence in generation",
        ("mamba-fused", "transformer-parallel"),
    ),
    Belief("s6", ASPECTS[2], "Strong: up to a million tokens", ("mamba-long", "mamba-selection")),
    Belief("s6", ASPECTS[3], "Linear; every token costs the same", ("mamba-linear", "mamba-constant")),
    Belief(
        "s6",
        ASPECTS[4],
        "Several times faster on long sequences; as good as a larger Transformer",
        ("speed-generation", "speed-training", "speed-crossing", "quality-twice"),
    ),
)
