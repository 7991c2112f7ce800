"""The rows that need training, trained here: `quatrain.lab.paper` does it, task by task."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from quatrain.lab.claims import recorded
from quatrain.lab.claims.claim import Rows
from quatrain.lab.claims.config import ClaimsConfig
from quatrain.lab.claims.timing import Tell
from quatrain.lab.paper import recipe
from quatrain.lab.paper.reproduce import reproduce

FOLDER = "training"
WITH_A_FILE = ("wikitext2", "raw_audio")  # tasks that read a file of the user's: quatrain reproduce takes it


def tasks() -> tuple[str, ...]:
    """The tasks that can be trained without a file."""
    return tuple(task for task in recorded.TASKS if task not in WITH_A_FILE and task in recipe.names())


def train(task: str, config: ClaimsConfig, out: Path, command: str, tell: Tell) -> Rows:
    """Rows "score" of a task, trained in ``out/training/<task>``; a killed call goes on there.

    The settings are those of its recipe that are reduced to what the device does in minutes. Raises as
    `reproduce` does.
    """
    known = recipe.load(task, reduced="cpu" if config.device == "cpu" else "gpu")
    folder = out / FOLDER / task
    reproduce(known, folder, _following(tell), processes=1, device=config.device, command=command)
    return recorded.from_run(folder)


def _following(tell: Tell) -> Callable[[dict[str, Any]], None]:
    """From the events of a reproduction to the share that is done: jobs, counted."""
    most = 1

    def follow(row: dict[str, Any]) -> None:
        nonlocal most
        if "left" in row:
            most = max(most, int(row["left"]))
            tell(1 - int(row["left"]) / most)

    return follow
