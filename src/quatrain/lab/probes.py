"""What a model costs to run and how far back it looks, measured."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import exp, log
from statistics import fmean, median
from time import perf_counter

import torch
from torch import Tensor
from torch.nn import functional as F

from quatrain.config.check import check
from quatrain.errors import StateError
from quatrain.model.backbone import State
from quatrain.model.mode import evaluating
from quatrain.model.sequence import SequenceModel

CHUNK = 512  # tokens of a prompt read at a time, as `quatrain.infer.generate` does
_STEPS, _WARM = 16, 3  # steps of which the median is taken, and steps before them
_REPEATS = 3  # of a prompt that is read in one piece


@dataclass(frozen=True)
class Cost:
    """One context length: ``step_seconds`` per step (a new token) after it, ``prefill_seconds`` to read it,
    ``state_bytes`` alive at that point, all for one sequence.
    """

    context: int
    step_seconds: float
    prefill_seconds: float
    state_bytes: int


def costs(
    model: SequenceModel, tokens: Tensor, contexts: Sequence[int], seconds: float = float("inf")
) -> Iterator[Cost]:
    """Cost of one more step at growing contexts: ``tokens (T,)``, or numbers ``(T, C)``, are read from the
    start, and at each context the model makes steps, of which the median counts.

    A prompt is read in chunks of 512 with carried state, as in generation; its time is that of the chunks
    alone, the fastest of three for a prompt of one chunk. Ends early where ``seconds`` have passed, so that
    the contexts that take too long are missing from the end. Raises ConfigError for contexts that do not rise
    or exceed the tokens.
    """
    rising = len(contexts) > 0 and all(low < high for low, high in pairwise((0, *contexts)))
    check(rising, "contexts", list(contexts), "must be positive and rise")
    check(contexts[-1] <= len(tokens), "contexts", contexts[-1], f"must be at most {len(tokens)}, the tokens")
    end = perf_counter() + seconds
    with torch.no_grad(), evaluating(model):
        _read(model, tokens[None, : min(CHUNK, contexts[0])], None)  # the first call sets buffers up
        state: State | None = None
        spent, done = 0.0, 0
        for context in contexts:
            if context <= CHUNK:
                tries = [_timed(partial(_read, model, tokens[None, :context], None)) for _ in range(_REPEATS)]
                spent, state = min(tries, key=lambda result: result[0])
                done = context
            while done < context:
                part = tokens[None, done : min(done + CHUNK, context)]
                took, state = _timed(partial(_read, model, part, state))
                spent, done = spent + took, done + part.shape[1]
                if perf_counter() > end:
                    return
            assert state is not None
            step = _step_seconds(model, tokens, state)
            yield Cost(context, step, spent, model.state_bytes(1, context))
            if perf_counter() > end:
                return


def _read(model: SequenceModel, tokens: Tensor, state: State | None) -> State:
    """The state after ``tokens (1, T)``, with the logits of the last one, as a prompt is read."""
    hidden, after = model.hidden(tokens, state)
    model.logits(hidden[:, -1])
    if after is None:
        raise StateError("the model gave no state")
    return after


def _timed(work: Callable[[], State]) -> tuple[float, State]:
    start = perf_counter()
    state = work()
    return perf_counter() - start, state


def _step_seconds(model: SequenceModel, tokens: Tensor, state: State) -> float:
    times = []
    for index in range(_WARM + _STEPS):
        start = perf_counter()
        at = index % len(tokens)
        _, state = model.step(tokens[at : at + 1], state)
        times.append(perf_counter() - start)
    return median(times[_WARM:])


def exponent(lengths: Sequence[float], seconds: Sequence[float]) -> float:
    """The n of ``seconds = c lengths^n`` by least squares on logarithms; needs two lengths.

    1 is linear, 2 quadratic. Raises ConfigError for fewer than two, or for lengths that are all the same.
    """
    check(len(set(lengths)) > 1, "lengths", list(lengths), "must hold at least two different ones")
    x, y = [log(length) for length in lengths], [log(second) for second in seconds]
    middle, height = fmean(x), fmean(y)
    slope = sum((a - middle) * (b - height) for a, b in zip(x, y, strict=True))
    return slope / sum((a - middle) ** 2 for a in x)


def distances(sequence: int) -> list[int]:
    """Distances below ``sequence`` from the last token: then each sqrt(2) times the last."""
    grown = {int(2 ** (half / 2)) for half in range(2 * sequence.bit_length())}
    return sorted(k for k in {0, 1, 2, 3, sequence - 1} | grown if k < sequence)


def gradient_norms(model: SequenceModel, windows: Tensor) -> dict[int, float]:
    """How much the last token's loss depends on the token k before it: ``||d loss_T / d x_(T-k)||`` by k.

    ``windows (B, T + 1)``: T inputs and the target of the last one; see `reach`. The loss is that of the last
    position alone, in nats.
    """
    inputs, target = windows[:, :-1], windows[:, -1]

    def loss(hidden: Tensor) -> Tensor:
        return F.cross_entropy(model.logits(hidden[:, -1]), target, reduction="sum")

    return reach(model, inputs, loss)


def reach(
    model: SequenceModel, inputs: Tensor, loss: Callable[[Tensor], Tensor], lengths: Tensor | None = None
) -> dict[int, float]:
    """``||d loss / d x_(T-k)||`` by k, x being what embedding or projection makes of a step.

    Args:
        inputs: ``(B, T)`` tokens or ``(B, T, C)`` numbers, with ``lengths (B,)`` where they are padded; k
            counts from each one's own end.
        loss: from ``(B, T, D)``, what the head sees, to the sum of the sequences' losses.

    Norms are averaged over the sequences that reach back to k geometrically, because they differ by orders of
    magnitude; 0 where one of them is 0. Distances that less than half of them have are left out. Cost: one
    forward and backward pass.
    """
    with evaluating(model):
        x = model.embed(inputs).detach().requires_grad_()
        hidden, _ = model.backbone(x, None, lengths, keep_state=False)
        (gradient,) = torch.autograd.grad(loss(hidden), x)
    batch, time = x.shape[:2]
    ends = torch.full((batch,), time) if lengths is None else lengths
    norms = gradient.double().norm(dim=2)  # (B, T)
    found = {}
    for k in distances(time):
        rows = torch.nonzero(ends > k)[:, 0]
        if 2 * len(rows) >= batch:
            found[k] = exp(float(norms[rows, ends[rows] - 1 - k].log().mean()))
    return found
