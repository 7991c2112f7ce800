"""Whole training steps as CUDA graphs: a small model's step is bound by launches, a graph has one."""

import gc
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from quatrain.model.device import to_device
from quatrain.model.sequence import SequenceModel
from quatrain.train import _carry
from quatrain.train.feed import Autocast, Feed, Recordable, Work

WARM = 2  # steps of a shape before it is recorded: compilers, plans and workspaces are there by then
MOST = 64  # graphs of a run; shapes beyond them run kernel by kernel


class Turn:
    """Graphs that draw random numbers take turns.

    Up to torch 2.11 all graphs of a device read seed and offset from the same two tensors, which a replay
    fills: two of them on two streams at once would draw with each other's.
    """

    def __init__(self) -> None:
        self._done: torch.cuda.Event | None = None

    def replay(self, graph: torch.cuda.CUDAGraph) -> None:
        """Queue the graph behind the one whose turn was before."""
        if self._done is not None:
            torch.cuda.current_stream().wait_event(self._done)
        graph.replay()
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._done.record()


class Tape(Protocol):
    """What holds a recorded step."""

    def record(self, work: Callable[[], None]) -> None:
        """Take down what ``work`` asks of the device, without doing it."""

    def replay(self) -> None:
        """Do it."""


class _Graph:
    """A CUDA graph of the current stream."""

    def __init__(self, pool: Any, turn: Turn | None) -> None:
        self._graph, self._pool, self._turn = torch.cuda.CUDAGraph(), pool, turn

    def record(self, work: Callable[[], None]) -> None:
        """Not with ``torch.cuda.graph``, which waits for the whole device and empties its caches."""
        collects = gc.isenabled()
        gc.disable()  # what is collected may give back memory of the device, which no capture survives
        try:
            self._graph.capture_begin(pool=self._pool)
            try:
                work()
            except BaseException:
                with suppress(RuntimeError):  # says that the capture failed, which is known
                    self._graph.capture_end()
                raise
            self._graph.capture_end()
        finally:
            if collects:
                gc.enable()

    def replay(self) -> None:
        if self._turn is None:
            self._graph.replay()
        else:
            self._turn.replay(self._graph)


def tapes(device: torch.device, turn: Turn | None) -> Callable[[], Tape] | None:
    """What makes tapes on a device; None where nothing can be recorded. All take memory from one pool, so
    only one of them may run at a time. ``turn`` for steps that draw random numbers."""
    if device.type != "cuda":
        return None
    return partial(_Graph, torch.cuda.graph_pool_handle(), turn)


class _Record(NamedTuple):
    tape: Tape
    inputs: tuple[Tensor, ...]


class Recorder:
    """The steps of one run, recorded once for each shape of what they read, then replayed.

    A step is forward and backward pass, norm, clipping and AdamW. Whoever replays it learns afterwards
    whether loss and gradients were finite, so the update and the carried state are masked on the device: a
    step with NaN or infinity changes nothing. The learning rate is a tensor on the device. All calls, and
    all else that uses the model, belong on the run's own stream: a capture does not bear a node of the
    autograd graph that was made on another one.

    Cost: memory of a step's activations, once for all shapes, beside that of eager steps.
    """

    def __init__(
        self,
        feed: Recordable,
        model: SequenceModel,
        optimizer: torch.optim.Optimizer,
        clip: float,
        autocast: Autocast,
        make: Callable[[], Tape],
    ) -> None:
        self.feed, self.model, self.optimizer = feed, model, optimizer
        self._clip, self._autocast, self._make = clip, autocast, make
        self._seen: Counter[Any] = Counter()
        self._records: dict[Any, _Record] = {}
        self._ahead: tuple[int, Work] | None = None
        self._state: Any = None  # what graphs read and write as the carried state
        self._found = torch.zeros(2, device=model.device)
        rate = torch.zeros((), device=model.device)
        for group in optimizer.param_groups:
            group["lr"] = rate

    def draw(self, step: int) -> None:
        """Draw a step's batch ahead, while the device works."""
        self._ahead = (step, self._pinned(step))

    def queue(self, step: int) -> int:
        """Queue a recorded step and return how many tokens it reads; 0: it has to be run kernel by kernel.

        Raises RuntimeError where the step cannot be recorded; nothing has changed then.
        """
        ahead, self._ahead = self._ahead, None
        work = ahead[1] if ahead and ahead[0] == step else self._pinned(step)
        key = (work.fresh, *((tensor.shape, tensor.dtype) for tensor in work.tensors))
        record = self._records.get(key)
        if record is None:
            self._seen[key] += 1
            if self._seen[key] <= WARM or len(self._records) >= MOST:
                return 0
        self._hold()
        if record is None:
            record = self._records[key] = self._record(work)
        for static, tensor in zip(record.inputs, work.tensors, strict=True):
            static.copy_(tensor, non_blocking=True)
        record.tape.replay()
        return work.tokens

    def read(self) -> tuple[float, float]:
        """Loss and gradient norm of the queued step; waits for it."""
        loss, norm = self._found.tolist()
        return loss, norm

    def _pinned(self, step: int) -> Work:
        work = self.feed.draw(step)
        if self.model.device.type != "cuda":
            return work
        return work._replace(tensors=tuple(tensor.pin_memory() for tensor in work.tensors))

    def _hold(self) -> None:
        """Put a carried state that an eager step left, or a checkpoint held, where graphs find it."""
        state = self.feed.carry[0]
        if state is None or state is self._state:
            return
        if self._state is None:
            leaves = {name: leaf.clone() for name, leaf in _carry.flatten(state).items()}
            self._state = _carry.rebuild(state, leaves)
        else:
            for old, new in _pairs(self._state, state):
                old.copy_(new)
        self.feed.carry[0] = self._state

    def _record(self, work: Work) -> _Record:
        device = self.model.device
        inputs = tuple(to_device(tensor, device).clone() for tensor in work.tensors)
        tape = self._make()
        try:
            for group in self.optimizer.param_groups:
                group["capturable"] = True
            tape.record(partial(self._step, inputs, work.fresh))
        finally:
            for group in self.optimizer.param_groups:
                group["capturable"] = False
            self.optimizer.zero_grad(set_to_none=True)
        return _Record(tape, inputs)

    def _step(self, inputs: tuple[Tensor, ...], fresh: bool) -> None:
        """What is recorded: what the loop does in an eager step, with masks for its check."""
        with self._autocast():
            loss, after = self.feed.loss(self.model, inputs, None if fresh else self._state)
        torch.autograd.backward(loss)
        parameters = list(self.model.parameters())
        gradients = [value.grad for value in parameters if value.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        fine = torch.isfinite(loss.detach()) & torch.isfinite(norm)
        torch.nn.utils.clip_grads_with_norm_(parameters, self._clip, norm.where(fine, 0.0))
        self.optimizer.found_inf = (~fine).float()  # type: ignore[attr-defined]  # AdamW then does nothing
        try:
            self.optimizer.step()
        finally:
            del self.optimizer.found_inf  # type: ignore[attr-defined]
        self.optimizer.zero_grad(set_to_none=True)
        if after is not None:
            for old, new in _pairs(self._state, after):
                old.copy_(new.detach().where(fine, old))
        self._found.copy_(torch.stack((loss.detach().float(), norm.float())))


def _pairs(old: Any, new: Any) -> list[tuple[Tensor, Tensor]]:
    leaves = _carry.flatten(new)
    return [(leaf, leaves[name]) for name, leaf in _carry.flatten(old).items()]


def recorder(
    feed: Feed,
    model: SequenceModel,
    optimizer: torch.optim.Optimizer,
    clip: float,
    autocast: Autocast,
    turn: Turn,
) -> Recorder | None:
    """What records a run's steps; None where its feed or its device cannot."""
    make = tapes(model.device, turn if model.config.draws else None)
    if make is None or not isinstance(feed, Recordable):
        return None
    return Recorder(feed, model, optimizer, clip, autocast, make)
