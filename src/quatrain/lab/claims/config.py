"""How large the measurements behind the claims are."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

from quatrain.config.check import check

MIXERS = ("rnn", "lstm", "attention", "s6")


@dataclass(frozen=True, kw_only=True)
class ClaimsConfig:
    """Sizes of everything that `quatrain.lab.claims.run` measures. Raises ConfigError for what cannot be."""

    device: Annotated[str, "cpu or cuda"] = "cpu"
    threads: Annotated[int, "CPU threads"] = 1
    params: Annotated[int, "parameters of each model, embedding and head not counted"] = 1_000_000
    lengths: Annotated[tuple[int, ...], "sequence lengths of forward passes and training steps"] = (
        128,
        256,
        512,
        1024,
        2048,
        4096,
        8192,
    )
    memory_lengths: Annotated[tuple[int, ...], "sequence lengths of peak memory"] = (1024, 2048, 4096, 8192)
    contexts: Annotated[tuple[int, ...], "contexts after which a token is generated"] = (
        128,
        512,
        2048,
        8192,
        32768,
        131072,
    )
    far: Annotated[tuple[int, ...], "contexts that Mamba reads to the end"] = (
        128,
        1024,
        8192,
        65536,
        1048576,
    )
    batches: Annotated[tuple[int, ...], "batch sizes of generation and training"] = (1, 8)
    cache_bytes: Annotated[int, "largest state that is filled to time a step after it"] = 1 << 29
    repeats: Annotated[int, "rounds of alternating measurements"] = 5
    reach: Annotated[int, "steps over which gradients are followed"] = 256
    demo_steps: Annotated[int, "training steps of the three small models that are looked into"] = 500
    train: Annotated[bool, "train the rows that need it in the place of the shipped records"] = False
    demo_length: Annotated[int, "steps of a sequence that they read"] = 32

    def __post_init__(self) -> None:
        for name in ("threads", "params", "cache_bytes", "repeats", "reach", "demo_steps", "demo_length"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        check(self.device in ("cpu", "cuda"), "device", self.device, "must be cpu or cuda")
        for name in ("lengths", "memory_lengths", "contexts", "far", "batches"):
            given = getattr(self, name)
            rising = len(given) > 0 and all(low < high for low, high in pairwise((0, *given)))
            check(rising, name, list(given), "must be positive and rise")
        for name in ("lengths", "memory_lengths", "contexts", "far"):
            check(len(getattr(self, name)) > 1, name, list(getattr(self, name)), "must hold at least two")
