"""``quatrain inspect``: what a trained model does inside on one input, as a page."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from quatrain.cli._flags import DEVICE, Option, Parsed, Surface, parse
from quatrain.cli.generate import set_threads
from quatrain.config.check import check
from quatrain.errors import ConfigError, DataError

if TYPE_CHECKING:
    from quatrain.lab.inspection import Input

STDIN = "-"
LIMIT = 512  # as `quatrain.lab.look.LIMIT`, which cannot be asked without torch

SURFACE = Surface(
    command="inspect",
    help=(
        "Show what a trained model does inside on one input, as a page: the loss of every token, norms,\n"
        "gates, step sizes, attention maps, and how long each layer remembers. The input is a text, or a\n"
        "file as in predict; of several inputs the first is taken, of a long one the first steps (of a\n"
        "series that is forecast, the last)."
    ),
    options=(
        Option(
            "checkpoint", "directory of a run (its newest checkpoint) or of one checkpoint", required=True
        ),
        Option("input", "a file, or - for stdin; or give --text"),
        Option("--text", "the input itself, of a model that reads text", "TEXT"),
        Option("--out", "the page (default: inspect.html)", "FILE", str, "inspect.html"),
        Option("--limit", f"steps that are looked at (default: {LIMIT})", "N", int, LIMIT),
        Option("--threads", "CPU threads (default: all)", "N", int, 0),
        DEVICE,
    ),
    examples=(
        "quatrain inspect runs/hybrid --text 'To be, or not to be, that is the question'",
        "quatrain inspect runs/readings readings.csv --out readings.html",
        "head -c 400 book.txt | quatrain inspect runs/hybrid -",
    ),
)


def run(args: Sequence[str]) -> int:
    parsed = parse(SURFACE, args)
    parsed.raise_problems()
    _check(parsed)
    set_threads(parsed)
    from quatrain.checkpoint import task_of
    from quatrain.lab.inspection import inspect
    from quatrain.report import inspect as report

    task = task_of(parsed["checkpoint"])
    with _input(parsed, task) as (source, name):
        rows = inspect(
            parsed["checkpoint"], source, limit=parsed["limit"], device=parsed["device"], name=name
        )
    page = report.write(rows, parsed["out"])
    sys.stdout.write("\n".join([*report.summary(rows), f"page     {page}"]) + "\n")
    return 0


def _check(parsed: Parsed) -> None:
    """What can be said before torch is loaded."""
    given = [name for name in ("input", "text") if name in parsed.given]
    if len(given) != 1:
        rule = "give a file, - for stdin, or --text" if not given else "contradicts --text: give one of them"
        raise ConfigError(f"input = {parsed['input']!r}: {rule}")
    check(parsed["limit"] >= 1, "--limit", parsed["limit"], "must be at least 1")
    out = Path(parsed["out"])
    check(out.suffix.lower() in (".html", ".htm"), "--out", str(out), "must end in .html")
    check(not out.is_dir(), "--out", str(out), "is a directory")
    check(out.parent.is_dir(), "--out", str(out), f"{str(out.parent)!r} is no directory")
    same = parsed["input"] not in ("", STDIN) and out.exists() and out.samefile(_found(parsed["input"]))
    check(not same, "--out", str(out), "is the input")


def _found(name: str) -> Path:
    path = Path(name)
    if not path.is_file():
        raise DataError(f"{path}: {'is a directory; name a file' if path.is_dir() else 'does not exist'}")
    return path


@contextmanager
def _input(parsed: Parsed, task: str) -> Iterator[tuple["Input", str]]:
    """What is looked at, and what it is called."""
    if "text" in parsed.given:
        if not parsed["text"]:
            raise DataError("--text: is empty")
        yield os.fsencode(parsed["text"]), "--text"
        return
    name = parsed["input"]
    if name != STDIN:
        yield _found(name), name
        return
    if task == "lm":
        yield _stdin_text(sys.stdin.buffer.read()), "standard input"
        return
    from quatrain.checkpoint import load_meta, model_settings
    from quatrain.infer.inputs import spooled

    with spooled(STDIN) as path:
        reads_text = not model_settings(load_meta(parsed["checkpoint"])).get("channels", 0)
        if reads_text and not path.endswith(".jsonl"):
            yield _stdin_text(Path(path).read_bytes()), "standard input"
            return
        try:
            yield Path(path), "standard input"
        except DataError as error:
            raise DataError(str(error).replace(path, "stdin")) from None


def _stdin_text(text: bytes) -> bytes:
    """All of stdin is one text, or the first line of it is a JSON object with one."""
    if not text:
        raise DataError("stdin: is empty")
    if text.lstrip().startswith(b"{"):
        try:
            said = json.loads(text.split(b"\n", 1)[0])["text"]
        except (ValueError, KeyError, TypeError):
            return text
        return said.encode() if isinstance(said, str) else text
    return text
