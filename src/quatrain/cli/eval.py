"""``quatrain eval``: score a trained model on data, beside what is trivial."""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import inf
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from quatrain.cli._flags import Option, Parsed, Surface, parse
from quatrain.cli.generate import set_threads
from quatrain.config.check import check
from quatrain.errors import DataError

if TYPE_CHECKING:
    from quatrain.data.sequences import Meaning, SequenceFile
    from quatrain.data.tokens import TokenFile
    from quatrain.infer.evaluate import Score, Tokens
    from quatrain.model.sequence import SequenceModel
    from quatrain.tasks.score import TaskScore

PARTS = ("all", "train", "valid", "test")

SURFACE = Surface(
    command="eval",
    help=(
        "Score a language model on a text of any length, with carried state: nats per token, bits per byte,\n"
        "perplexity. Attention, whose state grows, reads overlapping windows instead; the result says so.\n"
        "A model of another task is scored by its metrics, beside its trivial baselines."
    ),
    options=(
        Option(
            "checkpoint", "directory of a run (its newest checkpoint) or of one checkpoint", required=True
        ),
        Option("data", "a file, directory, glob, - for stdin, or python (default: the run's own text)"),
        Option("--part", "all, train, valid or test (default: all of DATA, test of the run's own text)"),
        Option("--chunk", "tokens read at a time; a window of attention (default: as in training)", "N", int),
        Option("--streams", "stretches of the text read side by side: faster (default: 1)", "N", int, 1),
        Option("--limit", "most tokens to score (default: inf)", "N", float, inf),
        Option("--threads", "CPU threads (default: all)", "N", int, 0),
    ),
    examples=(
        "quatrain eval runs/hybrid",
        "quatrain eval runs/hybrid other.txt --streams 8",
        "quatrain eval runs/hybrid/checkpoints/step-00001000 book.txt --part test",
    ),
)


def run(args: Sequence[str]) -> int:
    parsed = parse(SURFACE, args)
    part = parsed["part"] or ("all" if parsed["data"] else "test")
    if part not in PARTS:
        parsed.problems.append(f"--part = {part!r}: must be one of {', '.join(PARTS)}")
    parsed.raise_problems()
    from quatrain.checkpoint import load, load_meta
    from quatrain.data.tokenizer import measures
    from quatrain.infer.evaluate import evaluate
    from quatrain.model.lm import LanguageModel

    set_threads(parsed)
    model = load(parsed["checkpoint"])
    if not isinstance(model, LanguageModel):
        return _task(parsed, part, model)
    chunk = parsed["chunk"] if "chunk" in parsed.given else _sequence(load_meta(parsed["checkpoint"]))
    with _text(parsed) as text:
        vocab = model.config.vocab
        check(vocab >= text.vocab, "model.vocab", vocab, f"must be at least {text.vocab}, that of the text")
        score = evaluate(
            model,
            _part(text, part),
            chunk=chunk,
            batch=parsed["streams"],
            limit=parsed["limit"],
            sizes=measures(text.tokenizer.spelled),
        )
        sys.stdout.write(_summary(f"{text.name}, {part}", score))
    return 0


def _task(parsed: Parsed, part: Any, model: "SequenceModel") -> int:
    """Score by the metrics of the model's task."""
    from quatrain.checkpoint import load_meta
    from quatrain.data.sequences import meaning_from_dict
    from quatrain.tasks.score import score
    from quatrain.tasks.trivial import trivial

    meta = load_meta(parsed["checkpoint"])
    check(
        part != "all" or bool(parsed["data"]),
        "--part",
        part,
        "must be train, valid or test of the run's data",
    )
    sequence = _sequence(meta)
    with _sequences(parsed, meaning_from_dict(meta.get("meaning"))) as file:
        part = "test" if parsed["data"] else part  # other data is all test data
        began = perf_counter()
        found = score(model, file, part, sequence=sequence, batch=32, limit=parsed["limit"])
        took = perf_counter() - began
        beside = trivial(file, part, sequence=sequence, limit=parsed["limit"])
    sys.stdout.write(_table(f"{file.name}, {'all' if parsed['data'] else part}", found, beside, took, model))
    return 0


def _table(
    what: str, found: "TaskScore", beside: dict[str, dict[str, float]], took: float, model: "SequenceModel"
) -> str:
    from quatrain.data.task import TASKS

    task = TASKS[model.config.task]
    noun = "sequences" if task.labelled else "windows"
    lines = [
        f"data:       {what}; {found.scored:,} of {found.total:,} {noun} scored",
        f"loss:       {found.loss:.4f} {task.unit}",
        f"{'':<30}{model.config.pattern:>16}" + "".join(f"{name:>16}" for name in beside),
    ]
    for metric in task.metrics:
        values = [found.metrics[metric.name], *(each[metric.name] for each in beside.values())]
        shown = [f"{value:.2%}" if metric.percent else f"{value:.4f}" for value in values]
        lines.append(f"{metric.says:<30}" + "".join(f"{value:>16}" for value in shown))
    lines.append(f"speed:      {found.steps / took if took > 0 else 0:,.0f} steps/s")
    return "".join(f"{line}\n" for line in lines)


@contextmanager
def _sequences(parsed: Parsed, meaning: "Meaning") -> "Iterator[SequenceFile]":
    """The data that was named, read as the model's own; or that of the run."""
    from quatrain.data.config import DataConfig
    from quatrain.data.prepare import prepare_like
    from quatrain.data.sequences import SequenceFile

    if parsed["data"]:
        with tempfile.TemporaryDirectory(prefix="quatrain-") as folder:
            yield prepare_like(DataConfig(source=parsed["data"]), folder, meaning)
        return
    yield SequenceFile.open(_own(parsed))


@contextmanager
def _text(parsed: Parsed) -> "Iterator[TokenFile]":
    """The text that was named, in a folder that goes away afterwards; or the one beside the run."""
    from quatrain.data.tokens import TokenFile, prepare
    from quatrain.tasks.spelling import tokenizer_of
    from quatrain.train.run_dir import DATA

    if parsed["data"]:
        with tempfile.TemporaryDirectory(prefix="quatrain-") as folder:
            tokenizer = tokenizer_of(parsed["checkpoint"])
            yield prepare(parsed["data"], Path(folder) / DATA, make=lambda corpus: tokenizer)
        return
    yield TokenFile.open(_own(parsed))


def _own(parsed: Parsed) -> Path:
    """The data beside the run. Raises DataError where there is none."""
    from quatrain.train.run_dir import DATA

    place = Path(parsed["checkpoint"]).resolve()
    found = [folder / DATA for folder in (place, *place.parents[:3]) if (folder / DATA).is_dir()]
    if not found:
        raise DataError(f"data: is missing, and '{parsed['checkpoint']}' holds none of its own; name some")
    return found[0]


def _part(text: "TokenFile", part: Any) -> "Tokens":
    return text.tokens if part == "all" else text.part(part)


def _sequence(meta: Any) -> int:
    """Tokens of a training sequence, where the checkpoint tells it."""
    config = meta.get("config")
    train = config.get("train") if isinstance(config, dict) else None
    sequence = train.get("sequence") if isinstance(train, dict) else None
    return sequence if isinstance(sequence, int) else 1024


def _bits(score: "Score") -> str:
    per_character = f", {score.bits_per_character:.4f} per character"
    return f"{score.bits_per_byte:.4f} per byte" + (per_character if score.characters else "")


def _summary(what: str, score: "Score") -> str:
    speed = score.tokens / score.seconds if score.seconds > 0 else 0.0
    lines = [
        f"text:       {what}; {score.tokens:,} of {score.total_tokens:,} tokens scored",
        f"context:    {score.context}",
        f"loss:       {score.nats:.4f} nats per token",
        f"bits:       {_bits(score)}" if score.bytes else "",
        f"perplexity: {score.perplexity:.4g} per token",
        f"speed:      {speed:,.0f} tokens/s",
    ]
    return "".join(f"{line}\n" for line in lines if line)
