"""Cells of a paper's table: trained, tested, resumed, and failures shown as failures."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from quatrain import records
from quatrain.checkpoint import latest, read
from quatrain.cli._reproduction import show
from quatrain.config.schema import replace_in, to_dict
from quatrain.errors import ConfigError
from quatrain.lab.claims import recorded
from quatrain.lab.paper import cells
from quatrain.lab.paper import recipe as recipes
from quatrain.lab.paper._score import Score, add, score
from quatrain.lab.paper.cells import Job
from quatrain.lab.paper.copy_memory import CopyMemory
from quatrain.lab.paper.induction_heads import InductionHeads
from quatrain.lab.paper.metric import best_rate
from quatrain.lab.paper.recipe import Recipe
from quatrain.lab.paper.reproduce import Outcome, _is_held, forecast, reproduce
from quatrain.model.config import ModelConfig
from quatrain.model.sequence import build
from quatrain.report.reproduction import Model, reproduction, spread
from quatrain.train._signals import Interrupted, StopSignals
from quatrain.train.run_dir import LOCK

TINY = """
task = "parity"
title = "tiny"
seeds = 2

[train]
steps = 40
batch = 8
lengths = [1, 8]
look_every = 20
look_sequences = 16
save_every = 4

[test]
lengths = [8, 12]
sequences = 16

[models.lstm]
model = { width = 8, form = "stack" }
learning_rates = [1e-2, 3e-2]
target = { least = 0.2 }
published = [{ value = 1.0, source = "a paper, table 1" }]

[models.rnn]
model = { width = 8, form = "stack" }
learning_rates = [1e-3]
longest = 8
why = "to see a limit"
"""


def tiny(tmp_path: Path, text: str = TINY) -> Recipe:
    file = tmp_path / "tiny.toml"
    file.write_text(text)
    return recipes.load(str(file))


def run(recipe, out, **arguments):
    told = []
    outcome = reproduce(recipe, out, told.append, **arguments)
    return outcome, told


def numbers(out):
    """What a run found, without times."""
    drop = ("seconds", "train_seconds", "step_seconds", "overhead_seconds")
    rows = [row for row in records.read(out / "records.jsonl") if row["kind"] in ("cell", "tested")]
    kept = [{key: value for key, value in row.items() if key not in drop} for row in rows]
    return sorted(
        kept, key=lambda row: (row["kind"], row["mixer"], row["lr"], row["seed"], row.get("length", 0))
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(tiny(folder), folder / "out")
    return folder / "out"


def test_a_table(whole, tmp_path):
    rows = list(records.read(whole / "records.jsonl"))
    found = [(row["mixer"], row["lr"], row["seed"]) for row in rows if row["kind"] == "cell"]
    chosen = next(row["lr"] for row in rows if row["kind"] == "tested" and row["mixer"] == "lstm")
    merits = {row["lr"]: row["merit"] for row in rows if row["kind"] == "cell" and row["seed"] == 0}
    assert merits[chosen] == min(merits[lr] for lr in (1e-2, 3e-2)), "chosen on validation"
    assert sorted(found) == sorted(
        [("lstm", 1e-2, 0), ("lstm", 3e-2, 0), ("lstm", chosen, 1), ("rnn", 1e-3, 0), ("rnn", 1e-3, 1)]
    )
    tested = [(row["mixer"], row["length"]) for row in rows if row["kind"] == "tested"]
    assert sorted(tested) == [("lstm", 8)] * 2 + [("lstm", 12)] * 2 + [("rnn", 8)] * 2
    shown = reproduction(rows)
    lstm, rnn = shown.rows
    assert (lstm[0], lstm[3], lstm[-3:]) == ("lstm", "2", ("100 %", ">= 0.2", "reached"))
    assert rnn[4].endswith(" at 8")
    assert shown.about[-1] == "Ours: token accuracy, at 12; mean (range) over seeds; a single seed has none."
    alone = reproduction(rows, seeds=1)
    assert alone.about[-1] == "Ours: token accuracy, at 12; one seed each, so without an interval."
    assert all("\N{PLUS-MINUS SIGN}" not in row[4] for row in alone.rows)
    assert rnn[-1] == ""
    assert "| 12 |" in shown.markdown
    assert "rnn: not tested beyond 8 steps: to see a limit" in shown.notes


def test_equal_rates_are_told_apart_by_a_rule():
    """Cells end in any order; what is trained, tested and shown is of the same one."""
    solved = {"merit": 0.0, "valid_loss": 0.0}
    assert best_rate({2e-3: solved, 1e-3: solved}) == best_rate({1e-3: solved, 2e-3: solved}) == 1e-3
    assert best_rate({2e-3: solved, 1e-3: {"merit": 0.0, "valid_loss": 0.1}}) == 2e-3
    assert best_rate({}) is None


def test_a_finished_table_is_only_shown(whole, tmp_path):
    before = (whole / "records.jsonl").read_bytes()
    outcome, _ = run(tiny(tmp_path), whole)
    assert outcome.again
    assert (whole / "records.jsonl").read_bytes() == before


def test_seeds_and_models_may_be_added(whole, tmp_path):
    recipe = tiny(tmp_path)
    run(recipe, tmp_path / "out", names=("rnn",), seeds=1)
    run(recipe, tmp_path / "out")
    assert numbers(tmp_path / "out") == numbers(whole)


def test_the_table_of_a_directory_keeps_its_other_models(whole, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    show(Outcome(out, {}, True), ("rnn",), 0)
    assert "lstm" not in capsys.readouterr().out
    assert "| lstm |" in (out / "table.md").read_text("utf-8")


def test_seeds_wait_for_a_choice_of_rates_alone(tmp_path):
    class Seen(Exception):
        pass

    def told(row):
        if row["kind"] == "plan":
            raise Seen(row["left"])

    with pytest.raises(Seen) as seen:
        reproduce(tiny(tmp_path), tmp_path / "out", told)
    assert seen.value.args == (4,)  # two rates of the LSTM, two seeds of the RNN


def test_killed_processes_end_and_the_same_call_goes_on(whole, tmp_path):
    """SIGKILL to the command alone: its two processes end with it, and what they had saved is used."""
    recipe, out = tiny(tmp_path), tmp_path / "out"
    command = [sys.executable, "-m", "quatrain", "reproduce", "tiny.toml", "--out", "out", "--processes", "2"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=tmp_path, **quiet) as process:
        while process.poll() is None and len(list(out.glob("runs/*/checkpoints/step-*"))) < 2:
            time.sleep(0.01)
        assert process.poll() is None, "it had ended before it could be killed"
        process.send_signal(signal.SIGKILL)
    while any(_is_held(lock) for lock in out.glob(f"runs/*/{LOCK}")):  # its processes notice in moments
        time.sleep(0.01)
    begun = [read(newest).step for run in out.glob("runs/*") if (newest := latest(run))]
    assert begun
    resumed = []

    def told(row):
        resumed.extend([row["step"]] if row["kind"] == "resume" else [])

    reproduce(recipe, out, told)
    assert sorted(resumed) == sorted(step for step in begun if step < recipe.train.steps)
    assert numbers(out) == numbers(whole)


def test_a_second_signal_cuts_saving_short_only_where_nobody_waits():
    """A signal to a whole group, as `timeout` sends it, reaches a worker twice: its parent asks it too."""
    with StopSignals(patient=True) as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGTERM
    with StopSignals():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_saves_and_says_how_to_go_on(tmp_path):
    recipe = tiny(tmp_path)
    count = 0

    def told(row):
        nonlocal count
        count += row["kind"] == "eval"
        if count == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"everything is saved in .*; the same command goes on"):
        reproduce(recipe, tmp_path / "out", told)
    run(recipe, tmp_path / "out")


def test_a_cell_that_diverges_is_shown_as_failed(tmp_path):
    recipe = tiny(tmp_path, TINY.replace("lengths = [1, 8]", "lengths = [4]"))
    recipe = replace_in(recipe, {"models.lstm.learning_rates": [1e38], "test.lengths": [4]})
    attention = {"width": 8, "layers": 1, "mixer": {"attention": {"heads": 2}}}
    model = replace(
        recipe.models["lstm"], model={"pattern": "attention", **attention}, learning_rates=(1e38,)
    )
    recipe = replace(recipe, models={"attention": model})
    outcome, told = run(recipe, tmp_path / "out")
    done = [row for row in told if row["kind"] == "done"]
    assert [row["status"] for row in done] == ["diverged"]
    shown = reproduction(records.read(outcome.out / "records.jsonl"))
    assert shown.rows[0][4] == "failed"
    assert shown.rows[0][-1] == "failed"
    assert "attention: learning rate 1e+38, seed 0: diverged: step" in shown.notes[0]


def test_a_cell_that_fails_is_tried_again_by_the_next_call(tmp_path, monkeypatch):
    recipe = tiny(tmp_path)
    true = cells.score

    def broken(model, generator, split, **arguments):
        if arguments["length"] == 12:
            raise MemoryError("no room")
        return true(model, generator, split, **arguments)

    monkeypatch.setattr(cells, "score", broken)
    outcome, _ = run(recipe, tmp_path / "out", seeds=1)
    assert list(outcome.failed.values()) == ["no room"]
    rows = list(records.read(outcome.out / "records.jsonl"))
    shown = reproduction(rows, seeds=1, failed=outcome.failed)
    assert shown.rows[0][-1] == "failed"
    assert any("tested at 12: failed: no room" in note for note in shown.notes)
    assert reproduction(rows, seeds=1).rows[0][-1] == "unfinished"
    monkeypatch.setattr(cells, "score", true)
    again, _ = run(recipe, tmp_path / "out", seeds=1)
    assert not again.failed
    rows = list(records.read(again.out / "records.jsonl"))
    assert reproduction(rows, seeds=1).rows[0][-1] == "reached"


def test_a_model_that_sees_the_future_gets_no_number(tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "leaks", lambda model, steps: "the prediction at position 3 sees the future")
    outcome, _ = run(tiny(tmp_path), tmp_path / "out", names=("rnn",), seeds=1)
    rows = list(records.read(outcome.out / "records.jsonl"))
    assert not [row for row in rows if row["kind"] == "tested"]
    shown = reproduction(rows, names=("rnn",), seeds=1)
    assert shown.rows[0][4] == "refused"
    assert "sees the future, not tested" in shown.notes[0]


def test_another_recipe_is_refused(whole, tmp_path):
    before = (whole / "records.jsonl").read_bytes()
    with pytest.raises(
        ConfigError, match=r"holds a run with other settings \(train.batch = 8 there, 4 here\)"
    ):
        run(replace_in(tiny(tmp_path), {"train.batch": 4}), whole)
    other = replace(tiny(tmp_path), task="dyck")
    with pytest.raises(ConfigError, match=r"holds the task 'parity', not 'dyck'; choose another$"):
        run(other, whole)
    with pytest.raises(ConfigError, match=r"holds settings as published, asked for are reduced settings$"):
        run(replace(tiny(tmp_path), reduced="less"), whole)
    assert (whole / "records.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"test.lengths": [0]}, "length = 0: must be at least 1 in Parity"),
        ({"task": "modular_arithmetic", "test.lengths": [8]}, "length = 8: must be odd"),
        ({"data.kinds": 3}, "data.kinds = 3: unknown key"),
        ({"models.lstm.model": {"widht": 3}}, "models.lstm.model.widht = 3: unknown key"),
    ],
)
def test_a_recipe_that_cannot_run_leaves_nothing(change, line, tmp_path):
    with pytest.raises(ConfigError, match=line):
        run(replace_in(tiny(tmp_path), change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_results_of_a_run_ship_as_they_are(whole, tmp_path, monkeypatch):
    folder = Path(__file__).parents[2] / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    paper = runpy.run_path(str(folder / "paper.py"))
    rows = paper["results"](list(records.read(whole / "records.jsonl")))
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    keys = ("task", "model", "mixer", "metric", "value", "at", "length", "seed", "params", "reduced", "date")

    def kept(found):
        return [{key: row[key] for key in keys} for kind, row in found if kind == "score"]

    assert kept(recorded.rows_of(tmp_path / "a.jsonl")) == kept(recorded.from_run(whole))
    assert len(rows) == 6
    told = list(records.read(whole / "records.jsonl"))
    told[0]["command"] = "quatrain reproduce parity --data /home/me/digits.npz --out runs/parity"
    assert paper["results"](told)[0]["command"] == (
        "quatrain reproduce parity --data digits.npz --out runs/parity"
    )


# -- scoring


@pytest.mark.parametrize("kind", ["rnn", "lstm", "s6", "s4d", "attention"])
def test_reading_in_pieces_gives_the_same_numbers(kind):
    torch.manual_seed(0)
    task = CopyMemory(data=3, symbols=4)
    shape = {"task": "tag", "vocab": task.vocab, "outputs": task.outputs}
    model = build(ModelConfig(width=16, layers=2, pattern=kind, **shape)).eval()
    model.head.weight.data.mul_(50)  # answers that differ from step to step
    batch = task.batch(0, 1, "test", 6, 40)
    found = []
    for chunk in (10_000, 6 * 7):
        total = Score(False)
        with torch.no_grad():
            add(total, model, task, batch, chunk)
        found.append(total.as_row())
    assert found[0].pop("loss") == pytest.approx(found[1].pop("loss"), rel=1e-4)
    assert found[0] == found[1]
    output, _ = model(batch.inputs)
    right = output.argmax(2)[:, -3:] == batch.targets[:, -3:]
    assert found[0]["token_accuracy"] == pytest.approx(right.float().mean().item())
    assert found[0]["sequence_accuracy"] == pytest.approx(right.all(1).float().mean().item())


def test_long_sequences_need_no_more_memory():
    task = InductionHeads()
    model = build(ModelConfig(width=8, layers=1, pattern="s6", task="tag", vocab=16, outputs=16))
    read = []
    hidden = model.hidden
    model.hidden = lambda inputs, *rest, **more: read.append(inputs.shape) or hidden(inputs, *rest, **more)
    score(model, task, "test", seed=0, length=2**15, sequences=2, chunk=2**11)
    assert {shape[0] * shape[1] for shape in read} == {2**11}
    assert sum(shape[0] * shape[1] for shape in read) == 2**16


def test_words_go_on_where_the_last_batch_ended(tmp_path):
    """A killed run of a text carries the state on; attention, which begins anew, has none."""
    for split in ("train", "valid", "test"):
        (tmp_path / f"wiki.{split}.txt").write_text(" ".join("abcde"[n * n % 5] for n in range(300)))
    text = TINY.replace('"parity"', '"wikitext2"').replace("[1, 8]", "[6]").replace("[8, 12]", "[6, 500]")
    text = text.replace("sequences = 16\n\n[models", 'sequences = 99\nmetric = "perplexity"\n\n[models')
    text = text.replace("[models.rnn]", "[models.attention]").replace(
        "{ width = 8, form", "{ width = 8, tied = true, form"
    )
    recipe = tiny(tmp_path, f'{text}\n[data]\nsource = "{tmp_path}"\n')
    recipe = replace_in(recipe, {"models.attention.model": {"width": 8}})
    run(recipe, tmp_path / "out", seeds=1)
    rows = list(records.read(tmp_path / "out" / "records.jsonl"))
    shown = reproduction(rows, seeds=1)
    assert 1 < float(shown.rows[0][4]) < 10
    assert {row["sequences"] for row in rows if row["kind"] == "tested"} == {1, 50}
    saved = read(
        latest(tmp_path / "out" / "runs" / "lstm-lr0.01-seed0")
        or latest(tmp_path / "out" / "runs" / "lstm-lr0.03-seed0")
    )
    assert saved.meta["carried"]
    assert not read(latest(tmp_path / "out" / "runs" / "attention-lr0.001-seed0")).meta["carried"]


# -- recipes and the command


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """What tasks that read a file can read: a text, digits."""
    folder = tmp_path_factory.mktemp("source")
    for split in ("train", "valid", "test"):
        (folder / f"wiki.{split}.txt").write_text(" ".join("abcde"[n * n % 5] for n in range(3000)))
    random = np.random.default_rng(0)
    digits = {"x": random.integers(0, 256, (60, 784), np.uint8), "y": random.integers(0, 10, 60)}
    np.savez(folder / "digits.npz", **digits)
    clips = {str(n): random.integers(-9, 9, 400, np.int16) for n in range(20)}
    np.savez(folder / "clips.npz", **clips)
    found = {"sequential_mnist": "digits.npz", "raw_audio": "clips.npz", "wikitext2": "."}
    return {name: str(folder / file) for name, file in found.items()}


@pytest.mark.parametrize("name", recipes.names())
@pytest.mark.parametrize("size", ["", *recipes.SIZES])
def test_every_recipe_can_run(name, size, source):
    recipe = recipes.load(name, reduced=size, source=source.get(name, ""))
    cells.check(recipe)
    assert recipe.title
    assert recipe.source
    assert recipe.gpu == (size != "cpu"), "only what is reduced to a CPU is for one"
    assert bool(recipe.reduced) == bool(size)
    for model in recipe.models.values():
        assert all(item.source.startswith("arXiv:") for item in model.published)
    assert to_dict(recipe)


def test_four_models_of_words_have_one_size():
    recipe = recipes.load("wikitext2", source="FILE")
    shapes = {
        name: ModelConfig(**{"pattern": name, **recipe.models[name].model}, vocab=33_278)
        for name in recipe.models
    }
    with torch.device("meta"):
        sizes = {name: sum(p.numel() for p in build(shape).parameters()) for name, shape in shapes.items()}
    twice = sizes.pop("attention-2p")
    assert max(sizes.values()) < 1.02 * min(sizes.values())
    assert twice == pytest.approx(2 * sizes["s6"], rel=0.02)


REDUCED = f"""{TINY}
[reduced]
seeds = 1

[reduced.gpu]
says = "half of the steps"
train = {{ steps = 20 }}

[reduced.gpu.models.lstm]
seeds = 3
"""


def test_what_is_reduced_depends_on_the_device(tmp_path):
    file = tmp_path / "own.toml"
    file.write_text(REDUCED)
    plain, cpu, gpu = (recipes.load(str(file), reduced=size) for size in ("", "cpu", "gpu"))
    assert [(one.train.steps, one.seeds, one.reduced) for one in (plain, cpu, gpu)] == [
        (40, 2, ""),
        (40, 1, "smaller settings"),
        (20, 1, "half of the steps"),
    ]
    assert [gpu.runs("lstm"), gpu.runs("rnn"), gpu.runs("lstm", 2)] == [3, 1, 2]
    file.write_text(REDUCED.replace("[reduced]\nseeds = 1", ""))
    with pytest.raises(ConfigError, match="has no reduced variant for a CPU, only for a GPU; leave --red"):
        recipes.load(str(file), reduced="cpu")
    file.write_text(TINY)
    with pytest.raises(ConfigError, match="task = 'parity': has no reduced variant; leave --reduced out"):
        recipes.load(str(file), reduced="gpu")
    file.write_text(REDUCED.replace("reduced.gpu", "reduced.gpus"))
    with pytest.raises(ConfigError, match=r"gpus = .*: unknown key"):
        recipes.load(str(file), reduced="cpu")


def test_models_have_their_own_numbers_of_seeds(tmp_path):
    recipe = tiny(tmp_path)
    recipe = replace_in(recipe, {"models.rnn.seeds": 1, "models.lstm.learning_rates": [1e-2]})
    run(recipe, tmp_path / "out")
    rows = list(records.read(tmp_path / "out" / "records.jsonl"))
    cells_ = sorted((row["mixer"], row["seed"]) for row in rows if row["kind"] == "cell")
    assert cells_ == [("lstm", 0), ("lstm", 1), ("rnn", 0)]
    assert [row[3] for row in reproduction(rows).rows] == ["2", "1"]
    assert [row[3] for row in reproduction(rows, seeds=2).rows] == ["2", "1 of 2"]


def test_what_a_cpu_would_take():
    recipe = recipes.load("parity")
    recipe = replace_in(recipe, {"train.batch": 2})
    assert forecast(recipe, ("rnn",), 1, steps=1) > 100
    assert Job("train", "rnn", 1e-3, 0).says == "rnn, learning rate 0.001, seed 0"


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["paritty"], "task = 'paritty': must be one of selective_copying, .*did you mean parity"),
        (["parity", "--mixers", "lstn"], r"mixers = 'lstn': must be of .*\(did you mean lstm\?\)"),
        (["parity", "--seeds", "0"], "--seeds = 0: must be at least 1"),
        (["parity", "--mixers", ","], "--mixers = ',': must name at least one"),
        (["parity", "--out", ""], "--out = '': must name a directory"),
        (["parity", "--processes", "x"], "--processes = 'x': must be an integer"),
        (["nowhere.toml"], "nowhere.toml: No such file"),
        (
            ["sequential_mnist", "--device", "cpu"],
            "data.source = '': must name the file of digits; give --data",
        ),
        (["parity", "--reduced", "--device", "gpu"], "device = 'gpu': must be one of auto, cpu, cuda"),
    ],
)
def test_wrong_arguments_are_one_line(args, line, tmp_path, monkeypatch, capsys):
    import re

    from quatrain import cli

    monkeypatch.chdir(tmp_path)
    assert cli.main(["reproduce", *args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert re.search(line, err), err
    assert not list(tmp_path.iterdir())


def test_a_recipe_of_an_unknown_task_suggests_one(tmp_path):
    with pytest.raises(ConfigError, match=r"task = 'partity': must be one of .*\(did you mean parity\?\)"):
        tiny(tmp_path, TINY.replace('"parity"', '"partity"'))


def test_without_a_name_the_tasks_are_listed(capsys):
    from quatrain import cli

    assert cli.main(["reproduce"]) == 0
    out, _ = capsys.readouterr()
    assert all(name in out for name in recipes.names())


def test_a_recipe_for_a_gpu_says_what_a_cpu_takes(monkeypatch, capsys, tmp_path):
    from quatrain import cli
    from quatrain.lab.paper import reproduce as module

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(module, "forecast", lambda *_: 7300.0)
    assert cli.main(["reproduce", "parity"]) == 2
    _, err = capsys.readouterr()
    assert "needs a GPU and finds none" in err
    assert "2 h 01 min; give --reduced (quatrain reproduce parity --reduced)" in err


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((1.0, 1.0, 1.0), "100 %"),
        ((0.99996,), "99.99 %"),
        ((0.5, 0.75), "62.5 % (50.0 to 75.0)"),
        ((0.5, 0.75, 1.0), "75.0 % (50.0 to 100) \N{PLUS-MINUS SIGN} 62"),
        ((0.0, 0.625, 1.0), "54.2 % (0.0 to 100) \N{PLUS-MINUS SIGN} 126"),
    ],
)
def test_numbers_say_how_sure_they_are(values, text):
    by_length = {8: {seed: {"token_accuracy": value} for seed, value in enumerate(values)}}
    model = Model("lstm", 1, 1e-3, len(values), by_length)
    number = model.number([8], "token_accuracy")
    assert number is not None
    assert spread(number, "token_accuracy") == text
