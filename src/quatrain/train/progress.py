"""How far a run is, and how it ended."""

from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Progress:
    """How far a run is; saved with every checkpoint."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0  # of training steps, over all sessions; evaluation and saving are not in it
    loss: float = nan  # of the last step; nats per token in a language model
    valid: float = nan  # loss of the last look at the validation part
    best_valid: float = nan  # loss of the best look
    best_score: float = nan  # what made it the best, less is better; a language model's is its loss
    best_step: int = 0  # 0: no look yet
    records: int = 0  # bytes of the records that belong to this step


@dataclass(frozen=True)
class Result:
    """What `train` returns. ``status`` is "finished", or "stopped" at ``stop_at``."""

    status: Literal["finished", "stopped"]
    out: Path
    checkpoint: Path
    progress: Progress
    resumed_from: int  # 0: this call began the run
    peak_memory_bytes: int  # of the whole process
