"""What a trained model does inside on one input, as rows that a page draws (`quatrain.report.inspect`)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quatrain.checkpoint import load_language_model, load_meta, task_of
from quatrain.config.check import check
from quatrain.data.batches import padded
from quatrain.data.readers._item import Item, finite
from quatrain.data.sequences import Meaning
from quatrain.data.tokenizer import Tokenizer
from quatrain.errors import DataError, DivergedError
from quatrain.infer.answers import Predictor
from quatrain.infer.inputs import read_context, read_inputs, read_texts
from quatrain.lab._layer_row import Row, layer_rows
from quatrain.lab.look import LIMIT, look
from quatrain.model.config import ModelConfig
from quatrain.model.count import parameters
from quatrain.model.device import choose
from quatrain.model.mode import evaluating
from quatrain.model.sequence import SequenceModel, pooled
from quatrain.tasks.spelling import tokenizer_of

Input = str | Path | bytes | NDArray[Any]
_NEXT = 3  # likeliest next tokens that are named
_HEAD = 64  # bytes of a text that are read for each token wanted
_ROWS = 256  # steps whose logits exist at a time
_COURSES = 3  # classes whose probability is followed


@dataclass
class _Subject:
    """A model and the one sequence it is shown.

    Attributes:
        inputs: ``(T,)`` tokens or ``(T, C)``, as the model takes them, already cut.
        labels: what stands at each step, for a text; else empty.
        notes: what was left out.
        rows: the input and the answer, for the page.
    """

    model: SequenceModel
    inputs: Tensor
    where: str
    unit: str
    labels: Sequence[str]
    notes: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)


def inspect(
    checkpoint: str | Path, input: Input, *, limit: int = LIMIT, device: str = "auto", name: str = ""
) -> list[Row]:
    """One input through the model of a checkpoint: what it answers, and what each layer does.

    Args:
        checkpoint: directory of one checkpoint, or of a run, whose newest is taken.
        input: as `quatrain.infer.predict.predict` takes it: a file, a text as bytes, or an array of numbers.
            Of a file with several inputs the first is taken.
        limit: steps that are looked at: the first ones, of a series that is forecast the last ones. What is
            left out is said in the first row.
        device: "cpu", "cuda", or "auto".
        name: what the input is called on the page, if not by its file.

    Returns:
        Rows of plain data: ``inspection`` (model and input), then ``text`` or ``series`` (the input),
        ``answer`` where the task has one, and a ``layer`` for each layer.

    Raises:
        DataError: an input that is missing, empty, binary, or of another kind than the model reads.
        CheckpointError: a checkpoint that is missing, damaged or foreign.
        ConfigError: limit below 1, a device that is not usable.
        DivergedError: the model gives NaN or infinities.

    Cost: see `quatrain.lab.look.look`.
    """
    check(type(limit) is int and limit >= 1, "limit", limit, "must be an integer of at least 1")
    there = choose(device)
    read = _text if task_of(checkpoint) == "lm" else _sequence
    subject = read(checkpoint, input, limit, there, name or "input")
    model, config = subject.model, subject.model.config
    about = {
        "kind": "inspection",
        "checkpoint": str(checkpoint),
        "trained": _trained(load_meta(checkpoint)),
        "task": config.task,
        "kinds": list(config.kinds),
        "width": config.width,
        "form": config.form,
        "params": parameters(model).total,
        "input": name or subject.where,
        "steps": len(subject.inputs),
        "unit": subject.unit,
        "notes": subject.notes,
    }
    layers = look(model, subject.inputs, limit=len(subject.inputs))
    for layer in layers:
        wrong = torch.nonzero(~layer.hidden.isfinite())
        if len(wrong):
            what = f"layer {layer.index + 1} ({layer.kind}) gives no finite numbers"
            raise DivergedError(f"{checkpoint}: {what} from step {int(wrong[0]) + 1} on")
    found = layer_rows(layers, subject.labels)
    return [about, *subject.rows, *({"kind": "layer", **row} for row in found)]


def _trained(meta: Mapping[str, Any]) -> Row:
    """How far training had come: ``step`` and ``tokens``, where the checkpoint says it."""
    progress = meta.get("progress")
    return {key: progress[key] for key in ("step", "tokens") if key in progress} if progress else {}


def _reach(config: ModelConfig) -> float:
    """Steps that the model can read at all: learned positions end."""
    reach = inf
    for kind in config.kinds:
        settings = config.mixer_config(kind)
        if getattr(settings, "positions", "") == "learned":
            reach = min(reach, settings.max_positions)
    return reach


def _cut(config: ModelConfig, limit: int, total: int, unit: str, which: str, notes: list[str]) -> int:
    """How many of ``total`` steps are looked at; adds a note where that is not all of them."""
    kept = int(min(limit, _reach(config), total))
    if kept < total:
        why = "" if kept == limit else ", where the model's learned positions end"
        notes.append(f"Only the {which} {kept:,} of {total:,} {unit}s are looked at{why}.")
    return kept


def _first(items: Iterator[Any], path: Path, notes: list[str]) -> Any:
    item = next(items, None)
    if item is None:
        raise DataError(f"{path}: is empty")
    if next(items, None) is not None:
        notes.append("The file holds several inputs; this is the first.")
    return item


# -- language models


def _text(checkpoint: str | Path, input: Input, limit: int, device: torch.device, name: str) -> _Subject:
    if isinstance(input, np.ndarray):
        raise DataError("input: an array of numbers; a language model reads a text (bytes) or a file")
    notes: list[str] = []
    if isinstance(input, bytes):
        where, text = name, input
    else:
        where, text = _first(iter(read_texts(Path(input))), Path(input), notes)
    if b"\0" in text[:1024]:
        raise DataError(f"{where}: is binary, not text (a NUL in its first 1024 bytes)")
    model, tokenizer = load_language_model(checkpoint, device), tokenizer_of(checkpoint)
    tokens = _tokens(text, tokenizer, limit, where)
    if not tokens:
        raise DataError(f"{where}: the text is empty")
    size, unit = len(text), "byte" if tokenizer.name == "bytes" else "token"
    if tokenizer.name == "bytes":
        kept = _cut(model.config, limit, size, unit, "first", notes)
    else:
        kept = _cut(model.config, limit, len(tokens), unit, "first", notes)
        if kept < len(tokens):
            notes[-1] = f"Only the first {kept:,} tokens of {size:,} bytes are looked at."
    inputs = torch.tensor(tokens[:kept], dtype=torch.int64)
    row, labels = _spelled(model, inputs, tokenizer.spelled)
    return _Subject(model, inputs, where, unit, labels, notes, [row])


def _tokens(text: bytes, tokenizer: Tokenizer, limit: int, where: str) -> list[int]:
    """The tokens of the beginning of a text, more than ``limit`` of them where there are more."""
    end = (limit + 1) * _HEAD
    while 0 < end < len(text) and text[end] & 0xC0 == 0x80:  # not inside a character
        end -= 1
    try:
        pieces = list(tokenizer.encode([text[:end]]))
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    return [int(token) for piece in pieces for token in piece]


def _spelled(model: SequenceModel, inputs: Tensor, spelled: Sequence[bytes]) -> tuple[Row, list[str]]:
    """The row of a text, and what stands at each step.

    ``spans`` are [text, first token, tokens, nats, probability, [[next, probability], ...]]: tokens that only
    together form characters are one. ``nats`` is None for the first token, which nothing predicts.
    """
    nats, guesses, after = _predicted(model, inputs)
    names = [_shown(spelled[token] if token < len(spelled) else b"") for token in range(len(spelled))]
    tokens = inputs.tolist()
    spans: list[list[Any]] = []
    labels: list[str] = []
    for text, first, count in _characters([spelled[t] if t < len(spelled) else b"" for t in tokens]):
        each = nats[first : first + count]
        loss = (
            None if first == 0 and count == 1 else round(sum(value for value in each if value is not None), 4)
        )
        best = [[names[t] if t < len(names) else "?", round(p, 4)] for t, p in guesses[first]]
        spans.append([text, first, count, loss, best])
        labels += [text if count == 1 else _shown(spelled[t]) for t in tokens[first : first + count]]
    scored = [value for value in nats if value is not None]
    row = {
        "kind": "text",
        "spans": spans,
        "nats": round(sum(scored) / len(scored), 4) if scored else None,
        "bytes": sum(len(spelled[t]) for t in tokens[1:] if t < len(spelled)),
        "scored": len(scored),
        "next": [[names[t] if t < len(names) else "?", round(p, 4)] for t, p in after],
    }
    return row, labels


def _predicted(
    model: SequenceModel, inputs: Tensor
) -> tuple[list[float | None], list[list[tuple[int, float]]], list[tuple[int, float]]]:
    """Nats of each token given those before it, what was likeliest in its place, and after the last one."""
    nats: list[float | None] = [None]
    guesses: list[list[tuple[int, float]]] = [[]]
    with torch.no_grad(), evaluating(model):
        x, _ = model.hidden(inputs[None].to(model.device), keep_state=False)
        for at in range(0, len(inputs), _ROWS):
            logs = model.logits(x[0, at : at + _ROWS]).float().log_softmax(-1).cpu()
            best = logs.topk(min(_NEXT, logs.shape[1]))
            guesses += [
                list(zip(tokens, chances, strict=True))
                for tokens, chances in zip(best.indices.tolist(), best.values.exp().tolist(), strict=True)
            ]
            targets = inputs[at + 1 : at + 1 + len(logs)]
            nats += (-logs[: len(targets)].gather(1, targets[:, None])[:, 0]).tolist()
    return nats, guesses, guesses.pop()


def _characters(pieces: Sequence[bytes]) -> Iterator[tuple[str, int, int]]:
    """(text, first, count): single tokens, or up to four that only together are whole UTF-8 characters."""
    at = 0
    while at < len(pieces):
        for count in range(1, min(4, len(pieces) - at) + 1):
            try:
                text = b"".join(pieces[at : at + count]).decode()
                break
            except UnicodeDecodeError:
                continue
        else:
            count, text = 1, _shown(pieces[at])
        yield text, at, count
        at += count


def _shown(piece: bytes) -> str:
    """A token by itself; bytes that are no character as ``<E4>``."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "".join(f"<{byte:02X}>" for byte in piece)


# -- every other task


def _sequence(checkpoint: str | Path, input: Input, limit: int, device: torch.device, name: str) -> _Subject:
    predictor = Predictor(checkpoint, device)
    meaning, config = predictor.meaning, predictor.model.config
    notes: list[str] = []
    if predictor.task == "forecast":
        item = _series(input, meaning, min(limit, predictor.context, _reach(config)), name, notes)
    elif isinstance(input, (bytes, np.ndarray)):
        item = Item(_values(input, name), None, name, rate=meaning.rate)
    else:
        item = _first(iter(read_inputs(Path(input), meaning)), Path(input), notes)
    predictor.check(item)
    unit = "step" if meaning.channels else "byte" if meaning.tokenizer == "bytes" else "token"
    values = item.values if meaning.channels else predictor.tokens(item)
    values = values[: _cut(config, limit, len(values), unit, "first", notes)]
    inputs = padded([meaning.normalised(values)], meaning.channels)[0]
    spelled = [] if meaning.channels else [predictor.tokenizer.spelled[token] for token in values]
    subject = _Subject(predictor.model, inputs, item.where, unit, [_shown(each) for each in spelled], notes)
    if meaning.channels:
        subject.rows.append(_numbers(values, meaning))
    else:
        spans: list[list[Any]] = [
            [text, first, count, None, []] for text, first, count in _characters(spelled)
        ]
        subject.rows.append({"kind": "text", "spans": spans, "nats": None, "next": []})
    subject.rows.append({"kind": "answer", "task": predictor.task, **_answer(predictor, inputs, values)})
    return subject


def _values(input: bytes | NDArray[Any], name: str) -> NDArray[Any]:
    if isinstance(input, bytes):
        if not input:
            raise DataError(f"{name}: the text is empty")
        if b"\0" in input[:1024]:
            raise DataError(f"{name}: is binary, not text (a NUL in its first 1024 bytes)")
        return np.frombuffer(input, dtype=np.uint8)
    if input.ndim not in (1, 2) or input.dtype.kind not in "fiu" or 0 in input.shape:
        got = f"shape {input.shape} of {input.dtype}"
        raise DataError(f"{name}: {got}: must be numbers (T,) or (T, C) with at least one step")
    return finite(input if input.ndim == 2 else input[:, None], name)


def _series(input: Input, meaning: Meaning, limit: float, name: str, notes: list[str]) -> Item:
    """The last rows of a series: from the last one it is forecast."""
    if isinstance(input, bytes):
        raise DataError(f"{name}: a text; the model forecasts numbers")
    kept, given = int(limit), isinstance(input, np.ndarray)
    rows = (
        _values(input, name)
        if isinstance(input, np.ndarray)
        else read_context(Path(input), meaning, kept + 1)
    )
    where = name if given else str(input)
    if not len(rows):
        raise DataError(f"{where}: is empty")
    if len(rows) > kept:
        notes.append(f"Only the last {kept:,} rows of the series are looked at.")
    return Item(rows[-kept:], None, where, rate=meaning.rate)


def _numbers(values: NDArray[Any], meaning: Meaning) -> Row:
    """The input in its own units."""
    names = list(meaning.columns) or [f"channel {index + 1}" for index in range(values.shape[1])]
    return {
        "kind": "series",
        "names": names,
        "values": [[float(f"{value:.5g}") for value in column] for column in values.T.tolist()],
        "targets": meaning.targets,
    }


def _answer(predictor: Predictor, inputs: Tensor, values: NDArray[Any]) -> Row:
    model, meaning = predictor.model, predictor.meaning
    if predictor.task == "forecast":
        found = predictor.forecast(values)
        names = found.columns
        return {
            "columns": list(names),
            "mean": found.mean.T.tolist(),
            "quantiles": found.quantiles.transpose(1, 2, 0).tolist(),  # (M, Q, H)
            "levels": list(found.levels),
        }
    with torch.no_grad(), evaluating(model):
        there = inputs[None].to(model.device)
        x, _ = model.hidden(there, keep_state=False)
        if predictor.task == "classify":
            return _course(model, x, meaning.labels)
        chances = model.read(x, there)[0].float().softmax(-1).cpu()
    best = chances.max(-1)
    names = ("",) * (predictor.task == "transcribe") + meaning.labels
    said = [
        [names[number], round(p, 4)]
        for number, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    if predictor.task == "tag":
        return {"steps": said}
    from quatrain.tasks.score import greedy

    return {"steps": said, "text": greedy(chances, len(chances), meaning.labels)}


def _course(model: SequenceModel, x: Tensor, labels: Sequence[str]) -> Row:
    """Probabilities of the classes, and how the largest came about: as if the input ended at each step.

    There is no such course where a layer sees the future.
    """
    end = model.logits(pooled(x, None, model.config.pool))[0].float().softmax(-1).cpu()
    order = end.argsort(descending=True).tolist()
    row: Row = {"classes": [[labels[number], round(float(end[number]), 5)] for number in order[:12]]}
    if not all(getattr(block.mixer.config, "causal", True) for block in model.backbone.blocks):
        return row
    steps = torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
    sums = {
        "last": lambda: x[0],
        "max": lambda: x[0].cummax(0).values,
        "mean": lambda: x[0].cumsum(0) / steps,
    }
    course = model.logits(sums[model.config.pool]()).float().softmax(-1).cpu()
    row["course"] = [[round(float(p), 4) for p in course[:, number]] for number in order[:_COURSES]]
    return row
