"""Equal training time: how the budget is divided, what is trained, killed and resumed, and what is shown."""

import io
import math
import random
import re
from dataclasses import replace

import pytest
from rich.console import Console
from tests.stopping import stopped_often

from quatrain import records, report
from quatrain.cli import compare as command
from quatrain.cli._comparison import CompareDisplay, show
from quatrain.cli._flags import parse
from quatrain.config.schema import from_dict, to_dict
from quatrain.errors import ConfigError
from quatrain.lab import calibrate, curves, plan, search
from quatrain.lab.calibrate import Speed
from quatrain.lab.compare import compare
from quatrain.lab.config import CompareConfig
from quatrain.lab.plan import Plan

SPEEDS = {
    "rnn": Speed(step_seconds=0.1, forward_seconds=1e-6, peak_memory_bytes=10**8, empty_memory_bytes=10**7),
    "attention": Speed(
        step_seconds=0.2, forward_seconds=1e-6, peak_memory_bytes=10**8, empty_memory_bytes=10**7
    ),
}
ABOUT = {"data_digest": "d", "threads": 1, "models": {}, "calibration_seconds": 1.0, "test_total": 10**6}


def planned(speeds=SPEEDS, **changes):
    config = CompareConfig(mixers=tuple(speeds), **changes)
    return config, plan.make(config, speeds=speeds, **ABOUT)


def spent(config, made):
    """Training seconds of all stages at the calibrated speed."""
    return sum(made.train_seconds(*piece) for piece in search.pieces(config, made).values())


def median_step(path):
    """What a run says its median step took."""
    return 0.08 if path.parent.name.startswith("rnn") else 0.2


# -- the plan


@pytest.mark.parametrize("equal", ["auto", "tokens", "time", "both"])
@pytest.mark.parametrize("seeds", [1, 3])
def test_the_budget_is_all_of_the_training_whatever_is_equal(equal, seeds):
    config, made = planned(budget_seconds=600, equal=equal, seeds=seeds)
    assert 600 - 5 < spent(config, made) <= 600 + 1.5  # a step of every run


def test_equal_time_is_the_mean_of_what_runs_at_equal_tokens_take():
    config, made = planned(budget_seconds=600)
    assert config.parts == ("tokens", "time")
    assert made.time_seconds == pytest.approx(0.15 * made.steps, rel=0.01)
    assert made.time_steps["rnn"] == pytest.approx(1.5 * made.steps, rel=0.01)
    assert made.time_steps["attention"] == pytest.approx(0.75 * made.steps, rel=0.01)
    alike = [made.time_steps[mixer] * SPEEDS[mixer].step_seconds for mixer in SPEEDS]
    assert alike == pytest.approx([made.time_seconds] * 2, rel=0.01)


def test_a_run_of_equal_time_looks_and_saves_as_often():
    _, made = planned(budget_seconds=600)
    fast = made.part("time", "rnn")
    assert made.part("tokens", "rnn") is made
    assert fast.steps == made.time_steps["rnn"]
    assert round(fast.steps / fast.eval_every) == round(made.steps / made.eval_every)
    assert fast.rung_steps == 2 * fast.eval_every
    assert fast.save_every <= fast.eval_every


def test_a_budget_in_tokens_has_no_equal_time_unless_asked():
    tokens = {"budget_seconds": math.inf, "budget_tokens": 100 * 2048.0}
    config, made = planned(**tokens)
    assert config.parts == ("tokens",)
    assert made.time_steps == {}
    config, made = planned(**tokens, equal="both")
    assert (made.steps, made.time_steps) == (100, {"rnn": 150, "attention": 75})
    config, made = planned(**tokens, equal="time")
    assert search.pieces(config, made)["full/rnn/0"] == ("rnn", made.part("time", "rnn").rung_steps, 150)
    assert not any(stage.startswith("time/") for stage in search.pieces(config, made))


def test_a_model_too_slow_for_the_time_is_named():
    slow = {"rnn": SPEEDS["rnn"], "s6": replace(SPEEDS["rnn"], step_seconds=10.0)}
    with pytest.raises(ConfigError, match=r"budget_seconds = 600: s6 makes 12 steps .*; 20 are the least"):
        planned(slow, budget_seconds=600)
    _, made = planned(slow, budget_seconds=1100)
    assert made.time_steps["s6"] >= 20
    assert planned(slow, budget_seconds=600, equal="tokens")[1].steps > 20


def test_a_plan_of_before_is_read():
    values = to_dict(planned(budget_seconds=600)[1])
    del values["time_steps"], values["time_seconds"]
    old = from_dict(Plan, values)
    assert old.time_steps == {}
    assert not any(stage.startswith("time/") for stage in search.pieces(CompareConfig(), replace(old)))


def test_learning_rates_that_agree_in_six_digits_have_names_of_their_own():
    assert search.rung("rnn", 0.003) == "rung/rnn/0.003"
    assert search.rung("rnn", 1e30) == "rung/rnn/1e+30"
    assert search.rung("rnn", 0.1234567) != search.rung("rnn", 0.12345671)


# -- whole comparisons

WORDS = ("state", "rule", "memory", "gate", "token", "scan", "and", "of", "the", "with")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    drawn = random.Random(0)
    path = tmp_path_factory.mktemp("equal") / "words.txt"
    path.write_text("".join(f"{drawn.choice(WORDS)}{drawn.choice('  .')}" for _ in range(7000)))
    return path


@pytest.fixture(autouse=True)
def known_speed(monkeypatch):
    """Calibration and the median step say the same on every machine."""
    monkeypatch.setattr(calibrate, "measure", lambda config, *rest: SPEEDS[config.model.pattern])
    monkeypatch.setattr(curves, "step_seconds", median_step)


def config_of(text, **changes):
    fields = {
        "data": {"source": str(text)}, "mixers": ("rnn", "attention"), "params": 4000, "sequence": 16,
        "batch": 4, "budget_seconds": math.inf, "budget_tokens": 28 * 64.0, "learning_rates": (3e-3, 1e-2),
        "contexts": (16, 32), "evaluation_seconds": 60.0, "equal": "both",
    }  # fmt: skip
    return from_dict(CompareConfig, {**fields, **changes})


def rows_of(out, kind):
    return [row for row in records.read(out / "records.jsonl") if row["kind"] == kind]


def numbers_of(out):
    """Losses, which no clock enters."""
    kept = ("mixer", "lr", "seed", "step", "budget", "loss", "test_loss", "test_pieces", "nats", "gain")
    return [
        {key: row[key] for key in ("kind", *kept) if key in row}
        for row in records.read(out / "records.jsonl")
        if row["kind"] in ("train", "valid", "result", "position", "far")
    ]


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("both") / "out"
    events = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate, "measure", lambda config, *rest: SPEEDS[config.model.pattern])
        patch.setattr(
            curves, "step_seconds", lambda path: 0.08 if path.parent.name.startswith("rnn") else 0.2
        )
        compare(config_of(text), out, events.append, threads=1)
    return out, events


def test_all_train_anew_for_as_many_steps_as_fit_the_same_time(finished):
    out, _ = finished
    results = {(row["mixer"], row["budget"]): row for row in rows_of(out, "result")}
    assert set(results) == {(mixer, part) for mixer in SPEEDS for part in ("tokens", "time")}
    (about,), (pace,) = rows_of(out, "comparison"), rows_of(out, "pace")
    assert about["equal"] == ["tokens", "time"]
    assert about["time_per_model"] == pytest.approx(28 * 0.15)
    assert pace["steps"] == {"rnn": int(28 * 0.15 / 0.08), "attention": int(28 * 0.15 / 0.2 + 1e-9)}
    for mixer, steps in pace["steps"].items():
        tokens, timed = results[mixer, "tokens"], results[mixer, "time"]
        assert tokens["tokens"] == 28 * 64
        assert timed["tokens"] == steps * 64
        assert timed["lr"] == tokens["lr"]
        assert timed["run"] == f"{tokens['run']}-time"
        assert len(timed["test_pieces"]) == len(tokens["test_pieces"]) > 100
        curve = [row for row in rows_of(out, "train") if row["mixer"] == mixer and "budget" in row]
        assert curve[-1]["step"] == steps


def test_speed_is_that_of_the_median_step(finished):
    out, _ = finished
    for row in rows_of(out, "result"):
        assert row["tokens_per_second"] == pytest.approx(64 / (0.08 if row["mixer"] == "rnn" else 0.2))


def test_the_same_data_come_in_the_same_order(finished):
    """Before warm-up ends, the first loss of a run depends on weights and batch alone."""
    out, _ = finished
    first = {
        (row["mixer"], row.get("budget")): row["loss"]
        for row in rows_of(out, "train")
        if row["step"] == 1 and row["lr"] in {r["lr"] for r in rows_of(out, "result")}
    }
    for mixer in SPEEDS:
        assert first[mixer, None] == first[mixer, "time"]


def test_stopped_anywhere_it_ends_with_the_same_numbers(finished, text, tmp_path):
    out = tmp_path / "parts"
    stops = stopped_often(lambda events: compare(config_of(text), out, events, threads=1), 30, 130)
    assert stops >= 2
    assert numbers_of(out) == numbers_of(finished[0])


def test_time_alone_searches_and_trains_at_equal_time(text, tmp_path, capsys):
    compare(config_of(text, equal="time"), tmp_path, threads=1)
    results = {row["mixer"]: row for row in rows_of(tmp_path, "result")}
    assert {row["budget"] for row in results.values()} == {"time"}
    assert results["rnn"]["tokens"] == 42 * 64
    assert results["attention"]["tokens"] == 21 * 64
    show(tmp_path, again=False)
    assert "With equal training time" in " ".join(capsys.readouterr().out.split())
    assert report.timed_table(records.read(tmp_path / "records.jsonl")).rows == ()


def test_rates_that_all_diverge_are_not_trained_anew(text, tmp_path):
    config = config_of(text, mixers=("rnn",), learning_rates=(1e30, 1e31))
    compare(config, tmp_path, threads=1)
    results = rows_of(tmp_path, "result")
    assert [(row["budget"], row["status"]) for row in results] == [
        ("tokens", "diverged"),
        ("time", "diverged"),
    ]
    assert not (tmp_path / "runs" / "rnn-lr1e+30-seed0-time").exists()
    show(tmp_path, again=False)


def test_both_tables_are_shown(finished, capsys):
    out, events = finished
    show(out, again=False)
    told = capsys.readouterr().out
    assert "Equal parameters and tokens" in told
    assert "Equal parameters and training time" in told
    assert "Which to choose:" in told
    table = (out / "table.md").read_text()
    assert table.count("## Equal parameters and") == 2
    stream = io.StringIO()
    with CompareDisplay(Console(file=stream, width=200), every=0.0) as display:
        for event in events:
            display(event)
    assert re.search(r"then 4\S*.s of training for each", stream.getvalue())
    assert re.search(r"rnn at learning rate 0\.\d+, equal time", stream.getvalue())
    assert "testing attention, trained for equal time" in stream.getvalue()
    assert "measuring rnn: loss by position" in stream.getvalue()


def test_flags():
    def settings(*args):
        return command.settings(parse(command.SURFACE, args))

    assert settings("--equal", "time").parts == ("time",)
    assert settings("--context", "4K").context == 4000
    assert settings("--context", "4096").context == 4096
    with pytest.raises(ConfigError, match=r"equal = 'tme': must be one of auto, tokens, time, both"):
        settings("--equal", "tme")
    with pytest.raises(ConfigError, match=r"context = 100: must be more than the 256 tokens of training"):
        settings("--context", "100")
