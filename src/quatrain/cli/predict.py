"""``quatrain predict``: what a trained model says about new inputs."""

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quatrain.cli._flags import Option, Surface, parse
from quatrain.cli.generate import set_threads
from quatrain.errors import DataError

if TYPE_CHECKING:
    from quatrain.data.readers._item import Item
    from quatrain.infer.answers import Predictor

STDIN = "-"

SURFACE = Surface(
    command="predict",
    help=(
        "Classes with probabilities, tags and transcripts as JSON Lines; forecasts as CSV with mean and\n"
        "quantiles. An input is a file as in training, without labels; a plain text file is one text. From\n"
        "stdin every line is an input and is answered at once: a text, a JSON object, or, of a series, its\n"
        "next row; the state is carried."
    ),
    options=(
        Option(
            "checkpoint", "directory of a run (its newest checkpoint) or of one checkpoint", required=True
        ),
        Option("input", "a file, or - for stdin", required=True),
        Option("--also", "another file; may be given several times", "FILE", many=True),
        Option("--threads", "CPU threads (default: all)", "N", int, 0),
    ),
    examples=(
        "quatrain predict runs/birds morning.wav",
        "quatrain predict runs/readings readings.csv > forecast.csv",
        "tail -f sensor.csv | quatrain predict runs/readings -",
    ),
)


def run(args: Sequence[str]) -> int:
    parsed = parse(SURFACE, args)
    parsed.raise_problems()
    set_threads(parsed)
    from quatrain.infer.answers import Predictor

    predictor = Predictor(parsed["checkpoint"])
    names = (parsed["input"], *parsed["also"])
    if predictor.task == "forecast":
        for name in names:
            _stream(predictor) if name == STDIN else _forecast(predictor, Path(name))
        return 0
    for name in names:
        items = _lines(predictor) if name == STDIN else _file(predictor, Path(name))
        for answer in items:
            sys.stdout.write(json.dumps(answer, ensure_ascii=False) + "\n")
            sys.stdout.flush()
    return 0


def _file(predictor: "Predictor", path: Path) -> Iterator[dict[str, Any]]:
    from quatrain.infer.answers import read_inputs

    yield from predictor.answers(read_inputs(path, predictor.meaning))


def _lines(predictor: "Predictor") -> Iterator[dict[str, Any]]:
    for number, line in enumerate(sys.stdin, 1):
        if line.strip():
            yield from predictor.answers([_item(line, number, predictor.meaning.features)])


def _item(line: str, number: int, features: str) -> "Item":
    import numpy as np

    from quatrain.data.readers import jsonl
    from quatrain.data.readers._item import Item

    where = f"stdin, line {number}"
    if line.lstrip().startswith("{"):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where}: is no JSON: {error}") from None
        return jsonl.item(row, where, Path(), features)
    return Item(np.frombuffer(line.rstrip("\r\n").encode("utf-8", "replace"), dtype=np.uint8), None, where)


def _forecast(predictor: "Predictor", path: Path) -> None:
    from quatrain.infer.answers import csv_lines, read_context

    values = read_context(path, predictor.meaning, predictor.context)
    csv.writer(sys.stdout, lineterminator="\n").writerows(csv_lines(predictor.forecast(values)))


def _stream(predictor: "Predictor") -> None:
    """A row in, a line out: the mean of every step ahead."""
    from quatrain.infer.answers import parse_row

    meaning = predictor.meaning
    if meaning.calendar:
        raise DataError("stdin: a model that reads the calendar needs files with a column of times")

    def rows() -> Iterator[Any]:
        for number, line in enumerate(sys.stdin, 1):
            header = number == 1 and [cell.strip() for cell in line.split(",")] == list(meaning.columns)
            if line.strip() and not header:
                yield parse_row(line, meaning, f"stdin, line {number}")

    writer = csv.writer(sys.stdout, lineterminator="\n")
    targets = meaning.columns[: meaning.targets]
    writer.writerow([f"{name}+{step}" for step in range(1, meaning.horizon + 1) for name in targets])
    for forecast in predictor.stream(rows()):
        writer.writerow([f"{value:.6g}" for value in forecast.mean.reshape(-1)])
        sys.stdout.flush()
