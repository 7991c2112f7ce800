"""A few answers of a trained model, as rows that a page can show."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quatrain.data.batches import collate, places, windows
from quatrain.data.sequences import SequenceFile
from quatrain.model.config import QUANTILES
from quatrain.model.mode import evaluating
from quatrain.model.sequence import SequenceModel
from quatrain.tasks.score import greedy

Row = dict[str, Any]
_ITEMS = 3  # sequences that are shown
_TEXT, _POINTS, _TAGS = 240, 96, 60  # characters, values and tags of one of them
_PAST = 96  # steps of context before a forecast


def sample(model: SequenceModel, file: SequenceFile, sequence: int) -> Row:
    """What a model answers to the same sequences of the test part, whichever model it is. By ``form``:

    - classes: ``items`` of truth, answer, probability, and what was read: ``text``, or ``values``
    - tags: ``items`` of truth and answer, a tag a step
    - transcripts: ``items`` of truth and answer
    - forecast: one window of one column in its own unit: ``past``, ``truth``, ``mean``, ``quantiles`` of the
      ``levels``
    """
    with torch.no_grad(), evaluating(model):
        if file.task == "forecast":
            return _forecast(model, file, sequence)
        block = collate(file, _chosen(file))
        output, _ = model(block.inputs, lengths=block.lengths, keep_state=False)
    assert block.lengths is not None
    labels, items = file.meaning.labels, []
    for row, index in enumerate(_chosen(file)):
        logits, length, target = output[row], int(block.lengths[row]), file.target(int(index)).tolist()
        item: Row = _shown(file, int(index))
        if file.task == "classify":
            chances = logits.float().softmax(-1)
            best = int(chances.argmax())
            item |= {"truth": labels[target[0]], "answer": labels[best], "probability": float(chances[best])}
        elif file.task == "tag":
            guess = logits[:length].argmax(-1).tolist()[:_TAGS]
            item |= {"truth": [labels[t] if t >= 0 else "" for t in target[:_TAGS]]}
            item |= {"answer": [labels[g] for g in guess]}
        else:
            item |= {
                "truth": "".join(labels[t - 1] for t in target),
                "answer": greedy(logits, length, labels),
            }
        items.append(item)
    form = {"classify": "classes", "tag": "tags", "transcribe": "transcripts"}[file.task]
    return {"form": form, "items": items}


def _chosen(file: SequenceFile) -> NDArray[np.int64]:
    """Sequences at even distances in the test part, of different classes where there are any."""
    indices = file.indices("test")
    spread = indices[np.arange(_ITEMS * 4) * len(indices) // (_ITEMS * 4)]
    found: dict[object, int] = {}
    for place, index in enumerate(dict.fromkeys(spread.tolist())):
        found.setdefault(tuple(file.target(index).tolist()) if file.task == "classify" else place, index)
    rest = [index for index in dict.fromkeys(spread.tolist()) if index not in found.values()]
    kept = list(found.values())
    if len(kept) > _ITEMS and file.task != "classify":
        kept = kept[:: len(kept) // _ITEMS]
    return np.asarray([*kept, *rest][:_ITEMS])


def _shown(file: SequenceFile, index: int) -> Row:
    """What the sequence is: its text, or its course, channels averaged and thinned."""
    values = file.sequence(index)
    if not file.meaning.channels:
        spelled = file.tokenizer.spelled
        return {"text": b"".join(spelled[token] for token in values).decode("utf-8", "replace")[:_TEXT]}
    course = values.mean(1)
    ends = np.linspace(0, len(course), min(_POINTS, len(course)) + 1).astype(int)[:-1]
    means = np.add.reduceat(course, ends) / np.diff([*ends, len(course)])
    return {"values": [round(float(value), 4) for value in means]}


def _forecast(model: SequenceModel, file: SequenceFile, sequence: int) -> Row:
    meaning = file.meaning
    found, _ = places(file, "test", sequence, 3 * sequence)
    block = windows(file, [found[len(found) // 2]], sequence)
    x, _ = model.hidden(block.inputs, keep_state=False)
    forecast = model.forecasts(x[:, -1], block.inputs[:, -1])[0, :, 0].double().numpy()  # (H, 6)
    mean, scale = meaning.mean[0], meaning.std[0]
    series = block.targets[0, :, 0].double().numpy() * scale + mean

    def plain(values: NDArray[np.float64]) -> list[float]:
        return [float(f"{value:.6g}") for value in values]

    quantiles = np.sort(forecast[:, 1:] * scale + mean, -1)  # learnt one by one: they may cross
    return {
        "form": "forecast",
        "column": meaning.columns[0],
        "past": plain(series[max(0, sequence - _PAST) : sequence]),
        "truth": plain(series[sequence:]),
        "mean": plain(forecast[:, 0] * scale + mean),
        "quantiles": [plain(quantiles[:, level]) for level in range(len(QUANTILES))],
        "levels": QUANTILES,
    }
