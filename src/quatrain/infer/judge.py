"""One call from a checkpoint and data to its score: the Python side of ``quatrain eval``."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, cast

from quatrain.checkpoint import load, load_meta
from quatrain.config.check import check
from quatrain.data.config import DataConfig
from quatrain.data.corpus import find
from quatrain.data.prepare import prepare_like
from quatrain.data.sequences import Meaning, SequenceFile, meaning_from_dict
from quatrain.data.task import TASKS
from quatrain.data.tokenizer import measures
from quatrain.data.tokens import TokenFile, prepare
from quatrain.errors import DataError, OutOfMemoryError, ran_out_of_memory, shortage
from quatrain.infer import evaluate as language
from quatrain.infer.inputs import spooled
from quatrain.model.device import choose
from quatrain.model.lm import LanguageModel
from quatrain.model.memory import fits, halves, in_parts, release
from quatrain.model.sequence import SequenceModel
from quatrain.tasks.score import score
from quatrain.tasks.spelling import tokenizer_of
from quatrain.tasks.trivial import trivial

DATA = "data"  # folder of a run's own data, beside its checkpoints
PARTS = ("all", "train", "valid", "test")
_BATCH = 32  # sequences or windows scored at a time, where there is memory
Part = Literal["all", "train", "valid", "test"]


@dataclass(frozen=True)
class Evaluation:
    """How a model does on data.

    Attributes:
        task: as in `quatrain.data.task.TASKS`.
        pattern: the model's mixers.
        data: name of the data, and the part of it.
        loss: mean of what was trained on; nats per token of a language model.
        metrics: by name; of a language model nats, perplexity, and bits per byte and per character where
            they are known.
        baselines: the same metrics of what is trivial, by name; empty for a language model.
        scored: tokens, sequences or windows that were scored.
        total: how many there are.
        steps: steps or tokens that were read.
        seconds: time it took.
        context: what each token was predicted from, in words; "" for other tasks.
    """

    task: str
    pattern: str
    data: str
    loss: float
    metrics: Mapping[str, float]
    baselines: Mapping[str, Mapping[str, float]]
    scored: int
    total: int
    steps: int
    seconds: float
    context: str = ""


def evaluate(
    checkpoint: str | Path,
    data: str | Path | None = None,
    *,
    part: Part | None = None,
    chunk: int | None = None,
    streams: int = 1,
    limit: float = inf,
    device: str = "auto",
) -> Evaluation:
    """Score the model of a checkpoint by the metrics of its task, beside the task's trivial baselines.

    A text is read with carried state (attention: in overlapping windows, see `quatrain.infer.evaluate`).
    Labels, columns and normalisation are the model's own, whatever the data. Cost: one forward pass over it.

    Args:
        checkpoint: directory of one checkpoint, or of a run, whose newest is taken.
        data: as in training: a file, directory, glob or ``-`` (stdin); absent: the run's own.
        part: "train", "valid", "test" or "all"; absent: all of ``data``, or test of the run's own.
        chunk: tokens read at a time; absent: as many as in training. Language models only.
        streams: stretches of a text read side by side. Language models only.
        limit: about how many tokens or steps to score at most; evenly spread.
        device: "cpu", "cuda", or "auto", which is CUDA where it is usable.

    Raises:
        DataError: data that is missing, unreadable, of another kind, or has a label the model does not know.
        OutOfMemoryError: memory ran out; says which chunk and streams fit.
        CheckpointError: a checkpoint that is missing, damaged or foreign.
        ConfigError: a part, device, chunk, streams or limit out of range.
    """
    asked: str = part or ("all" if data else "test")
    check(asked in PARTS, "part", asked, f"must be one of {', '.join(PARTS)}")
    check(limit >= 1, "limit", limit, "must be at least 1; inf for everything")
    model, meta = load(checkpoint, choose(device)), load_meta(checkpoint)
    source = str(data) if data is not None else ""
    sequence = _sequence(meta)
    if isinstance(model, LanguageModel):
        size = sequence if chunk is None else chunk
        with _text(checkpoint, source) as text:
            return _language(model, text, asked, size, streams, limit)
    check(asked != "all" or bool(source), "part", asked, "must be train, valid or test of the run's data")
    with _sequences(checkpoint, source, meaning_from_dict(meta.get("meaning"))) as file:
        # Other data is all test data.
        return _task(model, file, "test" if source else asked, "all" if source else asked, sequence, limit)


def _language(
    model: LanguageModel, text: TokenFile, part: str, chunk: int, streams: int, limit: float
) -> Evaluation:
    vocab = model.config.vocab
    check(vocab >= text.vocab, "model.vocab", vocab, f"must be at least {text.vocab}, that of the text")
    tokens = text.tokens if part == "all" else text.part(cast(Any, part))
    sizes = measures(text.tokenizer.spelled)
    read = partial(language.evaluate, model, tokens, sizes=sizes)
    try:
        found = read(chunk=chunk, batch=streams, limit=limit)
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        raise _smaller(error, read, chunk, streams) from None
    metrics = {"nats": found.nats, "perplexity": found.perplexity}
    if found.bytes:
        metrics["bits_per_byte"] = found.bits_per_byte
    if found.characters:
        metrics["bits_per_character"] = found.bits_per_character
    return Evaluation(
        "lm",
        model.config.pattern,
        f"{text.name}, {part}",
        found.nats,
        metrics,
        {},
        found.tokens,
        found.total_tokens,
        found.tokens,
        found.seconds,
        found.context,
    )


def _smaller(error: Exception, read: Callable[..., object], chunk: int, streams: int) -> OutOfMemoryError:
    """What to say when memory ran out: the streams, then the chunk, that were tried and fit."""
    what = f"not enough memory{shortage(error)} for chunk = {chunk} and streams = {streams}"
    release(error)
    fewer = [(chunk, count) for count in halves(streams)]
    for size, count in (*fewer, *((size, 1) for size in halves(chunk, least=2))):
        if fits(partial(read, chunk=size, batch=count, limit=size * count)):
            said = f"{what}; tried and fits: chunk = {size}, streams = {count}"
            return OutOfMemoryError(said, {"chunk": size, "streams": count})
    return OutOfMemoryError(f"{what}; not even two tokens at a time fit: a smaller model takes less")


def _task(
    model: SequenceModel, file: SequenceFile, part: Any, shown: str, sequence: int, limit: float
) -> Evaluation:
    began = perf_counter()
    found = in_parts(
        _BATCH,
        lambda batch: score(model, file, part, sequence=sequence, batch=batch, limit=limit),
        "sequence of this data",
    )
    took = perf_counter() - began
    return Evaluation(
        model.config.task,
        model.config.pattern,
        f"{file.name}, {shown}",
        found.loss,
        {metric.name: found.metrics[metric.name] for metric in TASKS[model.config.task].metrics},
        trivial(file, part, sequence=sequence, limit=limit),
        found.scored,
        found.total,
        found.steps,
        took,
    )


@contextmanager
def _sequences(checkpoint: str | Path, source: str, meaning: Meaning) -> Iterator[SequenceFile]:
    """The data that was named, read as the model's own; or that of the run."""
    if not source:
        yield SequenceFile.open(_own(checkpoint))
        return
    with spooled(source) as kept, tempfile.TemporaryDirectory(prefix="quatrain-") as folder:
        yield prepare_like(DataConfig(source=kept), folder, meaning, tokenizer_of(checkpoint))


@contextmanager
def _text(checkpoint: str | Path, source: str) -> Iterator[TokenFile]:
    """The text that was named, in a folder that goes away afterwards; or the one beside the run."""
    if not source:
        yield TokenFile.open(_own(checkpoint))
        return
    find(source)  # what is missing is said before a folder is made
    with tempfile.TemporaryDirectory(prefix="quatrain-") as folder:
        tokenizer = tokenizer_of(checkpoint)
        yield prepare(source, Path(folder) / DATA, make=lambda corpus: tokenizer)


def _own(checkpoint: str | Path) -> Path:
    """The data beside the run. Raises DataError where there is none."""
    place = Path(checkpoint).resolve()
    found = [folder / DATA for folder in (place, *place.parents[:3]) if (folder / DATA).is_dir()]
    if not found:
        raise DataError(f"data: is missing, and '{checkpoint}' holds none of its own; name some")
    return found[0]


def _sequence(meta: Any) -> int:
    """Tokens of a training sequence, where the checkpoint tells it."""
    config = meta.get("config")
    train = config.get("train") if isinstance(config, dict) else None
    sequence = train.get("sequence") if isinstance(train, dict) else None
    return sequence if isinstance(sequence, int) else 1024


__all__ = ["Evaluation", "evaluate"]
