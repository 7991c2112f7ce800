"""Does a model see the future? Asked before any number of a comparison is shown."""

import copy

import torch
from torch import Tensor

from quatrain.model.mode import evaluating
from quatrain.model.sequence import SequenceModel

# Of the largest output. In float64 rounding stays below 1e-12; an FFT inside a mixer spreads it, no more.
TOLERANCE = 1e-9


def leaks(model: SequenceModel, sequence: int, seed: int = 0) -> str:
    """Empty if no output depends on a later input; otherwise a sentence that says which ones do.

    Random inputs ``(1, sequence)`` are changed from one place on, at several places, and the outputs before
    it have to stay as they were, in float64 up to rounding. Then the model reads the same inputs one by one,
    which cannot look ahead, and has to give the same outputs. The output of a step is what the head says of
    it alone: a class is read from all of them, so pooling, which may look at everything, is left out. A
    model whose mixers look both ways by design is only asked whether padding reaches it, as any other is.
    Works on a copy of the model. Cost: about seven forward passes and ``sequence`` steps.
    """
    model = copy.deepcopy(model).double()
    config = model.config
    random = torch.Generator().manual_seed(seed)
    inputs, other = _inputs(model, sequence, random), _inputs(model, sequence, random)
    causal = all(getattr(config.mixer_config(kind), "causal", True) for kind in config.kinds)
    with torch.no_grad(), evaluating(model):
        output = _read(model, inputs)
        limit = TOLERANCE * float(output.abs().max())
        places = sorted({1, sequence // 3, sequence // 2, sequence - 1} - {0}) if causal else []
        for place in places:
            changed = torch.cat((inputs[:, :place], other[:, place:]), 1)
            moved = (_read(model, changed) - output)[:place].abs().amax(1)
            early = torch.nonzero(~(moved <= limit))  # NaN is not below the limit either
            if len(early):
                return (
                    f"the prediction at position {int(early[0])} changes when the inputs "
                    f"from position {place} on do: it sees the future"
                )
        if padding := _padding(model, inputs, limit):
            return padding
        if not causal:
            return ""
        state = model.initial_state(1)
        for place in range(sequence):
            step, state = model.step(inputs[:, place], state)
            if not float((step.flatten() - output[place]).abs().max()) <= 1e3 * limit:
                return (
                    f"reading all inputs at once and one by one gives other predictions at position {place}: "
                    f"one of them is wrong"
                )
    return ""


def _inputs(model: SequenceModel, sequence: int, random: torch.Generator) -> Tensor:
    config = model.config
    if config.channels:
        return torch.randn((1, sequence, config.channels), generator=random, dtype=torch.float64)
    return torch.randint(config.vocab, (1, sequence), generator=random)


def _read(model: SequenceModel, inputs: Tensor) -> Tensor:
    """The head's output of every step, ``(T, K)``."""
    x, _ = model.hidden(inputs, keep_state=False)
    output = model.logits(x) if model.config.task == "classify" else model.read(x, inputs)
    return output[0].flatten(1)


def _padding(model: SequenceModel, inputs: Tensor, limit: float) -> str:
    """Labelled sequences are read side by side, padded: what is behind an end must not matter."""
    length = inputs.shape[1] // 2
    if model.config.task in ("lm", "forecast") or not length:
        return ""
    alone, _ = model(inputs[:, :length], keep_state=False)
    beside, _ = model(inputs, lengths=torch.tensor([length]), keep_state=False)
    if model.config.task != "classify":
        beside = beside[:, :length]
    if float((alone - beside).abs().max()) <= 1e3 * limit:
        return ""
    return f"the answer to a sequence of {length} steps depends on what is padded behind it"
