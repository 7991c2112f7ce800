"""`quatrain compare`: one whole comparison, killed and resumed ones, what is refused, and what is shown."""

import io
import json
import math
import random
import re
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console
from tests.stopping import stopped_often

from quatrain import records, report
from quatrain.cli import compare as command
from quatrain.cli import main
from quatrain.cli._comparison import CompareDisplay, show
from quatrain.cli._flags import parse
from quatrain.errors import ConfigError, MissingExtraError
from quatrain.lab import calibrate, evaluation
from quatrain.lab.calibrate import Speed
from quatrain.lab.compare import compare
from quatrain.lab.config import CompareConfig
from quatrain.train._signals import Interrupted

SPEED = Speed(step_seconds=0.01, forward_seconds=1e-6, peak_memory_bytes=10**8, empty_memory_bytes=10**7)
WORDS = ("state", "rule", "memory", "gate", "token", "scan", "and", "of", "the", "with")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Forty kilobytes of words in random order."""
    drawn = random.Random(0)
    path = tmp_path_factory.mktemp("compare") / "words.txt"
    path.write_text("".join(f"{drawn.choice(WORDS)}{drawn.choice('  .')}" for _ in range(7000)))
    return path


def config_of(text, **changes):
    fields = {
        "data": {"source": str(text)},
        "mixers": ("rnn", "attention"),
        "params": 4000,
        "sequence": 16,
        "batch": 4,
        "budget_seconds": math.inf,
        "budget_tokens": 24 * 64.0,
        "learning_rates": (3e-3, 1e-2),
        "contexts": (16, 32),
        "evaluation_seconds": 60.0,
    }
    from quatrain.config.schema import from_dict

    return from_dict(CompareConfig, {**fields, **changes})


@pytest.fixture(autouse=True)
def known_speed(monkeypatch):
    """Calibration starts a process per model; that it measures is tested in test_lab.py."""
    monkeypatch.setattr(calibrate, "measure", lambda *ignored: SPEED)


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    """A comparison of two seeds in which one learning rate diverges."""
    out = tmp_path_factory.mktemp("finished") / "out"
    config = config_of(text, seeds=2, learning_rates=(3e-3, 1e-2, 1e30))
    events = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate, "measure", lambda *ignored: SPEED)
        assert not compare(config, out, events.append, threads=1, command="quatrain compare").again
    return config, out, events


def rows_of(out, *kinds):
    return [row for row in records.read(out / "records.jsonl") if row["kind"] in kinds]


VOLATILE = re.compile(r"seconds|per_second|started|^id$|overhead|ms_per_token|exponent|memory|commit")


def numbers_of(out):
    """Every row, without what depends on the clock."""
    kept = []
    for row in rows_of(
        out,
        "model",
        "train",
        "valid",
        "result",
        "gradient",
        "sample",
        "baseline",
        "diverged",
        "position",
        "far",
    ):
        kept.append({key: value for key, value in row.items() if not VOLATILE.search(key)})
    return kept


# -- one whole comparison


def test_every_kind_of_row_is_there(finished):
    _, out, _ = finished
    rows = list(records.read(out / "records.jsonl"))
    kinds = {row["kind"] for row in rows}
    assert kinds >= {"comparison", "model", "train", "valid", "result", "step_cost", "prefill", "position"}
    assert kinds >= {"gradient", "sample", "baseline", "diverged", "far", "end", "done"}
    assert "prefill_fit" not in kinds  # no prompt is long enough for one
    (about,) = rows_of(out, "comparison")
    assert about["tokens_per_model"] == 24 * 64
    assert about["seeds"] == [0, 1]
    assert about["config_digest"] == json.loads((out / "manifest.json").read_text())["config_digest"]
    sizes = [row["params"] for row in rows_of(out, "model")]
    assert max(sizes) <= 1.02 * min(sizes)
    assert all(abs(size / 4000 - 1) <= 0.02 for size in sizes)
    (end,) = rows_of(out, "end")
    assert end["complete"]
    assert end["training_seconds"] > 0 < end["evaluation_seconds"]


def test_a_diverged_rate_is_recorded_and_stops_nothing(finished):
    _, out, events = finished
    diverged = rows_of(out, "diverged")
    assert [(row["mixer"], row["lr"]) for row in diverged] == [("rnn", 1e30), ("attention", 1e30)]
    assert "not finite" in diverged[0]["reason"]
    assert sum(event["kind"] == "diverged" for event in events) == 2
    assert all(row["status"] == "ok" for row in rows_of(out, "result"))


def test_the_rate_is_chosen_on_validation_at_the_rung(finished):
    _, out, _ = finished
    (about,) = rows_of(out, "comparison")
    for result in rows_of(out, "result"):
        at_rung = {
            row["lr"]: row["loss"]
            for row in rows_of(out, "valid")
            if row["mixer"] == result["mixer"] and row["seed"] == 0 and row["step"] == about["rung_steps"]
        }
        assert set(at_rung) == {3e-3, 1e-2}
        assert result["lr"] == min(at_rung, key=at_rung.get)
        steps = [
            row["step"]
            for row in rows_of(out, "train")
            if (row["mixer"], row["seed"], row["lr"]) == (result["mixer"], result["seed"], result["lr"])
        ]
        assert steps == list(range(1, 25))  # nothing twice, nothing left out, over rung and rest


def test_all_read_the_same_tokens_and_are_tested_alike(finished):
    _, out, _ = finished
    results = rows_of(out, "result")
    assert {(row["mixer"], row["seed"]) for row in results} == {
        (mixer, seed) for mixer in ("rnn", "attention") for seed in (0, 1)
    }
    for key in ("tokens", "test_tokens", "test_total_tokens"):
        assert len({row[key] for row in results}) == 1
    assert {row["mixer"] for row in results if "test_loss_carried" in row} == {"rnn"}
    assert len({row["test_loss"] for row in results}) == 4
    for row in results:
        assert row["test_bits_per_byte"] == pytest.approx(row["test_loss"] / math.log(2))
        assert row["test_loss"] < math.log(256)
    configs = [
        re.sub(
            r"(?s)\[model.*?(?=\[data)|lr = .*?\n|seed = .*?\n",
            "",
            (out / row["run"] / "config.toml").read_text(),
        )
        for row in results
    ]
    assert len(set(configs)) == 1


def test_a_model_that_does_not_beat_counting_is_said_not_to(finished):
    _, out, _ = finished
    best = min(row["test_loss"] for row in rows_of(out, "baseline"))
    worse = {row["mixer"] for row in rows_of(out, "result") if row["test_loss"] >= best}
    assert worse == {"rnn", "attention"}  # 24 steps
    noted = {row["mixer"]: row["text"] for row in rows_of(out, "note")}
    assert noted["rnn"].startswith("rnn does not beat the trivial baseline markov-")
    assert set(noted) == worse


def test_losing_runs_keep_records_and_lose_checkpoints(finished):
    _, out, _ = finished
    chosen = {row["run"] for row in rows_of(out, "result")}
    runs = [path for path in (out / "runs").iterdir() if path.is_dir()]
    assert len(runs) == 2 * (3 + 1)
    for run in runs:
        assert (run / "records.jsonl").exists()
        kept = any((run / "checkpoints").glob("*")) if (run / "checkpoints").exists() else False
        assert kept == (str(run.relative_to(out)) in chosen)


def test_a_finished_comparison_is_shown_again(finished):
    config, out, _ = finished
    before = (out / "records.jsonl").read_bytes()
    assert compare(config, out, lambda event: pytest.fail("did something")).again
    assert (out / "records.jsonl").read_bytes() == before


def test_other_arguments_in_the_same_directory_are_refused(finished, text):
    config, out, _ = finished
    with pytest.raises(ConfigError, match=r"params = 4000 there, 5000 here; seeds = 2 there, 1 here"):
        compare(config_of(text, params=5000, learning_rates=config.learning_rates), out)
    with pytest.raises(ConfigError, match=r"threads = 7: the comparison in .* began with 1"):
        compare(config, out, threads=7)


# -- going on


def test_stopped_anywhere_it_ends_with_the_same_numbers(text, tmp_path):
    config = config_of(text)
    seen = []
    compare(config, tmp_path / "whole", seen.append, threads=1)
    out = tmp_path / "parts"
    stops = stopped_often(lambda events: compare(config, out, events, threads=1), 5, 45)
    assert stops >= 3
    assert numbers_of(out) == numbers_of(tmp_path / "whole")
    assert report.table(rows_of(out, "result", "model", "baseline")).rows  # and it can be shown


DRIVER = """
import sys
from quatrain.lab import calibrate
from tests_helper import SPEED, config
calibrate.measure = lambda *ignored: SPEED
from quatrain.lab.compare import compare
sys.stdout.write("ready\\n"); sys.stdout.flush()
compare(config(sys.argv[1]), sys.argv[2], threads=1)
sys.stdout.write("done\\n")
"""

HELPER = """
from math import inf
from quatrain.lab.calibrate import Speed
from quatrain.lab.config import CompareConfig
from quatrain.data.config import DataConfig
SPEED = Speed(step_seconds=0.01, forward_seconds=1e-6, peak_memory_bytes=10**8, empty_memory_bytes=10**7)

def config(source):
    return CompareConfig(
        data=DataConfig(source=source), mixers=("rnn", "attention"), params=4000, sequence=16, batch=4,
        budget_seconds=inf, budget_tokens=24 * 64.0, learning_rates=(3e-3, 1e-2), contexts=(16, 32),
        evaluation_seconds=60.0,
    )
"""


def test_killed_at_random_moments_it_ends_with_the_same_numbers(text, tmp_path):
    (tmp_path / "tests_helper.py").write_text(HELPER)
    began = time.perf_counter()
    compare(config_of(text), tmp_path / "whole", threads=1)
    fifth = (time.perf_counter() - began) / 5  # of it all: three kills at least, however fast it is
    drawn, kills = random.Random(1), 0
    for _ in range(30):
        with subprocess.Popen(
            (sys.executable, "-c", DRIVER, str(text), str(tmp_path / "out")),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout.readline() == "ready\n"
            if kills < 6:
                time.sleep(drawn.uniform(0.0, fifth))
                process.send_signal(signal.SIGKILL)
            done = process.stdout.read() == "done\n"
        if done:
            break
        assert process.returncode == -signal.SIGKILL
        kills += 1
    assert kills >= 3
    assert numbers_of(tmp_path / "out") == numbers_of(tmp_path / "whole")


def test_a_signal_while_training_saves_and_says_how_to_go_on(text, tmp_path, capsys):
    import os

    def stop(event):
        if event["kind"] == "step" and event["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match=r"everything is saved in .*; the same command goes on"):
        compare(config_of(text), tmp_path / "out", stop, threads=1)
    assert compare(config_of(text), tmp_path / "out", threads=1).again is False


def test_changed_text_is_not_taken_for_the_old_one(finished, text, tmp_path):
    copy, out = tmp_path / "words.txt", tmp_path / "out"
    copy.write_bytes(text.read_bytes())
    config = config_of(copy, mixers=("rnn",), learning_rates=(1e-2,))
    compare(config, out, threads=1)
    copy.write_bytes(text.read_bytes() + b"!")
    with pytest.raises(ValueError, match="give the same text or another directory"):
        compare(config, out, threads=1)


# -- one learning rate, one that always diverges, a leak


def test_when_every_rate_diverges_the_result_says_so(text, tmp_path):
    compare(
        config_of(text, mixers=("rnn",), learning_rates=(1e30, 1e31), seeds=2), tmp_path / "out", threads=1
    )
    results = rows_of(tmp_path / "out", "result")
    assert [(row["seed"], row["status"]) for row in results] == [(0, "diverged"), (1, "diverged")]
    assert "test_loss" not in results[0]
    assert {row["trained"] for row in rows_of(tmp_path / "out", "gradient")} == {False}
    assert rows_of(tmp_path / "out", "step_cost")
    show(tmp_path / "out", again=False)


def test_a_model_that_sees_the_future_is_not_compared(text, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "leaks", lambda model, sequence: "it sees the future")
    with pytest.raises(RuntimeError, match="rnn: it sees the future; nothing is compared"):
        compare(config_of(text), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- the command


def settings(*args):
    return command.settings(parse(command.SURFACE, args))


def test_flags_become_settings():
    found = settings(
        "book.txt", "--budget", "1.5h", "--params", "250K", "--mixers", "lstm, s6 s6 attention",
        "--seeds", "3",
        "--learning-rates", "1e-4,1e-3", "--contexts", "128,1K", "--evaluation", "2m", "--rung", "0.5",
    )  # fmt: skip
    assert found.data.source == "book.txt"
    assert found.budget_seconds == 5400
    assert found.params == 250_000
    assert found.mixers == ("lstm", "s6 s6 attention")
    assert found.learning_rates == (1e-4, 1e-3)
    assert found.contexts == (128, 1000)
    assert (found.evaluation_seconds, found.rung, found.seeds) == (120, 0.5, 3)
    assert settings() == CompareConfig()
    assert settings("--budget", "10m", "--params", "1M") == CompareConfig()
    assert settings("--budget", "500Ktokens").budget_tokens == 500_000


@pytest.mark.parametrize(("word", "value"), [("90s", 90), ("10m", 600), ("1h", 3600), ("0.5 min", 30)])
def test_times(word, value):
    assert command.seconds(word) == value


@pytest.mark.parametrize(
    ("word", "value"), [("1M", 10**6), ("250K", 250_000), ("1.5k", 1500), ("1_000", 1000)]
)
def test_counts(word, value):
    assert command.count(word) == value


def test_everything_wrong_is_said_at_once(capsys):
    code = main(
        ["compare", "--budget", "10", "--params", "many", "--mixers", "rnn,lstmm", "--learning-rates", "fast",
         "--seeds", "0", "--contexts", "5,3", "--speed", "3", "--evaluation", "soon", "--batch", "x"]
    )  # fmt: skip
    told = capsys.readouterr().err
    assert code == 2
    for line in (
        "--budget = '10': must be a time with its unit, such as 90s, 10m or 1h",
        "--params = 'many': must be a number such as 250K, 1M or 1000000",
        "mixers = 'lstmm': must be one of rnn, lstm, gru, attention, s6, s4d (did you mean lstm?)",
        "--learning-rates = 'fast': must be numbers with commas between them",
        "seeds = 0: must be at least 1",
        "contexts = [5, 3]: must be positive and rise",
        "--speed: unknown option (did you mean --seeds?)",
        "--evaluation = 'soon': must be a time",
        "--batch = 'x': must be an integer",
    ):
        assert f"quatrain compare: {line}" in told


@pytest.mark.parametrize(
    ("content", "args", "message"),
    [
        (b"", (), "the file is empty"),
        (b"too short", (), "sequence = 256: needs 257 tokens in a row, the training part has 9"),
        (b"x" * 9000, ("--budget", "1000tokens"), "budget_tokens = 1000: must be at least 40960"),
        (b"x" * 9000, ("--params", "7"), "params = 7: no 'rnn' model has so many within 2 %"),
        (b"x" * 9000, ("--threads", "0"), "threads = 0: must be at least 1"),
    ],
)
def test_bad_input_leaves_nothing_behind(tmp_path, capsys, content, args, message):
    source, out = tmp_path / "text", tmp_path / "out"
    source.write_bytes(content)
    assert main(["compare", str(source), "--out", str(out), *args]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_an_unwritable_directory_is_named(text, capsys):
    assert main(["compare", str(text), "--out", "/proc/nowhere"]) == 2
    assert "/proc/nowhere" in capsys.readouterr().err


def test_the_command_from_start_to_end_twice(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    args = ["compare", str(text), "--budget", "1536tokens", "--params", "4K", "--mixers", "rnn,attention",
            "--sequence", "16", "--batch", "4", "--learning-rates", "1e-2", "--contexts", "16,32",
            "--threads", "1"]  # fmt: skip
    assert main(args) == 0
    first = capsys.readouterr()
    (out,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"compare-words\.txt-[0-9a-f]{12}", out.name)
    for name in ("table.md", "records.jsonl", "report.html"):
        assert f"runs/{out.name}/{name}" in first.out
        assert (out / name).stat().st_size > 500
    for line in ("checking that no model sees the future", "calibrating rnn", "testing rnn", "left in all"):
        assert line in first.err
    assert "Test loss" in first.out
    assert "One seed each: a quick look" in re.sub(r"\s+", " ", first.out)
    assert "No model beats the best trivial baseline" in re.sub(r"\s+", " ", first.out)
    assert main(args) == 0
    second = capsys.readouterr()
    assert "was finished before" in second.out
    assert second.out.split("before\n", 1)[1] == first.out
    (about,) = rows_of(out, "comparison")
    assert about["command"].startswith("quatrain compare ")


def test_without_the_extra_there_is_still_a_table(finished, monkeypatch, capsys):
    _, out, _ = finished

    def write(folder):
        raise MissingExtraError("the page needs altair: pip install 'quatrain[report]'")

    monkeypatch.setattr(report, "write", write)
    show(out, again=False)
    told = capsys.readouterr().out
    assert "report:  none: the page needs altair: pip install 'quatrain[report]'" in told
    assert "table.md" in told


# -- the display


def test_plain_lines_show_what_runs_and_how_long(finished):
    _, _, events = finished
    stream = io.StringIO()
    with CompareDisplay(Console(file=stream, width=200), every=0.0) as display:
        for event in events:
            display(event)
    told = stream.getvalue()
    for part in (
        "checking that no model sees the future", "calibrating attention", "1,536 tokens in 24 steps",
        "rnn at learning rate 0.003  step 1/", "tokens/s", "left in all",
        "diverged: step", "seed 1: validation loss", "testing attention", "measuring rnn",
    ):  # fmt: skip
        assert part in told, part
    assert "\x1b" not in told


def test_the_panel_draws_every_event(finished):
    _, _, events = finished
    stream = io.StringIO()
    with CompareDisplay(Console(file=stream, force_terminal=True, width=100)) as display:
        for event in events:
            display(event)
            display.console.print(display._panel())
    assert "training rnn at learning rate 0.003" in stream.getvalue()
