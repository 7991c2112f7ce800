"""The laboratory: windows, baselines, probes, leaks, journal and plan, each against something simple."""

import json
import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quatrain import records
from quatrain.data.tokens import prepare
from quatrain.errors import ConfigError, DataError
from quatrain.lab import calibrate, curves, machine, plan, probes
from quatrain.lab.baselines import Counts, Interpolated, baselines, keys
from quatrain.lab.calibrate import Speed
from quatrain.lab.clock import Clock
from quatrain.lab.config import CompareConfig
from quatrain.lab.journal import Journal
from quatrain.lab.leak import leaks
from quatrain.lab.text import TextTask, score
from quatrain.lab.windows import cut
from quatrain.mixers import MIXERS
from quatrain.model.config import ModelConfig
from quatrain.model.init import initialise
from quatrain.model.lm import LanguageModel

TEXT = b"the cat sat on the mat; the cat ate the rat. " * 300


def tokens_of(text):
    return np.frombuffer(text, dtype=np.uint8)


def tiny(pattern="lstm", **changes):
    model = LanguageModel(
        ModelConfig(pattern=pattern, width=16, layers=max(2, len(pattern.split())), **changes)
    )
    initialise(model, 0)
    return model.eval()


# -- windows


@given(
    total=st.integers(1, 400),
    sequence=st.integers(1, 50),
    limit=st.one_of(st.integers(1, 500), st.just(math.inf)),
)
def test_pieces_are_disjoint_and_as_many_as_allowed(total, sequence, limit):
    pieces = cut(np.zeros(total + 1, dtype=np.uint8), sequence, limit, part="test part")
    positions, context = pieces.positions()
    assert pieces.total == total
    assert len(set(positions.tolist())) == len(positions) == pieces.tokens
    assert positions.min() >= 1
    assert positions.max() <= total
    assert context.max() <= sequence
    if total <= limit:
        assert pieces.tokens == total
    else:
        assert pieces.tokens <= max(limit, sequence)
        assert pieces.tokens > min(limit, total) - 2 * sequence
    first = positions - context
    assert np.array_equal(np.unique(first), pieces.starts)


def test_pieces_say_what_is_too_short():
    with pytest.raises(DataError, match="test part: has 1 tokens; needs at least 2"):
        cut(tokens_of(b"a"), 4, 10, part="test part")
    with pytest.raises(ConfigError, match="sequence = 0"):
        cut(tokens_of(b"abc"), 0, 10, part="test part")


# -- baselines


def witten_bell(text, context, word, vocab):
    """The recursion of the docstring, literally."""
    lower = witten_bell(text, context[1:], word, vocab) if len(context) else 1 / vocab
    k = len(context)
    after = [text[i + k] for i in range(len(text) - k) if tuple(text[i : i + k]) == tuple(context)]
    if not after:
        return lower
    distinct = len(set(after))
    return (after.count(word) + distinct * lower) / (len(after) + distinct)


@settings(max_examples=25, deadline=None)
@given(
    train=st.lists(st.integers(0, 3), min_size=1, max_size=40), test=st.lists(st.integers(0, 3), min_size=2)
)
def test_interpolated_counts_are_witten_bell(train, test):
    train, test = np.array(train), np.array(test)
    pieces = cut(test, 5, math.inf, part="test part")
    positions, context = pieces.positions()
    for order, (loss,) in enumerate(Interpolated(train, 4, [(test, pieces)]).losses(3)):
        exact = [
            -math.log(witten_bell(train, test[at - min(order, seen) : at], test[at], 4))
            for at, seen in zip(positions, context, strict=True)
        ]
        assert loss == pytest.approx(np.mean(exact))


def test_counts_are_those_of_a_counter():
    text = tokens_of(TEXT[:500])
    for order in (0, 1, 3, 7):
        runs = Counter(tuple(text[i : i + order + 1]) for i in range(len(text) - order))
        places = np.arange(order, len(text))
        own, n, distinct = Counts(text, order, 8).of(keys(text, places, order, 8))
        for at in (0, 7, len(places) - 1):
            run = tuple(text[places[at] - order : places[at] + 1])
            same = {other: count for other, count in runs.items() if other[:-1] == run[:-1]}
            assert (own[at], n[at], distinct[at]) == (runs[run], sum(same.values()), len(same))


def test_counts_of_unseen_runs_are_zero():
    counts = Counts(tokens_of(b"ababab"), 1, 8)
    own, n, distinct = counts.of(
        np.array([ord("a") << 8 | ord("z"), ord("z") << 8, 2**16 - 1], dtype=np.uint64)
    )
    assert own.tolist() == [0, 0, 0]
    assert n.tolist() == [3, 0, 0]
    assert distinct.tolist() == [1, 0, 0]


def test_baselines_choose_the_order_on_validation():
    rng = np.random.default_rng(0)
    follow = rng.integers(0, 4, (4, 4))  # the next letter is decided by the last two, nine times in ten
    text = [0, 1]
    for noise in rng.random(20_000):
        text.append(int(noise * 40) if noise < 0.1 else follow[text[-2], text[-1]])
    text = np.array(text, dtype=np.uint8)
    train, valid, test = text[:16_000], text[16_000:18_000], text[18_000:]
    pieces = [(part, cut(part, 64, math.inf, part="part")) for part in (valid, test)]
    found = {base.name: base for base in baselines(train, *pieces, vocab=4)}
    assert set(found) == {"uniform", "unigram", "markov-2"}
    assert found["uniform"].test == math.log(4)
    assert found["markov-2"].test < 0.6 < found["unigram"].test
    every = list(Interpolated(train, 4, pieces).losses())
    assert found["markov-2"].valid == min(valid for valid, _ in every[1:])


def test_many_tokens_of_a_large_vocabulary_fit_into_the_keys():
    text = np.arange(200) % 50_000
    pieces = cut(text, 50, math.inf, part="part")
    losses = list(Interpolated(text, 50_000, [(text, pieces)]).losses())
    assert len(losses) == 4  # 16 bits a token: at most four of them in 64
    with pytest.raises(ConfigError, match="exceed 64 bits"):
        Counts(text, 4, 16)


# -- leaks


@pytest.mark.parametrize("kind", MIXERS)
def test_no_mixer_sees_the_future(kind):
    assert leaks(tiny(kind), 70) == ""


class Leaky(LanguageModel):
    """Adds a little of the next token to each position."""

    strength = 1e-4

    def hidden(self, tokens, *args, **rest):
        x, state = super().hidden(tokens, *args, **rest)
        peek = torch.roll(self.embedding(tokens), -1, 1)
        peek[:, -1] = 0
        return x + self.strength * peek, state


def test_a_look_into_the_future_is_found():
    model = Leaky(tiny().config)
    assert "sees the future" in leaks(model, 40)
    assert model.embedding.weight.dtype == torch.float32  # the model itself is left as it was


def test_a_step_that_disagrees_is_found(monkeypatch):
    model, step = tiny(), LanguageModel.step

    def wrong(self, token, state):
        logits, after = step(self, token, state)
        return logits + 1e-3, after

    monkeypatch.setattr(LanguageModel, "step", wrong)
    assert "one by one" in leaks(model, 20)


def test_nan_counts_as_a_leak():
    model = tiny()
    with torch.no_grad():
        model.backbone.norm.weight.fill_(math.nan)
    assert leaks(model, 20)


# -- probes


@pytest.mark.parametrize("kind", ["lstm", "attention", "s6"])
def test_costs_at_growing_contexts(kind):
    model = tiny(kind)
    found = list(probes.costs(model, torch.randint(256, (1100,)), (16, 64, 1100)))
    assert [cost.context for cost in found] == [16, 64, 1100]
    assert all(cost.step_seconds > 0 and cost.prefill_seconds > 0 for cost in found)
    assert [cost.state_bytes for cost in found] == [
        model.state_bytes(1, context) for context in (16, 64, 1100)
    ]
    assert (found[0].state_bytes == found[2].state_bytes) == (kind != "attention")


def test_costs_stop_when_the_time_is_over():
    found = list(probes.costs(tiny(), torch.randint(256, (4096,)), (16, 4096), seconds=0.0))
    assert [cost.context for cost in found] == [16]


@pytest.mark.parametrize("contexts", [(), (4, 4), (8, 4), (0, 4), (4, 99)])
def test_contexts_must_rise_and_fit(contexts):
    with pytest.raises(ConfigError, match="contexts"):
        list(probes.costs(tiny(), torch.randint(256, (16,)), contexts))


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law(power):
    lengths = [128, 512, 2048]
    assert probes.exponent(lengths, [3e-5 * n**power for n in lengths]) == pytest.approx(power)


def test_an_exponent_needs_two_lengths():
    with pytest.raises(ConfigError, match="two different"):
        probes.exponent([5, 5], [1.0, 2.0])


def test_gradient_norms_are_those_of_finite_differences():
    model = tiny("rnn").double()
    window = torch.randint(256, (1, 9))
    norms = probes.gradient_norms(model, window)
    assert list(norms) == probes.distances(8)
    x = model.embedding(window[:, :-1]).detach()

    def loss(at):
        hidden, _ = model.backbone(at, keep_state=False)
        return torch.nn.functional.cross_entropy(model.logits(hidden[:, -1]), window[:, -1]).item()

    for k in (0, 2, 7):
        parts = []
        for i in range(x.shape[2]):
            moved = torch.zeros_like(x)
            moved[0, -1 - k, i] = 1e-5
            parts.append((loss(x + moved) - loss(x - moved)) / 2e-5)
        assert norms[k] == pytest.approx(math.hypot(*parts), rel=1e-5)


def test_gradient_norms_end_where_a_window_does():
    model = tiny("attention", mixer={"attention": {"window": 3, "heads": 1}})  # two layers see 4 tokens back
    norms = probes.gradient_norms(model, torch.randint(256, (4, 17)))
    assert norms[4] > 0
    assert norms[5] == norms[15] == 0


@given(st.integers(1, 5000))
def test_distances_begin_near_and_reach_the_end(sequence):
    found = probes.distances(sequence)
    assert found[0] == 0
    assert found[-1] == sequence - 1
    assert found == sorted(set(found))
    assert len(found) < 40


# -- the journal


def test_a_journal_keeps_finished_stages_only(tmp_path):
    path = tmp_path / "records.jsonl"
    with Journal(path) as journal:
        journal.finish("one", [("train", {"loss": 1.0})], {"lr": 0.1}, 2.5)
    before = path.read_bytes()
    for torn in (b'{"v":1,"kind":"train","loss":2.0}\n', b'{"v":1,"kind":"tr', b""):
        path.write_bytes(before + torn)
        with Journal(path) as journal:
            assert "one" in journal
            assert "two" not in journal
            assert journal.outcome("one") == {"lr": 0.1}
            assert journal.seconds["one"] == 2.5
        assert path.read_bytes() == before
    with Journal(path) as journal:
        journal.finish("two", [])
    assert [row.get("stage", row["kind"]) for row in records.read(path)] == ["train", "one", "two"]


def test_a_journal_whose_first_stage_was_cut_off_starts_anew(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"v":1,"kind":"comparison"}\n')
    with Journal(path) as journal:
        journal.finish("one", [])
    assert [row["kind"] for row in records.read(path)] == ["done"]


# -- the plan

SPEED = Speed(step_seconds=0.1, forward_seconds=1e-5, peak_memory_bytes=10**8, empty_memory_bytes=10**7)


def planned(config, **changes):
    speeds = dict.fromkeys(config.mixers, SPEED)
    fields = {"data_digest": "d", "threads": 1, "models": {}, "calibration_seconds": 1.0, "test_total": 10**9}
    return plan.make(config, speeds=speeds, **{**fields, **changes})


def test_a_budget_is_spent_on_all_runs():
    config = CompareConfig(mixers=("rnn", "lstm"), budget_seconds=600, seeds=2, equal="tokens")
    made = planned(config)
    # two mixers, two seeds in full, two of three learning rates that stop at a quarter
    spent = 2 * made.steps * (2 + 2 * 0.25) * SPEED.step_seconds
    assert 600 - 0.6 < spent <= 600
    assert made.rung_steps == pytest.approx(0.25 * made.steps, abs=1)
    assert made.rung_steps % made.eval_every == 0
    assert made.save_every <= made.eval_every
    assert made.tokens == made.steps * 2048


def test_a_budget_in_tokens_needs_no_speed():
    config = CompareConfig(budget_seconds=math.inf, budget_tokens=100_000)
    assert planned(config).steps == 100_000 // 2048
    with pytest.raises(
        ConfigError, match=r"budget_tokens = 1000: must be at least 40960, 20 steps of 8 x 256"
    ):
        planned(replace(config, budget_tokens=1000))
    with pytest.raises(ConfigError, match=r"budget_seconds = 3: .*; 20 are the least, which need 1[23] s"):
        planned(CompareConfig(budget_seconds=3, equal="tokens"))


def test_the_test_part_is_sampled_by_the_time_there_is():
    config = CompareConfig(mixers=("rnn",))
    assert planned(config, test_total=5000).test_tokens == 5000
    long = planned(config).test_tokens
    assert 3 * long * SPEED.forward_seconds <= config.evaluation_seconds / 4 + 1e-3
    assert planned(replace(config, evaluation_seconds=0.001)).test_tokens == 16 * 256


def test_models_must_be_within_two_percent():
    config = CompareConfig()
    plan.check_sizes(config, {"rnn": 1000, "lstm": 1020})
    with pytest.raises(ConfigError, match=r"params = 1000000: no models within 2 %.*rnn has 1000, lstm 1021"):
        plan.check_sizes(config, {"rnn": 1000, "lstm": 1021})


def test_a_plan_is_made_once(tmp_path):
    path = tmp_path / "manifest.json"
    made = planned(CompareConfig())
    assert plan.load_or_make(path, None, "d", lambda: made) == made
    assert plan.load_or_make(path, 1, "d", lambda: pytest.fail("made twice")) == made
    with pytest.raises(ConfigError, match=r"threads = 2: the comparison in .* began with 1"):
        plan.load_or_make(path, 2, "d", lambda: made)
    with pytest.raises(DataError, match="not this one"):
        plan.load_or_make(path, 1, "e", lambda: made)
    values = json.loads(path.read_text())
    for damaged in ("{", json.dumps(values | {"version": 2}), json.dumps(values | {"steps": "many"}), "[]"):
        path.write_text(damaged)
        with pytest.raises(DataError, match="is no plan of a comparison"):
            plan.load_or_make(path, 1, "d", lambda: made)


def test_every_rule_of_a_comparison_is_named_at_once():
    wrong = {
        "mixers": ("rnn", "lstmm", "rnn"),
        "params": 0,
        "seeds": -1,
        "budget_tokens": 5.0,
        "learning_rates": (1.0, 0.5, 0.0),
        "rung": 0.0,
        "contexts": (),
        "evaluation_seconds": math.inf,
    }
    with pytest.raises(ConfigError) as error:
        CompareConfig(**wrong)
    lines = str(error.value).splitlines()
    assert {line.split(" = ")[0] for line in lines} == set(wrong)
    assert "mixers = 'lstmm': must be one of rnn, lstm, gru, attention, s6, s4d (did you mean lstm?)" in lines


def test_patterns_are_mixers_too():
    assert CompareConfig(mixers=(" s6  attention ",)).mixers == ("s6 attention",)


def test_the_clock_follows_what_was_seen():
    config = CompareConfig(mixers=("rnn",), evaluation_seconds=100.0)
    made = planned(config)
    clock = Clock(config, made, {"a": ("rnn", 0, 100), "b": ("rnn", 0, 50)}, ["test"])
    rest = clock.left("", 0.0) - 15.0
    assert 0 < rest < 100
    assert clock.left("a", 0.5) == pytest.approx(10.0 + rest)
    clock.saw(1.0, 2.0)
    assert clock.left("a", 0.5) == pytest.approx(20.0 + rest)
    clock.done("a")
    clock.done("test")
    assert clock.left("b", 1.0) == 0.0


def test_curves_are_thinned_and_cut(tmp_path):
    path = tmp_path / "records.jsonl"
    with records.Writer(path) as writer:
        for step in range(1, 1001):
            writer.write("step", step=step, tokens=8 * step, loss=float(step), seconds=step / 10)
            if step % 250 == 0:
                writer.write("eval", step=step, tokens=8 * step, nats=1.0)
    rows = curves.rows(path, {"mixer": "rnn"}, 250, 998, 1000)
    train = [row for kind, row in rows if kind == "train"]
    assert [row["step"] for kind, row in rows if kind == "valid"] == [500, 750]
    assert [row["step"] for row in train] == [*range(255, 996, 5), 998]
    assert train[0]["loss"] == np.mean(range(251, 256))
    assert train[-1]["loss"] == 997.0  # of 996, 997, 998
    assert curves.seconds(path) == 100.0


# -- machine and calibration


def test_the_machine_is_described():
    found = machine.machine(3)
    assert found["threads"] == 3
    assert found["memory_bytes"] > 2**28
    assert found["cores"] >= 1
    assert set(machine.versions()) == {"quatrain", "torch", "python"}


def test_the_commit_is_that_of_this_checkout(monkeypatch, tmp_path):
    asked = subprocess.run(("git", "rev-parse", "HEAD"), capture_output=True, text=True, check=False)
    found = machine.commit()
    assert found == "" or found.split("-")[0] == asked.stdout.strip()
    subprocess.run(("git", "init", "-q", str(tmp_path)), check=False)
    monkeypatch.setattr(
        machine, "__file__", str(tmp_path / "machine.py")
    )  # installed in somebody's repository
    assert machine.commit() == ""


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    (folder / "text.txt").write_bytes(TEXT)
    config = CompareConfig(mixers=("rnn",), params=5000, sequence=32, batch=4)
    return TextTask(config, prepare(str(folder / "text.txt"), folder / "data"))


def test_calibration_trains_in_a_process_of_its_own(task, tmp_path):
    speed = calibrate.measure(task.trial(task.model("rnn")), task.tokens, tmp_path, 1)
    assert 0 < speed.step_seconds < 10
    assert 0 < speed.forward_seconds < speed.step_seconds
    assert speed.peak_memory_bytes >= speed.empty_memory_bytes > 2**20
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        (
            "import os; os.kill(os.getpid(), 9)",
            ConfigError,
            "mixers = 'rnn': its calibration was killed by signal 9",
        ),
        (
            "raise ValueError('no such luck')",
            RuntimeError,
            "calibration of rnn failed: ValueError: no such luck",
        ),
    ],
)
def test_a_calibration_that_fails_says_so(task, tmp_path, monkeypatch, code, error, message):
    real = subprocess.run
    monkeypatch.setattr(
        calibrate.subprocess, "run", lambda command, **rest: real((sys.executable, "-c", code), **rest)
    )
    with pytest.raises(error, match=message):
        calibrate.measure(task.trial(task.model("rnn")), task.tokens, tmp_path, 1)
    (tmp_path / ".calibration-x").mkdir()
    calibrate.clean(tmp_path)
    assert list(tmp_path.iterdir()) == []


# -- the task


def test_a_score_is_the_mean_over_all_tokens(task):
    model = LanguageModel(task.model("rnn"))
    pieces = cut(task.test, 32, math.inf, part="test part")
    exact = 0.0
    with torch.no_grad():
        for start, length in zip(pieces.starts, pieces.lengths, strict=True):
            window = torch.from_numpy(task.test[start : start + length + 1].astype(np.int64))[None]
            logits, _ = model(window[:, :-1])
            exact += torch.nn.functional.cross_entropy(logits[0], window[0, 1:], reduction="sum").item()
    assert score(model, task.test, pieces, 4) == pytest.approx(exact / pieces.total, rel=1e-5)


def test_what_the_task_gives_to_the_probes(task):
    assert task.context(20_000).shape == (20_000,)
    windows = task.gradient_windows()
    assert windows.shape == (124, 33)
    (sample,) = task.samples(LanguageModel(task.model("rnn")))
    assert sample["prompt"]
    assert sample["text"]


@pytest.mark.parametrize(("sequence", "part"), [(20_000, "training part"), (700, "validation part")])
def test_a_text_must_hold_a_window_in_every_part(task, sequence, part):
    with pytest.raises(DataError, match=f"sequence = {sequence}: needs {sequence + 1} tokens.* {part} has"):
        TextTask(CompareConfig(sequence=sequence), task.tokens)
