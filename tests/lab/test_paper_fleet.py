"""Recorded steps and cells that are advanced in turn give what eager runs one after the other give."""

import os
import signal
from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from quatrain import checkpoint, records
from quatrain.config.schema import replace_in
from quatrain.errors import DivergedError
from quatrain.lab.paper import cells, reproduce
from quatrain.lab.paper import recipe as recipes
from quatrain.lab.paper._feed import Drawn, GeneratorFeed
from quatrain.lab.paper.cells import Job
from quatrain.lab.paper.fleet import Fleet
from quatrain.lab.paper.pool import Processes
from quatrain.train import _carry, _graph, optim
from quatrain.train.loop import train

TABLE = """
task = "parity"
title = "tiny"
seeds = 2

[train]
steps = 24
batch = 4
lengths = [2, 4, 7]
look_every = 12
look_sequences = 8
save_every = 8
warmup = 0.25

[test]
lengths = [7]
sequences = 8

[models.lstm]
model = { width = 8, form = "stack" }
learning_rates = [1e-2, 3e-2]

[models.rnn]
model = { width = 8, form = "stack", dropout = 0.3 }

[models.s6]
model = { width = 8, layers = 1, dropout = 0.3 }
learning_rates = [1e-2]

[models.attention]
model = { width = 8, layers = 2, dropout = 0.3, mixer = { attention = { heads = 2 } } }

[models.s4d]
model = { width = 8, layers = 1 }
"""


class Again:
    """In the place of a CUDA graph: what is recorded is done when it is replayed, on the same tensors."""

    made: ClassVar[list["Again"]] = []

    def __init__(self):
        self.replays = 0
        Again.made.append(self)

    def record(self, work):
        self.work = work

    def replay(self):
        self.replays += 1
        self.work()


@pytest.fixture
def recording(monkeypatch):
    monkeypatch.setattr(Again, "made", [])
    monkeypatch.setattr(_graph, "tapes", lambda device, turn: Again)
    return Again.made


def table(tmp_path, text=TABLE, **changes):
    (tmp_path / "tiny.toml").write_text(text)
    return replace_in(recipes.load(str(tmp_path / "tiny.toml")), changes)


def run(recipe, name, out, events=None, stop_at=None, **settings):
    """A cell's training run, with every step in its records."""
    generator = cells.generator_of(recipe)
    job = Job("train", name, recipe.models[name].learning_rates[0], 0)
    config = cells.run_config(recipe, job, generator)
    config = replace(config, train=replace(config.train, log_every=1, **settings))
    data = Drawn(recipe.task, generator, recipe.train)
    train(config, out, events, stop_at, data=data, threads=1)
    return found(out)


def found(out, *kinds):
    """The numbers of a run's records."""
    rows = [row for row in records.read(out / "records.jsonl") if row["kind"] in (kinds or ("step", "eval"))]
    return [row[key] for row in rows for key in ("loss", "lr", "grad_norm", "tokens") if key in row]


def weights(out):
    return checkpoint.read(checkpoint.latest(out)).tensors("model")


def words(folder, count=303):
    for split in ("train", "valid", "test"):
        (folder / f"wiki.{split}.txt").write_text(" ".join("abcde"[n * n % 5] for n in range(count)))
    text = TABLE.replace('"parity"', '"wikitext2"').replace("[2, 4, 7]", "[7]")
    return table(folder, text.replace("form", "tied = true, form") + f'\n[data]\nsource = "{folder}"\n')


@pytest.mark.parametrize("name", ["rnn", "lstm", "s6", "s4d", "attention"])
def test_a_recorded_run_gives_the_losses_of_an_eager_one(name, tmp_path, monkeypatch, recording):
    recipe = table(tmp_path)
    recorded = run(recipe, name, tmp_path / "recorded")
    assert len(recording) == 3, "one for each length"
    assert sum(tape.replays for tape in recording) == 24 - 3 * _graph.WARM
    monkeypatch.undo()
    assert recorded == pytest.approx(run(recipe, name, tmp_path / "eager"), rel=1e-5)
    there = weights(tmp_path / "eager")
    for key, value in weights(tmp_path / "recorded").items():
        torch.testing.assert_close(value, there[key], rtol=1e-4, atol=1e-6)


def test_shapes_beyond_the_most_stay_eager(tmp_path, monkeypatch, recording):
    recipe = table(tmp_path)
    monkeypatch.setattr(_graph, "MOST", 1)
    recorded = run(recipe, "lstm", tmp_path / "recorded")
    assert len(recording) == 1
    monkeypatch.undo()
    assert recorded == pytest.approx(run(recipe, "lstm", tmp_path / "eager"), rel=1e-5)


def test_a_recorded_run_goes_on_where_it_stopped(tmp_path, recording):
    recipe = table(tmp_path)
    whole = run(recipe, "lstm", tmp_path / "whole")
    run(recipe, "lstm", tmp_path / "parts", stop_at=13)
    assert run(recipe, "lstm", tmp_path / "parts") == pytest.approx(whole, rel=1e-5)
    moments = checkpoint.read(checkpoint.latest(tmp_path / "parts")).tensors("optimizer")
    assert {int(value) for name, value in moments.items() if name.endswith(".step")} == {24}


@pytest.mark.parametrize("name", ["lstm", "s6"])
def test_recorded_steps_carry_the_state_to_the_end_of_the_text(name, tmp_path, monkeypatch, recording):
    recipe = words(tmp_path)  # 10 windows of 7 words in each of 4 streams
    recorded = run(recipe, name, tmp_path / "recorded", steps=40)
    assert len(recording) == 2, "the first window, which begins anew, and the others"
    run(recipe, name, tmp_path / "parts", stop_at=15, steps=40)
    parts = run(recipe, name, tmp_path / "parts", steps=40)
    monkeypatch.undo()
    eager = run(recipe, name, tmp_path / "eager", steps=40)
    assert recorded == pytest.approx(eager, rel=1e-5)
    assert parts == pytest.approx(eager, rel=1e-5)
    kept, there = (
        checkpoint.read(checkpoint.latest(tmp_path / out)).tensors("carry") for out in ("recorded", "eager")
    )
    for key, value in kept.items():
        torch.testing.assert_close(value, there[key], rtol=1e-4, atol=1e-6)


def test_without_carrying_on_the_losses_would_differ(tmp_path, monkeypatch):
    """The test above would see a state that is not written: it matters."""
    recipe = words(tmp_path)
    eager = run(recipe, "lstm", tmp_path / "eager")
    monkeypatch.setattr(GeneratorFeed, "loss", lambda self, *args: (before(self, *args)[0], None))
    assert run(recipe, "lstm", tmp_path / "without") != pytest.approx(eager, rel=1e-5)


before = GeneratorFeed.loss


def test_a_recorded_step_that_diverges_changes_nothing(tmp_path, monkeypatch, recording):
    """The loss becomes infinite in a recorded step; the masks are what is tested."""
    recipe, scale = words(tmp_path), [1.0]

    def spoilt(self, *args):
        loss, state = before(self, *args)
        leaves = {name: leaf * scale[0] for name, leaf in _carry.flatten(state).items()}
        return loss * scale[0], _carry.rebuild(state, leaves)

    monkeypatch.setattr(GeneratorFeed, "loss", spoilt)
    kept = {}
    finish = _graph.Recorder.read

    def read(self):
        got = finish(self)
        if scale[0] != 1:
            kept["after"] = snapshot(self)
        return got

    def told(row):
        if row["kind"] == "step" and row["step"] == 9:
            scale[0] = float("inf")

    queue = _graph.Recorder.queue

    def watched(self, step):
        if scale[0] != 1:
            kept["before"] = snapshot(self)
        return queue(self, step)

    monkeypatch.setattr(_graph.Recorder, "read", read)
    monkeypatch.setattr(_graph.Recorder, "queue", watched)
    with pytest.raises(DivergedError, match=r"^step 10: the loss is inf; the gradient of .*step-00000008"):
        run(recipe, "lstm", tmp_path / "out", told)
    assert kept["before"].keys() == kept["after"].keys()
    for name, value in kept["before"].items():
        assert torch.equal(value, kept["after"][name]), name


def snapshot(recorder):
    values = {name: value.detach().clone() for name, value in recorder.model.named_parameters()}
    moments = optim.state_tensors(recorder.optimizer, recorder.model)
    values |= {name: value.clone() for name, value in moments.items()}
    return values | {
        f"state {name}": leaf.clone() for name, leaf in _carry.flatten(recorder.feed.carry[0]).items()
    }


def test_a_step_that_is_finite_the_second_time_goes_through(tmp_path, monkeypatch, recording):
    """Read wrongly once: the eager step takes the place of the recorded one, which was masked."""
    recipe = table(tmp_path, **{"train.lengths": [4]})
    stepped, bad = _graph.Recorder._step, []

    def step(self, inputs, fresh):
        if len(bad) == 5:
            bad.append(1)
            self._found.fill_(float("nan"))
            return
        bad.append(0)
        stepped(self, inputs, fresh)

    monkeypatch.setattr(_graph.Recorder, "_step", step)
    recorded = run(recipe, "rnn", tmp_path / "recorded")
    assert sum(bad) == 1
    monkeypatch.undo()
    assert recorded == pytest.approx(run(recipe, "rnn", tmp_path / "eager"), rel=1e-5)


def test_a_step_that_cannot_be_recorded_is_said_and_run(tmp_path, monkeypatch):
    class Refusing(Again):
        def record(self, work):
            work()
            raise RuntimeError("operation not permitted when stream is capturing\nand more")

    recipe, told = table(tmp_path), []
    eager = run(recipe, "attention", tmp_path / "eager")
    monkeypatch.setattr(_graph, "tapes", lambda device, turn: Refusing)
    monkeypatch.setattr(_graph.Recorder, "_step", lambda self, inputs, fresh: None)
    assert run(recipe, "attention", tmp_path / "out", told.append) == pytest.approx(eager, rel=1e-5)
    notes = [row["text"] for row in told if row["kind"] == "note"]
    assert notes == [
        "steps run kernel by kernel: they cannot be recorded as a CUDA graph: "
        "operation not permitted when stream is capturing"
    ]


# -- the fleet


def quiet(row):
    """Display nothing."""


def numbers(out):
    drop = ("seconds", "train_seconds", "step_seconds", "overhead_seconds")
    rows = [row for row in records.read(out / "records.jsonl") if row["kind"] in ("cell", "tested")]
    kept = [{key: value for key, value in row.items() if key not in drop} for row in rows]
    return sorted(kept, key=lambda row: (row["kind"], row["mixer"], row["lr"], row["seed"]))


@pytest.fixture
def together(monkeypatch):
    """Several cells at a time are advanced in turn, on the CPU too."""
    monkeypatch.setattr(
        reproduce,
        "_pool",
        lambda recipe, out, device, events, count: Fleet(recipe, out, device, events, count),
    )


def test_a_fleet_gives_what_the_cells_give_alone(tmp_path, together, monkeypatch):
    recipe = table(tmp_path)
    order = []

    def told(row):
        if row["kind"] == "step":
            order.append(row["job"].key)

    monkeypatch.setattr(cells, "_LOG_EVERY", 1)
    reproduce.reproduce(recipe, tmp_path / "fleet", told, processes=3)
    assert len(set(order[:6])) == 3, "they take turns"
    assert torch.get_num_threads() >= 1
    monkeypatch.undo()
    monkeypatch.setattr(cells, "_LOG_EVERY", 1)
    reproduce.reproduce(recipe, tmp_path / "alone", quiet)
    assert numbers(tmp_path / "fleet") == numbers(tmp_path / "alone"), "bit for bit"


def test_recorded_runs_of_a_fleet_do_not_touch_each_other(tmp_path, together, monkeypatch, recording):
    recipe = table(tmp_path, seeds=1)
    reproduce.reproduce(recipe, tmp_path / "fleet", quiet, processes=4)
    monkeypatch.undo()
    reproduce.reproduce(recipe, tmp_path / "alone", quiet)
    fleet, alone = numbers(tmp_path / "fleet"), numbers(tmp_path / "alone")
    assert len(fleet) == len(alone)
    for one, other in zip(fleet, alone, strict=True):
        assert one.get("valid_loss", 0.0) == pytest.approx(other.get("valid_loss", 0.0), rel=1e-4)


def test_a_run_that_diverges_takes_only_itself_out(tmp_path, together):
    recipe = table(tmp_path, seeds=1)
    models = {
        "lstm": recipe.models["lstm"],
        "attention": replace(recipe.models["attention"], learning_rates=(1e38,)),
    }
    told = []
    reproduce.reproduce(replace(recipe, models=models), tmp_path / "out", told.append, processes=3)
    ended = {row["job"].name: row["status"] for row in told if row["kind"] == "done"}
    assert ended == {"lstm": "ok", "attention": "diverged"}


def test_a_fault_takes_only_its_cell_out_and_is_tried_again(tmp_path, together, monkeypatch):
    recipe = table(tmp_path, seeds=1)
    draw = GeneratorFeed.draw

    def faulty(self, step):
        if step == 5 and self.model.kinds == ("rnn",):
            raise ValueError("a fault")
        return draw(self, step)

    monkeypatch.setattr(GeneratorFeed, "draw", faulty)
    outcome = reproduce.reproduce(recipe, tmp_path / "out", quiet, names=("lstm", "rnn"), processes=3)
    assert list(outcome.failed.values()) == ["ValueError: a fault"]
    monkeypatch.setattr(GeneratorFeed, "draw", draw)
    outcome = reproduce.reproduce(recipe, tmp_path / "out", quiet, names=("lstm", "rnn"), processes=3)
    assert not outcome.failed


def test_a_signal_saves_every_run_and_the_same_call_goes_on(tmp_path, together, monkeypatch):
    recipe = table(tmp_path)
    monkeypatch.setattr(cells, "_LOG_EVERY", 1)
    sent = []

    def told(row):
        if row["kind"] == "step" and row["step"] == 5 and not sent:
            sent.append(os.kill(os.getpid(), signal.SIGTERM))

    with pytest.raises(KeyboardInterrupt, match=r"everything is saved in .*; the same command goes on"):
        reproduce.reproduce(recipe, tmp_path / "out", told, processes=4)
    saved = [checkpoint.read(checkpoint.latest(path)).step for path in (tmp_path / "out" / "runs").iterdir()]
    assert len(saved) == 4
    assert all(4 <= step <= 6 for step in saved)
    reproduce.reproduce(recipe, tmp_path / "out", quiet, processes=4)
    reproduce.reproduce(recipe, tmp_path / "whole", quiet, processes=1)
    assert numbers(tmp_path / "out") == numbers(tmp_path / "whole")


def test_which_pool_is_taken(tmp_path):
    recipe = table(tmp_path)
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    assert isinstance(reproduce._pool(recipe, tmp_path, gpu, print, 6), Fleet)
    assert isinstance(reproduce._pool(recipe, tmp_path, cpu, print, 2), Processes)


# -- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["s6", "attention", "s4d", "lstm", "rnn"])
@pytest.mark.parametrize("carries", [False, True])
def test_a_graph_gives_the_losses_of_eager_steps(name, carries, tmp_path, monkeypatch):
    recipe = words(tmp_path) if carries else table(tmp_path)
    generator = cells.generator_of(recipe)
    job = Job("train", name, recipe.models[name].learning_rates[0], 0)
    config = cells.run_config(recipe, job, generator)
    config = replace(config, train=replace(config.train, log_every=1))
    data, told = Drawn(recipe.task, generator, recipe.train), []
    train(config, tmp_path / "graph", told.append, data=data, threads=1, device="cuda")
    assert not [row["text"] for row in told if row["kind"] == "note"], "it was recorded"
    train(config, tmp_path / "parts", None, 13, data=data, threads=1, device="cuda")
    train(config, tmp_path / "parts", data=data, threads=1, device="cuda")
    monkeypatch.setattr(_graph, "tapes", lambda device, turn: None)
    train(config, tmp_path / "eager", data=data, threads=1, device="cuda")
    eager = found(tmp_path / "eager")
    assert found(tmp_path / "graph") == pytest.approx(eager, rel=1e-3)
    assert found(tmp_path / "parts") == pytest.approx(eager, rel=1e-3)


@pytest.mark.gpu
def test_a_fleet_on_a_gpu_gives_what_the_cells_give_alone(tmp_path):
    recipe = table(tmp_path)
    reproduce.reproduce(recipe, tmp_path / "fleet", quiet, processes=6, device="cuda")
    reproduce.reproduce(recipe, tmp_path / "alone", quiet, device="cuda")
    fleet, alone = numbers(tmp_path / "fleet"), numbers(tmp_path / "alone")
    assert len(fleet) == len(alone)
    for one, other in zip(fleet, alone, strict=True):
        assert one.get("valid_loss", 0.0) == pytest.approx(other.get("valid_loss", 0.0), rel=1e-2)
