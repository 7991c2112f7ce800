"""Training: a run that is stopped, killed or damaged ends as an uninterrupted one, or says why it cannot."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from quatrain import checkpoint, records
from quatrain.config.schema import from_dict
from quatrain.config.toml import load_toml
from quatrain.errors import ConfigError, DataError, DivergedError
from quatrain.train import optim
from quatrain.train._signals import Interrupted
from quatrain.train.config import RunConfig, TrainConfig
from quatrain.train.loop import train
from quatrain.train.validate import Validation

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "words.txt"
    draw = random.Random(3)
    path.write_text(" ".join(draw.choice(["the", "cat", "sat", "on", "a", "mat"]) for _ in range(1500)))
    return path


def config_of(text: Path, model=None, **settings) -> RunConfig:
    return from_dict(
        RunConfig,
        {
            "data": {"source": str(text)},
            "model": {"width": 16, "layers": 2, "pattern": "lstm"} | (model or {}),
            "train": {
                "steps": 12,
                "sequence": 16,
                "batch_tokens": 64,
                "eval_every": 4,
                "eval_tokens": 128,
                "save_every": 3,
            }
            | settings,
        },
    )


def numbers_of(out: Path) -> tuple[list, dict]:
    """Every loss, gradient norm and validation result, and the last weights and moments."""
    rows = [
        (row["kind"], row["step"], row.get("loss"), row.get("grad_norm"), row.get("nats"))
        for row in records.read(out / "records.jsonl")
        if row["kind"] in ("step", "eval")
    ]
    saved = checkpoint.read(checkpoint.latest(out))
    return rows, {**saved.tensors("model"), **saved.tensors("optimizer")}


def assert_same_run(out: Path, whole: Path) -> None:
    rows, tensors = numbers_of(out)
    wanted, weights = numbers_of(whole)
    assert rows == wanted
    assert tensors.keys() == weights.keys()
    for name, value in weights.items():
        assert torch.equal(tensors[name], value), name


WAYS = {
    "plain": ({}, {}),
    "hybrid": ({"pattern": "s6 attention s4d", "layers": 3, "dropout": 0.2}, {}),
    "carried": ({"form": "stack", "dropout": 0.3}, {"carry_state": True, "accumulate": 2}),
    "carried window": (
        {"pattern": "attention s6", "mixer": {"attention": {"heads": 2, "window": 8}}},
        {"carry_state": True},
    ),
    "half": ({"pattern": "rnn s6", "checkpoint_layers": True}, {"dtype": "bfloat16", "clip": 0.5}),
    "recurrent dropout": (
        {"pattern": "lstm gru", "mixer": {kind: {"recurrent_dropout": 0.3} for kind in ("lstm", "gru")}},
        {},
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_stopped_and_resumed_it_ends_bit_for_bit_as_in_one_go(way, text, tmp_path):
    model, settings = WAYS[way]
    config = config_of(text, model, **settings)
    whole = train(config, tmp_path / "whole", threads=1)
    assert (whole.status, whole.progress.step, whole.resumed_from) == ("finished", 12, 0)
    for stop in (1, 4, 9):
        result = train(config, tmp_path / "parts", stop_at=stop, threads=1)
        assert (result.status, result.progress.step) == ("stopped", stop)
    assert train(config, tmp_path / "parts", threads=1).resumed_from == 9
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


DRIVER = """
import sys
from quatrain.config.schema import from_dict
from quatrain.config.toml import load_toml
from quatrain.train.config import RunConfig
from quatrain.train.loop import train
config = from_dict(RunConfig, load_toml(sys.argv[1]))
sys.stdout.write("ready\\n"); sys.stdout.flush()
train(config, sys.argv[2], threads=1)
sys.stdout.write("done\\n")
"""


def test_killed_at_random_moments_it_ends_bit_for_bit_as_in_one_go(text, tmp_path):
    from quatrain.config.schema import to_dict
    from quatrain.config.toml import dump_toml

    config = config_of(text, {"pattern": "s6 lstm", "dropout": 0.1}, steps=200, save_every=2)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(dump_toml(to_dict(config)))
    began = time.perf_counter()
    train(config, tmp_path / "whole", threads=1)
    fifth = (time.perf_counter() - began) / 5  # of the run: three kills at least, however fast it is
    drawn, kills = random.Random(11), 0
    for attempt in range(40):
        with subprocess.Popen(
            (sys.executable, "-c", DRIVER, str(recipe), str(tmp_path / "out")),
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout.readline() == "ready\n"
            if attempt < 6:
                time.sleep(drawn.uniform(0.0, fifth))
                process.send_signal(signal.SIGKILL)
            done = process.stdout.read() == "done\n"
        if done:
            break
        kills += 1
    assert kills >= 3
    assert_same_run(tmp_path / "out", tmp_path / "whole")


def test_a_finished_run_is_not_trained_again(text, tmp_path):
    config = config_of(text)
    first = train(config, tmp_path)
    before = (tmp_path / "records.jsonl").read_bytes()
    again = train(config, tmp_path)
    assert (again.status, again.resumed_from, again.progress) == ("finished", 12, first.progress)
    assert (tmp_path / "records.jsonl").read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(text, tmp_path, number):
    def stop(row):
        if row["kind"] == "step" and row["step"] == 5:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match=r"stopped at step 5 of 12, .* quatrain train --resume") as caught:
        train(config_of(text), tmp_path, stop)
    assert caught.value.signal == number
    assert checkpoint.latest(tmp_path).name == "step-00000005"


def test_a_diverging_run_stops_and_names_step_parameter_and_checkpoint(text, tmp_path):
    config = config_of(text, {"pattern": "rnn"}, save_every=1, warmup=0.0)

    def poison(row):
        if row["kind"] == "step" and row["step"] == 6:
            for module in models:
                module.embedding.weight.data[:] = float("nan")

    from quatrain.train import loop

    models, build = [], loop.build

    def seen(config):
        models.append(build(config))
        return models[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "build", seen)
        with pytest.raises(DivergedError, match=r"step 6: nothing was saved; parameter embedding") as caught:
            train(config, tmp_path, poison)
    assert str(tmp_path / "checkpoints" / "step-00000005") in str(caught.value)
    assert checkpoint.latest(tmp_path).name == "step-00000005"


def test_a_loss_that_is_not_finite_is_found_in_its_step(text, tmp_path):
    with pytest.raises(DivergedError, match=r"step \d+: .* a lower train.lr often helps"):
        train(config_of(text, lr=1e30, warmup=0.0, clip=float("inf"), steps=40), tmp_path)


def test_accumulation_changes_the_memory_and_not_the_numbers(text, tmp_path):
    one, four = (
        train(config_of(text, accumulate=parts, steps=4), tmp_path / str(parts)).progress.loss
        for parts in (1, 4)
    )
    assert one == pytest.approx(four, rel=1e-5)


def test_training_learns(text, tmp_path):
    result = train(config_of(text, {"pattern": "s6"}, steps=80, lr=1e-2, eval_every=40), tmp_path)
    assert result.progress.best_valid < 1.6  # 5.5 at first; the words alone are worth 1.3


def test_other_settings_or_another_text_are_refused(text, tmp_path):
    train(config_of(text), tmp_path / "run", stop_at=2)
    with pytest.raises(ConfigError, match=r"holds a run with other settings \(train.lr = 0.002 there"):
        train(config_of(text, lr=1e-3), tmp_path / "run")
    config, other = config_of(tmp_path / "moving.txt"), tmp_path / "moving.txt"
    other.write_bytes(text.read_bytes())
    train(config, tmp_path / "moved", stop_at=2)
    other.write_bytes(text.read_bytes()[::-1])
    with pytest.raises(DataError, match="give the same text or another directory"):
        train(config, tmp_path / "moved")


def test_a_text_shorter_than_a_window_leaves_nothing_behind(tmp_path):
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(DataError, match="sequence = 16: needs 17 tokens"):
        train(config_of(tmp_path / "short.txt"), tmp_path / "runs" / "short")
    assert not (tmp_path / "runs").exists()


def test_learning_rate_rises_then_falls_to_its_floor():
    settings = TrainConfig(steps=100, lr=1.0, warmup=0.1, lr_floor=0.1)
    rates = [optim.learning_rate(settings, step) for step in range(1, 101)]
    assert rates[:10] == sorted(rates[:10])
    assert max(rates) == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, rel=0.05)


def test_validation_scores_the_windows_it_says():
    import numpy as np

    from quatrain.model.config import ModelConfig
    from quatrain.model.lm import LanguageModel

    tokens = np.random.default_rng(0).integers(0, 256, 500).astype(np.uint8)
    model = LanguageModel(ModelConfig(width=8, layers=1, pattern="rnn"))
    validation = Validation(tokens, sequence=50, budget=10_000, rows=4)
    assert validation.tokens == 450
    want = 0.0
    with torch.no_grad():
        for start in (449 * index // 8 for index in range(9)):
            window = torch.from_numpy(tokens[start : start + 51].astype(np.int64))[None]
            want += model.eval().loss(window[:, :-1], window[:, 1:])[0].item() / 9
    assert validation.nats(model) == pytest.approx(want, rel=1e-5)
    with pytest.raises(DataError, match="needs at least 2"):
        Validation(tokens[:1], sequence=50, budget=100, rows=1)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_a_run(recipe, text, tmp_path):
    values = load_toml(recipe)
    config = from_dict(RunConfig, values)
    small = {
        "data": {"source": str(text)},
        "model": values["model"] | {"width": 48},
        "train": values["train"] | {"steps": 1, "sequence": 16, "batch_tokens": 32, "eval_tokens": 32},
    }
    assert train(from_dict(RunConfig, small), tmp_path).progress.step == 1
    assert config.train.steps >= 100
