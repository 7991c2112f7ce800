"""One optimiser step in two halves: what is queued on the device, and what is read back from it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import torch

from quatrain.errors import ran_out_of_memory
from quatrain.model.sequence import SequenceModel
from quatrain.train import _graph, _health, optim
from quatrain.train.config import TrainConfig
from quatrain.train.feed import Feed


class Taken(NamedTuple):
    """What a step gave: its loss, its gradient norm before clipping, and how many tokens it read."""

    loss: float
    norm: float
    tokens: int


class Stepper:
    """The steps of one run, recorded where the device and the feed can, else kernel by kernel.

    On a GPU the first half returns while the device works, and draws the next batch meanwhile. Every call
    belongs on the run's stream. ``note`` is told where recording fails.
    """

    def __init__(
        self,
        feed: Feed,
        model: SequenceModel,
        optimizer: torch.optim.Optimizer,
        settings: TrainConfig,
        turn: _graph.Turn,
        note: Callable[[str], None],
    ) -> None:
        self.feed, self.model, self.optimizer = feed, model, optimizer
        self.settings, self._note = settings, note
        self._recorder = _graph.recorder(feed, model, optimizer, settings.clip, self.autocast, turn)
        self._tokens = 0  # of a recorded step that is under way
        self._taken: Taken | None = None  # an eager one

    def autocast(self) -> AbstractContextManager[object]:
        """Where forward passes run: matrix products in the configured dtype."""
        half = self.settings.dtype == "bfloat16"
        return torch.autocast(self.model.device.type, torch.bfloat16) if half else nullcontext()

    def begin(self, step: int, last: int, good: Path | None) -> None:
        """Begin a step, from 1, of which ``last`` is the last one. Raises what `finish` does."""
        optim.set_rate(self.optimizer, optim.learning_rate(self.settings, step))
        self._seed(step)
        self._taken, self._tokens = None, self._queue(step)
        if not self._tokens:
            self._taken = self._eager(step, good)
        elif self._recorder and step < last:
            self._recorder.draw(step + 1)

    def finish(self, step: int, good: Path | None) -> Taken:
        """Wait for the step. Raises DivergedError for a loss or gradient that is not finite: neither weights
        nor moments have taken it in then."""
        if self._taken is None:
            assert self._recorder is not None
            loss, norm = self._recorder.read()
            if isfinite(loss) and isfinite(norm):
                return Taken(loss, norm, self._tokens)
            self._seed(step)
            self._taken = self._eager(step, good)  # it changed nothing; again, and the culprit gets its name
        return self._taken

    def forget(self) -> None:
        """Give back the memory of recorded steps; what follows is eager."""
        self._recorder = None

    def _queue(self, step: int) -> int:
        if self._recorder is None:
            return 0
        try:
            return self._recorder.queue(step)
        except RuntimeError as error:
            if ran_out_of_memory(error):
                raise
            self.forget()
            reason = "; ".join(str(error).strip().splitlines()[:1])
            self._note(f"steps run kernel by kernel: they cannot be recorded as a CUDA graph: {reason}")
            self._seed(step)
            return 0

    def _seed(self, step: int) -> None:
        """Dropout is a function of (seed, step): nothing to restore.

        Not by ``torch.manual_seed``, which looks for every kind of device: 0.2 ms, a part of a small step.
        """
        seed, device = _mix(self.settings.seed, step), self.model.device
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.default_generators[device.index or 0].manual_seed(seed)

    def _eager(self, step: int, good: Path | None) -> Taken:
        loss, tokens = self.feed.backward(self.model, step, self.autocast)
        gradients = [value.grad for value in self.model.parameters() if value.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        _health.check_step(self.model, loss, norm, step, good)
        torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.settings.clip, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return Taken(loss, norm.item(), tokens)


def _mix(seed: int, step: int) -> int:
    """A seed for one step of one run. Hashed, because torch's CPU generator reads only its lowest 32 bits."""
    return int.from_bytes(sha256(f"{seed} {step}".encode()).digest()[:8], "little")
