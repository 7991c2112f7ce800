"""One call from a checkpoint and an input to the answer: the Python side of ``quatrain predict``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quatrain.checkpoint import load_language_model, task_of
from quatrain.data.readers._item import Item, finite
from quatrain.errors import DataError
from quatrain.infer.answers import Forecast, Predictor
from quatrain.infer.generate import generate
from quatrain.infer.inputs import read_context, read_inputs, read_texts
from quatrain.infer.sample import Sampling
from quatrain.model.device import choose
from quatrain.tasks.spelling import tokenizer_of

TOKENS = 64  # of a continuation, where nobody says how many


def predict(
    checkpoint: str | Path,
    input: str | Path | bytes | NDArray[Any],
    *,
    device: str = "auto",
    max_tokens: int = TOKENS,
    sampling: Sampling | None = None,
) -> list[dict[str, Any]] | Forecast:
    """What the model of a checkpoint says about an input.

    Cost: one forward pass over the input; of a language model also one step for each new token.

    Args:
        checkpoint: directory of one checkpoint, or of a run, whose newest is taken.
        input: a path: a file as in training, without labels. Or the input itself: bytes are a text, an array
            ``(T,)`` or ``(T, C)`` is one sequence, for a forecast its last rows, in the data's own units.
        device: "cpu", "cuda", or "auto", which is CUDA where it is usable.
        max_tokens: of a language model: how many tokens each continuation has at most.
        sampling: of a language model: how they are drawn; absent: the likeliest always.

    Returns:
        A `Forecast` for a series. Else a list with a dict for each input, in order, with ``source``, and

        - classify: ``class``, ``probability``, ``probabilities`` of all classes
        - tag: ``tags``, one for each step (of a text: for each byte)
        - transcribe: ``text``
        - lm: ``text``, the continuation, ``tokens``, how many it has

    Raises:
        DataError: an input that is missing, unreadable, or of another kind than the model reads.
        CheckpointError: a checkpoint that is missing, damaged or foreign.
        ConfigError: another device than the three, a device that is not usable, max_tokens < 1.
    """
    there = choose(device)
    if task_of(checkpoint) == "lm":
        continued = Continuer(checkpoint, device=device, max_tokens=max_tokens, sampling=sampling)
        if isinstance(input, np.ndarray):
            raise DataError("input: an array of numbers; a language model reads a text (bytes) or a file")
        texts = [("input", input)] if isinstance(input, bytes) else read_texts(Path(input))
        return [continued(where, text) for where, text in texts]
    predictor = Predictor(checkpoint, there)
    if predictor.task == "forecast":
        return predictor.forecast(_rows(input, predictor))
    items = [_item(input)] if isinstance(input, (bytes, np.ndarray)) else _read(input, predictor)
    return list(predictor.answers(items))


class Continuer:
    """A language model's checkpoint, ready to continue texts. Raises as `predict` does."""

    def __init__(
        self,
        checkpoint: str | Path,
        *,
        device: str = "auto",
        max_tokens: int = TOKENS,
        sampling: Sampling | None = None,
    ) -> None:
        self.model = load_language_model(checkpoint, choose(device))
        self.tokenizer = tokenizer_of(checkpoint)
        self.max_tokens, self.sampling = max_tokens, sampling or Sampling(temperature=0.0)

    def __call__(self, where: str, text: bytes) -> dict[str, Any]:
        """``source``, ``text`` and ``tokens``. Raises DataError for a text without tokens."""
        try:
            *pieces, last = generate(
                self.model,
                text,
                max_tokens=self.max_tokens,
                sampling=self.sampling,
                tokenizer=self.tokenizer,
            )
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        assert last.stats is not None
        said = "".join(piece.text for piece in (*pieces, last))
        return {"source": where, "text": said, "tokens": last.stats.new_tokens}


def _item(values: bytes | NDArray[Any]) -> Item:
    if isinstance(values, bytes):
        if not values:
            raise DataError("input: the text is empty")
        return Item(np.frombuffer(values, dtype=np.uint8), None, "input")
    return Item(_two(values), None, "input")


def _two(values: NDArray[Any]) -> NDArray[np.float32]:
    """An array as ``(T, C)``. Raises DataError for another shape, no steps, or what is no finite number."""
    if values.ndim not in (1, 2) or values.dtype.kind not in "fiu" or 0 in values.shape:
        got = f"shape {values.shape} of {values.dtype}"
        raise DataError(f"input: {got}: must be numbers (T,) or (T, C) with at least one step")
    return finite(values if values.ndim == 2 else values[:, None], "input")


def _rows(input: str | Path | bytes | NDArray[Any], predictor: Predictor) -> NDArray[Any]:
    if isinstance(input, bytes):
        raise DataError("input: a text; the model forecasts numbers")
    if not isinstance(input, np.ndarray):
        return read_context(Path(input), predictor.meaning, predictor.context)
    rows, channels = _two(input), predictor.meaning.channels
    if rows.shape[1] != channels:
        raise DataError(f"input: has {rows.shape[1]} numbers a step, the model reads {channels}")
    return rows


def _read(path: str | Path | bytes | NDArray[Any], predictor: Predictor) -> Iterator[Item]:
    assert isinstance(path, (str, Path))
    return read_inputs(Path(path), predictor.meaning)


__all__ = ["Continuer", "predict"]
