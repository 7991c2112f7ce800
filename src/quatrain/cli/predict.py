"""``quatrain predict``: what a trained model says about new inputs."""

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quatrain.cli._flags import DEVICE, Option, Parsed, Surface, parse
from quatrain.cli.generate import set_threads
from quatrain.errors import ConfigError

if TYPE_CHECKING:
    from quatrain.infer.answers import Forecast, Predictor

STDIN = "-"
CHARTS = (".svg", ".html")

SURFACE = Surface(
    command="predict",
    help=(
        "Classes with probabilities, tags, transcripts and the continuations of a language model as JSON\n"
        "Lines; forecasts as CSV with mean and quantiles. An input is a file as in training (.gz too),\n"
        "labels not needed; a plain text file is one text. From stdin every line is an input, answered at\n"
        "once: a text, a JSON object, or, of a series, its next row; the state is carried."
    ),
    options=(
        Option(
            "checkpoint", "directory of a run (its newest checkpoint) or of one checkpoint", required=True
        ),
        Option("input", "files, or - for stdin", required=True, many=True),
        Option("--chart", "also draw the forecast, with what came before it: .svg or .html", "FILE"),
        Option("--max-tokens", "of a language model's continuation (default: 64)", "N", int, 64),
        Option("--temperature", "of its draw; 0: the likeliest always (default: 0)", "X", float, 0.0),
        Option("--seed", "of its draw (default: 0)", "N", int, 0),
        Option("--threads", "CPU threads (default: all)", "N", int, 0),
        DEVICE,
    ),
    examples=(
        "quatrain predict runs/birds morning.wav evening.wav",
        "quatrain predict runs/readings readings.csv --chart forecast.svg > forecast.csv",
        "tail -f sensor.csv | quatrain predict runs/readings -",
        "quatrain predict runs/hybrid chapter.txt --max-tokens 100",
    ),
)


def run(args: Sequence[str]) -> int:
    parsed = parse(SURFACE, args)
    parsed.raise_problems()
    set_threads(parsed)
    names: tuple[str, ...] = parsed["input"]
    if parsed["chart"]:
        _check_chart(Path(parsed["chart"]), names)
    from quatrain.checkpoint import task_of

    task = task_of(parsed["checkpoint"])
    if parsed["chart"] and task != "forecast":
        raise ConfigError(f"--chart = {parsed['chart']!r}: is for forecasts; this model's task is {task}")
    if task == "lm":
        _write(_continued(parsed, names))
        return 0
    from quatrain.infer.answers import Predictor
    from quatrain.model.device import choose

    predictor = Predictor(parsed["checkpoint"], choose(parsed["device"]))
    if task != "forecast":
        _write(answer for name in names for answer in _answers(predictor, name))
        return 0
    for name in names:
        _stream(predictor) if name == STDIN else _forecast(predictor, Path(name), names, parsed["chart"])
    return 0


def _write(answers: Iterator[dict[str, Any]]) -> None:
    """JSON Lines, each sent on at once: whoever reads a pipe waits for it."""
    for answer in answers:
        sys.stdout.write(json.dumps(answer, ensure_ascii=False) + "\n")
        sys.stdout.flush()


def _lines() -> Iterator[tuple[int, str]]:
    """The lines of stdin with their numbers, each as soon as it has ended; empty ones left out."""
    number = 0
    while line := sys.stdin.readline():  # iterating over the file would read ahead
        number += 1
        if line.strip():
            yield number, line


def _continued(parsed: Parsed, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    from quatrain.infer.inputs import parse_text, read_texts
    from quatrain.infer.predict import Continuer
    from quatrain.infer.sample import Sampling

    continuer = Continuer(
        parsed["checkpoint"],
        device=parsed["device"],
        max_tokens=parsed["max_tokens"],
        sampling=Sampling(temperature=parsed["temperature"], seed=parsed["seed"]),
    )
    for name in names:
        lines = (parse_text(line, number) for number, line in _lines())
        for where, text in lines if name == STDIN else read_texts(Path(name)):
            yield continuer(where, text)


def _answers(predictor: "Predictor", name: str) -> Iterator[dict[str, Any]]:
    from quatrain.infer.inputs import parse_item, read_inputs

    if name != STDIN:
        yield from predictor.answers(read_inputs(Path(name), predictor.meaning))
        return
    for number, line in _lines():
        yield from predictor.answers([parse_item(line, number, predictor.meaning.features)])


def _forecast(predictor: "Predictor", path: Path, names: Sequence[str], chart: str) -> None:
    """One file's forecast; of several files, each under a line that names it."""
    from quatrain.infer.answers import csv_lines
    from quatrain.infer.inputs import read_context

    values = read_context(path, predictor.meaning, predictor.context)
    found = predictor.forecast(values)
    rows = csv_lines(found)
    if len(names) > 1:
        rows = (["source" if index == 0 else str(path), *row] for index, row in enumerate(rows))
        if path != Path(names[0]):
            next(rows)  # one header for all
    if chart:
        _draw(Path(chart), found, values)
    csv.writer(sys.stdout, lineterminator="\n").writerows(rows)
    sys.stdout.flush()


def _stream(predictor: "Predictor") -> None:
    """A row in, a line out: the mean of every step ahead."""
    from quatrain.infer.lines import read_lines

    meaning = predictor.meaning
    writer = csv.writer(sys.stdout, lineterminator="\n")
    targets = meaning.columns[: meaning.targets]
    writer.writerow([f"{name}+{step}" for step in range(1, meaning.horizon + 1) for name in targets])
    sys.stdout.flush()
    for forecast in predictor.stream(read_lines(_lines(), meaning)):
        writer.writerow([f"{value:.6g}" for value in forecast.mean.reshape(-1)])
        sys.stdout.flush()


def _check_chart(path: Path, names: Sequence[str]) -> None:
    """Said before anything is computed."""
    if path.suffix.lower() not in CHARTS:
        raise ConfigError(f"--chart = {str(path)!r}: must end in {' or '.join(CHARTS)}")
    if len(names) != 1 or names[0] == STDIN:
        raise ConfigError(f"--chart = {str(path)!r}: draws the forecast of one file; give one input")
    if not path.parent.is_dir():
        raise ConfigError(f"--chart = {str(path)!r}: {str(path.parent)!r} is no directory")


def _draw(path: Path, found: "Forecast", before: Any) -> None:
    from quatrain._files import write_atomic
    from quatrain.cli._chart import drawing

    targets = len(found.columns)
    history = before[:, :targets].tolist()
    content = drawing(
        found.columns, history, found.mean.tolist(), found.quantiles.tolist(), found.levels, path.suffix
    )
    write_atomic(path, content)
