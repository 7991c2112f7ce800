"""The READMEs: every command and example runs, both languages say the same, every link leads somewhere."""

import json
import math
import re
import shlex
import struct
import subprocess
import sys
import wave
from pathlib import Path

import pytest

from quatrain import cli
from quatrain.lab.claims import run
from quatrain.lab.claims.config import ClaimsConfig

ROOT = Path(__file__).parents[1]
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
# What makes a command of a person's size small enough for a test; the rest of it runs as it stands.
_FAST_MODEL = ["--model.width", "24", "--model.layers", "3"]
_FAST_RUN = ["--train.steps", "2", "--train.batch-tokens", "1024", "--train.eval-tokens", "512"]
SMALLER = {
    "train": [*_FAST_MODEL, *_FAST_RUN],
    "generate": [],
    "eval": ["--limit", "500"],
    "predict": [],
    "inspect": [],
    "claims": [],
    "reproduce": ["--processes", "1"],
    "compare": [
        *("--params", "20K", "--sequence", "16", "--batch", "2"),
        *("--contexts", "16,32", "--learning-rates", "1e-3", "--evaluation", "8s"),
    ],
}

_RECIPE = """
task = "parity"
title = "small"
train = { steps = 4, batch = 4, lengths = [1, 8], look_every = 4, look_sequences = 8, save_every = 4 }
test = { lengths = [8], sequences = 8 }
models.rnn = { model = { width = 8 }, learning_rates = [1e-3] }

[reduced]
says = "smaller still"
gpu = false
"""

per_readme = pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)


def blocks(readme: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", readme.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def commands(readme: Path) -> list[list[str]]:
    lines = "".join(blocks(readme, "sh")).splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def _make_claims_small(monkeypatch):
    quick = {name: run.MEASUREMENTS[name] for name in ("states", "s4d", "rnn-gradient")}
    monkeypatch.setattr(run, "MEASUREMENTS", quick)
    monkeypatch.setattr("quatrain.cli.claims.settings", lambda *given: ClaimsConfig(params=20_000, reach=16))


def _write_data(folder: Path) -> None:
    """What the commands read: two texts, a series, labelled texts, and two birds."""
    (folder / "book.txt").write_text("The sea is wide, and the shore is long. " * 400)
    (folder / "letters.txt").write_text("Dear friend, the sea is wide today. " * 400)
    hours = (f"{k},{15 + k % 24 / 3:.2f},{k % 7}\n" for k in range(900))
    (folder / "readings.csv").write_text("time,temperature,wind\n" + "".join(hours))
    words = ("good, very good", "bad, very bad")
    rows = (json.dumps({"text": f"{words[k % 2]} {k}", "label": k % 2}) + "\n" for k in range(80))
    (folder / "reviews.jsonl").write_text("".join(rows))
    for kind, pitch in (("owl", 0.2), ("wren", 0.9)):
        (folder / "birds" / kind).mkdir(parents=True)
        for number in range(12):
            with wave.open(str(folder / "birds" / kind / f"{number}.wav"), "wb") as file:
                file.setparams((1, 2, 8000, 0, "NONE", ""))
                loud = (round(9000 * math.sin(pitch * at + number)) for at in range(1600))
                file.writeframes(struct.pack("<1600h", *loud))


@per_readme
def test_every_command_runs(readme, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _write_data(tmp_path)
    _make_claims_small(monkeypatch)
    (tmp_path / "parity.toml").write_text(_RECIPE)
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in commands(readme):
        if words[0] == "make":
            assert words[1] in targets, words
            continue
        assert words[0] == "quatrain", words
        args = list(words[1:])
        smaller = SMALLER[args[0]]
        if args[0] == "compare":
            args[args.index("--budget") + 1] = "1Ktokens"
            if args[1] == "birds":  # labelled sequences have their own length
                smaller = [*smaller[:2], *smaller[4:]]
        if args[0] == "reproduce":
            args[1] += ".toml"
        assert cli.main([*args, *smaller]) == 0, capsys.readouterr().err
    assert (tmp_path / "runs" / "book" / "config.toml").exists()
    assert (tmp_path / "forecast.svg").exists()
    assert (tmp_path / "runs" / "claims" / "claims.html").exists()
    assert (tmp_path / "runs" / "parity" / "records.jsonl").exists()
    assert cli.main(["train", "--resume", "runs/book"]) == 0


@per_readme
def test_every_example_runs(readme):
    examples = blocks(readme, "python")
    assert examples
    for example in examples:
        done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout


@per_readme
def test_every_link_leads_somewhere(readme):
    for target in re.findall(r"\]\(([^)#]+)\)", readme.read_text("utf-8")):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_both_languages_show_the_same_commands_numbers_and_links():
    def facts(readme: Path):
        text = readme.read_text("utf-8")
        links = set(re.findall(r"\]\(([^)]+)\)", text)) - {"README.md", "README.zh-CN.md"}
        tables = re.findall(r"^\|.*\|$", text, re.MULTILINE)
        numbers = [re.findall(r"\d[\d.,]*", line) for line in tables]
        return commands(readme), links, numbers

    assert facts(READMES[0]) == facts(READMES[1])


def test_every_recipe_that_a_readme_names_is_there():
    for readme in READMES:
        for name in re.findall(r"recipes/[\w-]+\.toml", readme.read_text("utf-8")):
            assert (ROOT / name).is_file(), name
