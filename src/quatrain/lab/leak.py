"""Does a model see the future? Asked before any number of a comparison is shown."""

import copy

import torch

from quatrain.infer._mode import evaluating
from quatrain.model.lm import LanguageModel

# Of the largest logit. In float64 rounding stays below 1e-12; an FFT inside a mixer spreads it, no more.
TOLERANCE = 1e-9


def leaks(model: LanguageModel, sequence: int, seed: int = 0) -> str:
    """Empty if no logits depend on a later token; otherwise a sentence that says which ones do.

    Random tokens ``(1, sequence)`` are changed from one place on, at several places, and the logits before it
    have to stay as they were, in float64 up to rounding. Then the model reads the same tokens one by one,
    which cannot look ahead, and has to give the same logits. Works on a copy of the model. Cost: about six
    forward passes and ``sequence`` steps.
    """
    model = copy.deepcopy(model).double()
    random = torch.Generator().manual_seed(seed)
    vocab = model.config.vocab
    tokens = torch.randint(vocab, (1, sequence), generator=random)
    other = (tokens + torch.randint(1, max(2, vocab), tokens.shape, generator=random)) % vocab
    with torch.no_grad(), evaluating(model):
        logits, _ = model(tokens, keep_state=False)
        limit = TOLERANCE * float(logits.abs().max())
        for place in sorted({1, sequence // 3, sequence // 2, sequence - 1} - {0}):
            changed = torch.cat((tokens[:, :place], other[:, place:]), 1)
            moved = (model(changed, keep_state=False)[0] - logits)[0, :place].abs().amax(1)
            early = torch.nonzero(~(moved <= limit))  # NaN is not below the limit either
            if len(early):
                return (
                    f"the prediction at position {int(early[0])} changes when the tokens "
                    f"from position {place} on do: it sees the future"
                )
        state = model.initial_state(1)
        for place in range(sequence):
            step, state = model.step(tokens[:, place], state)
            if not float((step - logits[:, place]).abs().max()) <= 1e3 * limit:
                return (
                    f"reading all tokens at once and one by one gives other predictions at position {place}: "
                    f"one of them is wrong"
                )
    return ""
