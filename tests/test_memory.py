"""Out of memory: one line that names what was tried and fits, and what was saved stays."""

import json
import resource
import subprocess
import sys
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import torch
from tests.test_use import config_of

from quatrain import checkpoint, cli
from quatrain.cli import _errors
from quatrain.errors import ConfigError, OutOfMemoryError, ran_out_of_memory
from quatrain.infer.generate import generate
from quatrain.infer.sample import Sampling
from quatrain.lab import _measure, calibrate
from quatrain.model.backbone import Backbone
from quatrain.model.config import ModelConfig
from quatrain.model.lm import LanguageModel
from quatrain.model.memory import in_parts
from quatrain.train.loop import train
from quatrain.train.run_dir import CONFIG

GPU = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.05 "
    "GiB is free."
)
CPU = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
    "allocate 4000000000 bytes. Error code 12 (Cannot allocate memory)"
)


@contextmanager
def room(tokens, recomputed=None, state=10**9, kind=torch.OutOfMemoryError):
    """A device with memory for so many tokens at a time, or more of them where layers are recomputed."""
    forward = Backbone.forward
    read = []

    def meter(self, x, before=None, *rest, **named):
        most = tokens if not (self.config.checkpoint_layers and recomputed) else recomputed
        held = x  # memory that the frames of the traceback keep  # noqa: F841
        if x.shape[0] * x.shape[1] > most or sum(read) + x.shape[1] > state:
            raise kind(GPU)
        if before is not None or named.get("keep_state", True):
            read.append(x.shape[1])
        return forward(self, x, before, *rest, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Backbone, "forward", meter)
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("memory") / "text.txt"
    path.write_text("the cat sat on the mat. the dog sat on the log. " * 100)
    return path


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "run"
    train(config_of(text, steps=2), out, threads=1)
    return out


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (torch.OutOfMemoryError(GPU), True),
        (RuntimeError(CPU), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (MemoryError(), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_memory_errors_are_known_by_type_and_text(error, known):
    assert ran_out_of_memory(error) is known
    code, lines = _errors.describe(error)
    assert (code, len(lines)) == (2 if known else 1, 1)
    assert ("not enough memory" in lines[0]) is known


# -- training: 8 sequences of 32 tokens a step


@pytest.mark.parametrize(
    ("tokens", "recomputed", "fits"),
    [
        (64, None, {"train.accumulate": 4}),
        (32, None, {"train.accumulate": 8}),
        (31, 100, {"model.checkpoint_layers": True, "train.accumulate": 4}),
        (31, 16, {"model.checkpoint_layers": True, "train.sequence": 16, "train.accumulate": 16}),
        (1, 1, {}),
    ],
)
def test_a_step_names_settings_that_fit(text, tmp_path, tokens, recomputed, fits):
    out = tmp_path / "run"
    with room(tokens, recomputed), pytest.raises(OutOfMemoryError) as caught:
        train(config_of(text), out, threads=1)
    assert caught.value.fits == fits
    said = str(caught.value)
    assert "\n" not in said
    assert said.startswith("step 1: not enough memory (2.00 GiB more were asked for); ")
    assert said.endswith("; nothing was saved")
    assert not out.exists()  # free for other settings
    if not fits:
        assert "not even one sequence fits with model.checkpoint_layers = true" in said
        return
    parts = {"model": {}, "train": {}}
    for key, value in fits.items():
        parts[key.split(".")[0]][key.split(".")[1]] = value
    with room(tokens, recomputed):  # what it says is so
        train(config_of(text, parts["model"], steps=2, **parts["train"]), out, threads=1)


def test_what_was_saved_stays_and_can_be_begun_from(text, tmp_path):
    run = tmp_path / "run"

    def shrink(row):
        if row["kind"] == "step" and row["step"] == 3:
            memory.enter_context(room(100))

    said = r"step 4: .*fits: train.accumulate = 4; other settings need an"
    with pytest.raises(OutOfMemoryError, match=said), ExitStack() as memory:
        train(config_of(text, save_every=2), run, shrink, threads=1)
    good = checkpoint.latest(run)
    assert good.name == "step-00000002"
    fits = config_of(text, steps=2, accumulate=4, init_from=str(good))
    with room(100):
        train(fits, tmp_path / "other", threads=1)
    assert train(config_of(text, save_every=2), run, threads=1).resumed_from == 2


def test_a_look_and_weights_that_do_not_fit_say_so(text, tmp_path, monkeypatch):
    inner = Backbone.forward

    def only_looks(self, x, *rest, **named):
        if not self.training and len(x) > 4:
            raise torch.OutOfMemoryError(GPU)
        return inner(self, x, *rest, **named)

    monkeypatch.setattr(Backbone, "forward", only_looks)
    said = r"look after step 15: not enough .* train.accumulate = 2; other"
    with pytest.raises(OutOfMemoryError, match=said):
        train(config_of(text, save_every=5), tmp_path / "look", threads=1)

    def full(self, device):
        raise RuntimeError(CPU)

    monkeypatch.setattr(LanguageModel, "to", full)
    with pytest.raises(OutOfMemoryError, match=r"for a model of [\d,]+ parameters: a smaller model.width"):
        train(config_of(text), tmp_path / "weights", threads=1)
    assert not (tmp_path / "weights").exists()


def test_labelled_sequences_and_series(tmp_path):
    rows = [{"text": "ab" * 20 if k % 2 else "xy" * 20, "label": f"k{k % 2}"} for k in range(40)]
    (tmp_path / "kinds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with room(100), pytest.raises(OutOfMemoryError) as caught:
        train(config_of(tmp_path / "kinds.jsonl"), tmp_path / "run", threads=1)
    assert caught.value.fits == {"train.accumulate": 4}
    out = tmp_path / "run"
    assert not out.exists()
    with pytest.raises(ConfigError, match=r"batch_sequences = 6: must be a multiple of train.accumulate = 4"):
        train(config_of(tmp_path / "kinds.jsonl", batch_sequences=6, accumulate=4), out)
    train(config_of(tmp_path / "kinds.jsonl", steps=2), out, threads=1)
    words = [str(out), str(tmp_path / "kinds.jsonl")]
    answers = []
    for most in (10**6, 100, 10):
        with room(most):
            predicted = cli.main(["predict", *words, "--threads", "1"])
            answers.append((predicted, cli.main(["eval", *words, "--threads", "1"])))
    assert answers == [(0, 0), (0, 0), (2, 2)]


def test_a_real_allocation_that_fails(text, tmp_path):
    """With less address space than a step takes; in a process of its own."""
    code = (
        "import resource, sys, torch\n"
        "from quatrain import cli\n"
        "from quatrain.train import loop\n"
        "torch.set_num_threads(1)\n"
        "before = loop._Run.until\n"
        "def until(self, *rest):\n"
        "    used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (used + (120 << 20),) * 2)\n"
        "    return before(self, *rest)\n"
        "loop._Run.until = until\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    big = ["--train.batch_tokens", "65536", "--train.sequence", "256", "--train.steps", "1"]
    small = ["--model.width", "32", "--model.layers", "1", "--mixer", "attention", "--threads", "1"]
    done = subprocess.run(
        [sys.executable, "-c", code, "train", str(text), *big, *small, "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "step 1: not enough memory (" in last
    assert "tried and fits: train.accumulate = " in last
    assert not (tmp_path / "run" / CONFIG).exists()


# -- reading


def test_a_prompt_is_read_in_smaller_chunks_or_says_how_much_fits():
    torch.manual_seed(0)
    model = LanguageModel(
        ModelConfig(width=8, layers=1, pattern="attention", mixer={"attention": {"heads": 2}})
    )
    prompt, greedy = bytes(range(200)), Sampling(temperature=0)
    whole = [piece.text for piece in generate(model, prompt, max_tokens=3, sampling=greedy)]
    with room(30):
        assert [piece.text for piece in generate(model, prompt, max_tokens=3, sampling=greedy)] == whole
    with (
        room(30, state=150),
        pytest.raises(OutOfMemoryError, match=r"prompt of 200 tokens: the state of 150 t"),
    ):
        list(generate(model, prompt, max_tokens=3))
    with room(0), pytest.raises(OutOfMemoryError, match="not even one token fits"):
        list(generate(model, prompt, max_tokens=3))


@pytest.mark.parametrize(
    ("tokens", "said"), [(64, "chunk = 16, streams = 4"), (10, "chunk = 8, streams = 1"), (1, "not even two")]
)
def test_eval_names_the_chunk_and_streams_that_fit(trained, text, capsys, tokens, said):
    words = ["eval", str(trained), str(text), "--chunk", "16", "--streams", "8", "--threads", "1"]
    with room(tokens):
        assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("quatrain eval: not enough memory (2.00 GiB more were asked for) for chunk = 16")
    assert said in line


def test_work_in_parts_frees_what_failed_and_passes_other_errors_on():
    seen = []

    def work(count):
        big = np.zeros(1 << 20)
        seen.append(count)
        if count > 3:
            raise MemoryError(f"unable to allocate {big.nbytes}")
        return count

    assert in_parts(32, work, "row") == 2
    assert seen == [32, 16, 8, 4, 2]
    with pytest.raises(ZeroDivisionError):
        in_parts(4, lambda count: count // 0, "row")


# -- comparing


def test_a_comparison_names_the_batch_that_fits(text, tmp_path, monkeypatch, capsys):
    def measured(command, input, **rest):
        with room(64):
            monkeypatch.setattr(sys, "stdin", __import__("io").StringIO(input))
            _measure.main()
        return subprocess.CompletedProcess(command, 0, capsys.readouterr().out, "")

    monkeypatch.setattr(calibrate.subprocess, "run", measured)
    words = [
        "compare",
        str(text),
        "--params",
        "3000",
        "--budget",
        "30s",
        "--mixers",
        "gru",
        "--sequence",
        "32",
    ]
    assert cli.main([*words, "--batch", "8", "--threads", "1", "--out", str(tmp_path / "out")]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.endswith("mixers = 'gru': not enough memory; tried and fits: batch = 2"), last
    assert not (tmp_path / "out").exists()


def test_limits_of_the_system_are_left_alone():
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
