"""Where a run goes: auto, cpu or cuda; said, refused in one line, and every tensor on the model's device."""

import json

import numpy as np
import pytest
import torch

from quatrain import checkpoint, cli
from quatrain.config.schema import from_dict
from quatrain.data.prepare import open_data
from quatrain.errors import ConfigError
from quatrain.infer.answers import Predictor
from quatrain.model import device as devices
from quatrain.tasks.score import score
from quatrain.train import feed
from quatrain.train.config import RunConfig
from quatrain.train.loop import train

TASKS = ("lm", "classify", "forecast", "tag", "transcribe")


def source_of(task, folder):
    """A small file of a task, written when asked for."""
    draw = np.random.default_rng(3)
    path = folder / f"{task}.{'txt' if task == 'lm' else 'jsonl'}"
    if task == "lm":
        path.write_text("so it goes, and so it went. " * 300)
        return path
    rows = []
    for index in range(1 if task == "forecast" else 90):
        steps = np.sin(np.arange(400) / 3) if task == "forecast" else draw.normal(size=9) + index % 3
        row = {"values": steps.round(3).tolist()}
        if task == "classify":
            row["label"] = f"kind {index % 3}"
        elif task == "tag":
            row["labels"] = ["up" if step > 1 else "down" for step in steps]
        elif task == "transcribe":
            row["text"] = "abc"[: 1 + index % 3]
        rows.append(json.dumps(row))
    path.write_text("\n".join(rows) + "\n")
    return path


def config_of(source, **more) -> RunConfig:
    train = {"steps": 6, "eval_every": 3, "save_every": 3, "sequence": 24, "batch_tokens": 96}
    return from_dict(
        RunConfig,
        {
            "data": {"source": str(source), "horizon": 4, "season": 6, "fractions": [0.6, 0.2, 0.2]},
            "model": {"width": 16, "layers": 2, "pattern": more.pop("pattern", "lstm"), "dropout": 0.1},
            "train": train | {"batch_sequences": 8} | more,
        },
    )


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_auto_is_the_cpu_where_there_is_nothing_else_and_cuda_says_why(no_gpu):
    assert devices.choose("auto") == devices.choose("cpu") == devices.choose("auto", "cuda")
    assert devices.name_of(devices.choose("auto")) == "cpu"
    with pytest.raises(ConfigError, match=r"^device = 'cuda': cannot be used: (this torch|torch finds)"):
        devices.choose("cuda")
    with pytest.raises(ConfigError, match=r"device = 'gpu': must be one of auto, cpu, cuda"):
        devices.choose("gpu")


def test_auto_prefers_a_usable_gpu_and_stays_where_the_run_began(monkeypatch):
    monkeypatch.setattr(devices, "why_no_cuda", lambda: "")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert devices.choose("auto") == torch.device("cuda", 0) == devices.choose("cuda")
    assert devices.choose("auto", "cpu") == torch.device("cpu") == devices.choose("cpu", "cuda")
    assert devices.choose("auto", "cuda") == torch.device("cuda", 0)


def test_every_command_refuses_a_device_that_is_not_there(no_gpu, tmp_path, capsys):
    source = source_of("lm", tmp_path)
    small = ["--train.steps", "1", "--model.width", "8", "--model.layers", "1", "--mixer", "gru"]
    sizes = ["--train.sequence", "16", "--train.batch_tokens", "32"]
    out = str(tmp_path / "run")
    assert cli.main(["train", str(source), *small, *sizes, "--out", out, "--threads", "1"]) == 0
    assert f"training gru in {out} on cpu" in capsys.readouterr().err
    for args in (
        ["train", str(source), *small, "--out", str(tmp_path / "other")],
        ["eval", out],
        ["generate", out, "--prompt", "so"],
        ["predict", out, str(source)],
    ):
        assert cli.main([*args, "--device", "cuda"]) == 2
        said, err = capsys.readouterr()
        assert (said, len(err.splitlines())) == ("", 1)
        assert "device = 'cuda': cannot be used" in err
        assert cli.main([*args, "--device", "gpu"]) == 2
        assert "device = 'gpu': must be one of auto, cpu, cuda" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_doctor_says_what_auto_is(no_gpu, capsys):
    assert cli.main(["doctor"]) == 0
    assert "auto is cpu: " in capsys.readouterr().out


@pytest.mark.parametrize("task", TASKS)
def test_what_a_step_reads_goes_to_the_models_device(task, tmp_path, monkeypatch):
    """A stand-in for a GPU: every tensor that training hands to the model has passed the move to it."""
    moved: set[int] = set()

    def spy(tensor, device):
        copy = tensor.clone()
        moved.add(id(copy))
        kept.append(copy)
        return copy

    kept: list[torch.Tensor] = []
    monkeypatch.setattr(feed, "to_device", spy)
    monkeypatch.setattr(
        "quatrain.data.batches.Batch.to",
        lambda self, device: type(self)(*(None if each is None else spy(each, device) for each in self)),
    )
    model_class = "quatrain.model.sequence.SequenceModel"
    hidden = feed.SequenceModel.hidden
    seen = []

    def watched(self, inputs, state=None, lengths=None, *args, **kwargs):
        if self.training:
            seen.append(id(inputs) in moved and (lengths is None or id(lengths) in moved))
        return hidden(self, inputs, state, lengths, *args, **kwargs)

    monkeypatch.setattr(f"{model_class}.hidden", watched)
    train(config_of(source_of(task, tmp_path)), tmp_path / "run", threads=1)
    assert len(seen) == 6
    assert task == "lm" or all(seen)  # the slices of a text's batch are views of what was moved


@pytest.mark.gpu
@pytest.mark.parametrize("pattern", ["lstm", "s6 attention", "rnn", "gru", "s4d"])
@pytest.mark.parametrize("task", TASKS)
def test_a_gpu_trains_resumes_scores_and_answers_as_the_cpu_does(task, pattern, tmp_path):
    config = config_of(source_of(task, tmp_path), pattern=pattern)
    config = from_dict(RunConfig, {**as_dict(config), "model": {**as_dict(config)["model"], "dropout": 0.0}})
    cpu = train(config, tmp_path / "cpu", threads=1)
    assert train(config, tmp_path / "gpu", stop_at=3, threads=1, device="cuda").status == "stopped"
    gpu = train(config, tmp_path / "gpu", threads=1, device="auto")  # goes on where it was
    assert gpu.progress.loss == pytest.approx(cpu.progress.loss, rel=2e-3)
    assert checkpoint.load_meta(gpu.checkpoint)["machine"]["device"].startswith("cuda")
    model = checkpoint.load(gpu.checkpoint, "cuda")
    assert model.device.type == "cuda"
    if task == "lm":
        from quatrain.infer.evaluate import evaluate
        from quatrain.infer.generate import generate

        tokens = open_data(tmp_path / "gpu" / "data").part("test")
        found = [evaluate(checkpoint.load(gpu.checkpoint, on), tokens).nats for on in ("cpu", "cuda")]
        assert found[0] == pytest.approx(found[1], rel=1e-4)
        assert "".join(piece.text for piece in generate(model, "so it", max_tokens=8))
        return
    file = open_data(tmp_path / "gpu" / "data")
    found = [
        score(checkpoint.load(gpu.checkpoint, on), file, "test", sequence=24, batch=8).loss
        for on in ("cpu", "cuda")
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    predictor = Predictor(gpu.checkpoint, "cuda")
    assert predictor.model.device.type == "cuda"


@pytest.mark.gpu
def test_a_gpu_carries_state_and_draws_dropout_by_step(tmp_path):
    config = config_of(source_of("lm", tmp_path), carry_state=True, accumulate=2)
    whole = train(config, tmp_path / "whole", threads=1, device="cuda")
    train(config, tmp_path / "parts", stop_at=3, threads=1, device="cuda")
    parts = train(config, tmp_path / "parts", threads=1, device="cuda")
    assert parts.progress.loss == pytest.approx(whole.progress.loss, rel=1e-4)


def as_dict(config):
    from quatrain.config.schema import to_dict

    return to_dict(config)
