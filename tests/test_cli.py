"""The command line: light to start, one line for every wrong input, the same words as the config."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType

import pytest

from quatrain import cli
from quatrain.cli import _errors, _flags
from quatrain.cli._display import TrainDisplay, duration, size, sparkline
from quatrain.errors import ConfigError, DataError


def run(*args: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = cli.main(args)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_starts_light(argument: str) -> None:
    code = (
        "import sys, quatrain.cli\n"
        f"code = quatrain.cli.main([{argument!r}])\n"
        "heavy = {'torch', 'numpy', 'rich', 'safetensors'} & set(sys.modules)\n"
        "sys.exit(f'loads {heavy}' if heavy else code)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for args in ([], ["--help"], ["-h"], ["help"]):
        code, out, err = run(*args, capsys=capsys)
        assert (code, err) == (0, "")
        assert all(name in out for name in cli.COMMANDS)


@pytest.mark.parametrize(
    "command", ["train", "generate", "predict", "inspect", "eval", "reproduce", "claims", "doctor"]
)
def test_help_of_a_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(command, "--help", capsys=capsys)
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: quatrain {command}")


def test_help_of_train_lists_every_key_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    from quatrain.config.schema import fields_of
    from quatrain.train.config import RunConfig

    _, out, _ = run("train", "--help", capsys=capsys)
    keys = fields_of(RunConfig)
    assert all(info.help for info in keys), [info.key for info in keys if not info.help]
    assert all(f"--{info.key}" in out for info in keys)
    assert len(keys) < 60, "a command line that nobody reads"


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run("trian", capsys=capsys)
    assert (code, out) == (2, "")
    assert err == (
        "quatrain: command = 'trian': must be one of compare, train, generate, predict, inspect, eval, "
        "claims, reproduce, doctor (did you mean train?)\n"
    )


def test_every_wrong_key_is_listed_with_a_suggestion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[train]\nstpes = 5\nlr = 'fast'\n")
    args = ["--config", str(recipe), "--lr", "1", "--train.warmpu", "0.1", "--model.width", "wide"]
    code, out, err = run("train", *args, "--out", str(tmp_path / "out"), capsys=capsys)
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert all(line.startswith("quatrain train: ") for line in lines)
    for part in (
        "--lr: unknown option (did you mean --train.lr?)",
        "train.stpes",
        "did you mean train.steps",
        "train.lr = 'fast'",
        "did you mean train.warmup",
        "model.width = 'wide'",
    ):
        assert part in err, part
    assert len(lines) == 5
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["--mixer", "lstmm"], "'lstmm' is none of rnn, lstm, gru, attention, s6, s4d (did you mean lstm?)"),
        (["--mixer", "Mamba"], "(did you mean s6?)"),
        (["--mixer", "lstm", "--model.pattern", "rnn"], "contradicts mixer = 'lstm'"),
        (["--train.sequence", "0"], "train.sequence = 0: must be at least 1"),
        (["--train.sequence", "100"], "train.batch_tokens = 4096: must be a multiple of train.sequence"),
        (["--train.dtype", "float16"], "train.dtype = 'float16': must be one of float32, bfloat16"),
        (["--train.warmup", "1.5"], "train.warmup = 1.5: is a fraction of the steps in [0, 1)"),
        (["--train.lr"], "--train.lr: needs a value"),
        (["--train.lr", "nan"], "train.lr"),
        (["--model.mixer.lstm.forget", "1", "--mixer", "lstm"], "model.mixer.lstm.forget"),
        (["--model.mixer.s6.state", "0"], "model.mixer.s6.state = 0"),
        (["--data.fractions", "0.5,0.5"], "data.fractions = [0.5, 0.5]: must be three positive fractions"),
        (["a.txt", "b.txt"], "'b.txt': is one argument too many"),
        (["--threads", "many"], "--threads = 'many': must be an integer"),
        (["a.txt", "--out", ""], "--out = '': must name a directory"),
        (["a.csv", "--target", ","], "--target = ',': must name at least one"),
        (["--threads", "0"], "--threads = 0: must be at least 1"),
        (["/no/such/file"], "/no/such/file"),
        (["--config", "/no/such/recipe.toml"], "/no/such/recipe.toml: No such file or directory"),
        (["--resume", "/no/such/run"], "/no/such/run"),
        (["--resume", "runs/a", "--out", "runs/b"], "--out = 'runs/b'"),
    ],
)
def test_wrong_input_gets_one_line(
    args: list[str],
    part: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run("train", *args, capsys=capsys)
    assert (code, out) == (2, "")
    assert part in err
    assert len(err.splitlines()) == 1
    assert err.startswith("quatrain train: ")
    assert list(tmp_path.iterdir()) == []


def test_flags_go_before_the_recipe_and_the_recipe_before_the_default(tmp_path: Path) -> None:
    from quatrain.cli.train import SURFACE, _settings, _shortcuts

    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[train]\nsteps = 7\nlr = 0.5\n[model.mixer.s6]\nstate = 8\n")
    args = ["book.txt", "--config", str(recipe), "--train.lr=3e-4", "--model.mixer.s6.expand", "1"]
    parsed = _flags.parse(SURFACE, [*args, "--train.carry-state", "true"])
    _shortcuts(parsed)
    config = _settings(parsed)
    assert (config.train.steps, config.train.lr, config.train.carry_state) == (7, 3e-4, True)
    assert config.train.seed == 0
    assert config.data.source == "book.txt"
    assert config.model.mixer == {"s6": {"state": 8, "expand": 1}}


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ConfigError("a = 1: must be 2\nb = 3: must be 4"), 2, ["a = 1: must be 2", "b = 3: must be 4"]),
        (DataError("book.txt: is\n empty"), 2, ["book.txt: is; empty"]),
        (OSError(28, "No space left on device", "runs/x"), 2, ["runs/x: No space left on device"]),
        (KeyboardInterrupt(), 130, ["interrupted"]),
        (ZeroDivisionError("division by zero"), 1, ["a fault of ours: ZeroDivisionError: division by zero "
                                                    "(add --traceback to see where)"]),
    ],
)  # fmt: skip
def test_from_exception_to_exit_code(error: BaseException, code: int, text: list[str]) -> None:
    assert _errors.describe(error) == (code, text)


def test_traceback_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run("train", "--traceback", "/no/such/file", capsys=capsys)
    assert code == 2
    assert "Traceback (most recent call last)" in err


def test_broken_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m quatrain train --help | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.startswith("usage: quatrain train")
    assert done.stderr == ""


class TestDisplay:
    ROW = MappingProxyType(
        {
            "kind": "step",
            "step": 1,
            "tokens": 100,
            "loss": 5.0,
            "lr": 1e-3,
            "grad_norm": 1.0,
            "seconds": 0.5,
        }
    )

    def rows(self, steps: int) -> list[dict[str, object]]:
        return [
            self.ROW
            | {"step": at, "tokens": 100 * at, "seconds": 0.5 * at, "loss": 5.0 / at, "memory_bytes": 2**21}
            for at in range(1, steps + 1)
        ]

    def shown(self, terminal: bool, width: int = 120) -> str:
        import io

        from rich.console import Console

        text = io.StringIO()
        console = Console(file=text, force_terminal=terminal, width=width, color_system=None)
        with TrainDisplay(30, console, every=0.0) as display:
            display({"kind": "resume", "step": 3})
            for row in self.rows(30):
                display(row)
                if row["step"] == 10:
                    display({"kind": "eval", "step": 10, "nats": 1.25, "best": True})
            display({"kind": "note", "text": "[not markup]"})
        return text.getvalue()

    def test_plain_lines(self) -> None:
        lines = self.shown(terminal=False).splitlines()
        assert lines[0] == "going on after step 3 of 30"
        assert "step 10  validation loss 1.2500 (best so far)" in lines
        assert "note: [not markup]" in lines
        last = next(line for line in lines if line.startswith("step 30/30"))
        for part in (
            "loss",
            "validation 1.2500",
            "tokens/s 200",
            "lr 1.00e-03",
            "memory 2.0 MiB",
            "left 0 s",
        ):
            assert part in last

    def test_live_panel(self) -> None:
        text = self.shown(terminal=True)
        for part in ("step 30 of 30", "tokens/s 200", "memory 2.0 MiB", "left", "validation 1.2500"):
            assert part in text

    def test_a_narrow_panel_cuts_no_number(self) -> None:
        words = self.shown(terminal=True, width=60).split()
        for part in ("tokens/s", "200", "lr", "1.00e-03", "2.0", "MiB", "validation", "1.2500"):
            assert part in words

    def test_numbers_for_people(self) -> None:
        assert sparkline([3.0, 2.0, 1.0, 0.0], 2) == "█▁"
        assert sparkline([], 8) == ""
        assert sparkline([1.0, 1.0], 8) == "▁▁"
        assert [duration(s) for s in (5, 200, 7500)] == ["5 s", "3 min 20 s", "2 h 05 min"]
        assert [size(n) for n in (5, 2048, 3 * 2**30)] == ["5 B", "2.0 KiB", "3.00 GiB"]


__all__ = ["json", "os"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps, made by the command itself."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "book.txt").write_text("she sells sea shells by the sea shore. " * 200)
    settings = (
        "--train.steps 30 --train.sequence 32 --train.batch-tokens 128 --model.width 16 --model.layers 1"
    )
    args = [str(folder / "book.txt"), "--mixer", "lstm", "--out", str(folder / "run"), *settings.split()]
    assert cli.main(["train", *args]) == 0
    return folder


def test_train_says_what_came_of_it_and_what_to_do_next(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run("train", "--resume", str(trained / "run"), capsys=capsys)
    assert code == 0
    assert "was finished before: 30 steps, 3,840 tokens" in out
    assert f"quatrain eval {trained / 'run'}" in out


def test_eval_scores_the_runs_own_test_part_or_another_text(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import quatrain
    from quatrain.data.tokens import TokenFile
    from quatrain.infer.evaluate import evaluate

    tokens = TokenFile.open(trained / "run" / "data")
    want = evaluate(quatrain.load(trained / "run"), tokens.part("test"))
    code, out, err = run("eval", str(trained / "run"), capsys=capsys)
    assert (code, err) == (0, "")
    assert f"{want.tokens:,} of {want.tokens:,} tokens scored" in out
    assert f"{want.nats:.4f} nats per token" in out
    assert f"{want.bits_per_byte:.4f} per byte" in out
    (trained / "other.txt").write_text("the sea")
    code, out, err = run(
        "eval", str(trained / "run"), str(trained / "other.txt"), "--streams", "2", capsys=capsys
    )
    assert (code, err) == (0, "")
    assert "other.txt, all; 6 of 6 tokens scored" in out


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["RUN", "--part", "half"], "--part = 'half': must be one of all, train, valid, test"),
        (["RUN", "--chunk", "0"], "chunk = 0: must be at least 1"),
        (["RUN", "--streams", "0"], "batch = 0: must be at least 1"),
        (["RUN", "/no/such/text"], "/no/such/text"),
        (["/no/such/run"], "/no/such/run"),
        ([], "checkpoint: is missing"),
    ],
)
def test_wrong_input_of_eval(
    trained: Path, args: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(trained / "run") if word == "RUN" else word for word in args]
    code, out, err = run("eval", *given, capsys=capsys)
    assert (code, out) == (2, "")
    assert part in err
    assert len(err.splitlines()) == 1


def test_generate_streams_text_and_tells_its_cost(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["generate", str(trained / "run"), "--prompt", "she ", "--max-tokens", "12", "--seed", "5"]
    code, out, err = run(*args, capsys=capsys)
    assert code == 0
    assert "prompt: 4 tokens" in err
    assert "text:   12 tokens" in err
    assert "state:  128 B" in err
    assert run(*args, capsys=capsys)[1] == out
    code, out, err = run(*args, "--top-p", "0", capsys=capsys)
    assert (code, out) == (2, "")
    assert "top_p = 0.0" in err
