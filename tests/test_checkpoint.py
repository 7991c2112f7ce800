"""Checkpoints: written whole or not at all, and checked byte by byte when they are read."""

import errno
import json
import math
import os
import pickle
import resource
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import quatrain
from quatrain import _files, checkpoint
from quatrain.errors import CheckpointError, ConfigError


def tensors(value: float = 0.0) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 3, generator=generator) + value
    return {"model": {"weight": weight, "bias": weight[0]}, "optimizer": {"step": torch.tensor(3.0)}}


@pytest.fixture
def run(tmp_path):
    """A run with two checkpoints."""
    for step in (10, 20):
        checkpoint.save(tmp_path / "run", step, tensors(step), {"loss": 1 / step})
    return tmp_path / "run"


def names(run) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


# -- a round trip

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
DTYPES += [torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_every_dtype_and_layout_comes_back_bit_for_bit(tmp_path, dtype):
    values = torch.randn(4, 6, 2, dtype=torch.complex128) * 3
    values = (values if dtype.is_complex else values.real).to(dtype)
    group = {
        "plain": values,
        "imag": values.conj().imag if dtype.is_complex else values,
        "turned": values.transpose(0, 2),
        "part": values[1:3, ::2],
        "scalar": values[0, 0, 0],
    }
    group |= {
        "empty": values[:0],
        "conj": values.conj(),
        "grad": values.clone().requires_grad_(dtype.is_floating_point),
    }
    path = checkpoint.save(tmp_path, 1, {"model": group}, {})
    again = checkpoint.read(path).tensors("model")
    assert again.keys() == group.keys()
    for name, tensor in group.items():
        assert again[name].dtype == tensor.dtype
        assert torch.equal(again[name], tensor), name
        assert not again[name].requires_grad


def test_nan_infinity_and_signed_zero_survive(tmp_path):
    odd = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 1e-45])
    path = checkpoint.save(tmp_path, 1, {"model": {"odd": odd}}, {})
    again = checkpoint.read(path).tensors("model")["odd"]
    assert torch.equal(again.view(torch.int32), odd.view(torch.int32))


def test_the_files_are_plain_safetensors(run):
    path = run / "checkpoints/step-00000020/model.safetensors"
    assert torch.equal(load_file(path)["weight"], tensors(20)["model"]["weight"])
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == {"weight", "bias"}


def test_a_shared_tensor_is_stored_once(tmp_path):
    weight = torch.randn(1000)
    group = {"embedding": weight, "head": weight, "view": weight[:500]}
    path = checkpoint.save(tmp_path, 1, {"model": group}, {})
    assert (path / "model.safetensors").stat().st_size < 1500 * 4 + 400
    again = checkpoint.read(path).tensors("model")
    assert all(torch.equal(again[name], group[name]) for name in group)
    assert again["embedding"] is again["head"]


def test_meta_comes_back_equal(tmp_path):
    meta = {
        "config": {"clip": math.inf, "low": -math.inf, "lr": 0.1 + 0.2, "big": 2**70},
        "list": [1, None, "唐", True],
    }
    path = checkpoint.save(tmp_path / "run", 7, {}, meta)
    read = checkpoint.read(path)
    assert (read.meta, read.step, read.path, read.groups) == (meta, 7, path, ())
    assert checkpoint.load_meta(tmp_path / "run") == meta
    text = (path / "manifest.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not strict JSON"))


def test_the_directory_of_the_run_stands_for_its_newest_checkpoint(run):
    assert checkpoint.read(run).step == 20
    assert checkpoint.latest(run) == run / "checkpoints/step-00000020"
    assert checkpoint.read(run / "checkpoints/step-00000010").step == 10
    assert checkpoint.latest(run / "nothing") is None


def test_steps_beyond_eight_digits_stay_in_order(tmp_path):
    for step in (99_999_999, 100_000_000):
        checkpoint.save(tmp_path, step, {}, {})
    assert checkpoint.read(tmp_path).step == 100_000_000


def test_the_same_checkpoint_is_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        checkpoint.save(tmp_path / name, 3, tensors(), {"x": 1.5})
    for path in (tmp_path / "a").rglob("*.*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


# -- replacing and pruning


def test_a_checkpoint_of_the_same_step_is_replaced(run):
    path = checkpoint.save(run, 20, tensors(99), {"second": True})
    assert names(run) == ["step-00000010", "step-00000020"]
    assert checkpoint.read(path).meta == {"second": True}
    assert torch.equal(checkpoint.read(run).tensors("model")["weight"], tensors(99)["model"]["weight"])


def test_a_replacement_that_was_interrupted_counts_and_is_finished_later(run):
    folder = run / "checkpoints"
    other = checkpoint.save(run.with_name("other"), 20, tensors(99), {"second": True})
    os.rename(other, folder / "step-00000020.new")
    assert checkpoint.read(run).meta == {"second": True}
    checkpoint.save(run, 30, tensors(30), {})
    assert names(run) == ["step-00000010", "step-00000020", "step-00000030"]
    assert checkpoint.read(folder / "step-00000020").meta == {"second": True}


def test_remains_of_a_killed_save_are_ignored_and_removed(run):
    remains = run / "checkpoints/.tmp-step-00000030.4711"
    remains.mkdir()
    (remains / "model.safetensors").write_bytes(b"half")
    assert checkpoint.read(run).step == 20
    checkpoint.save(run, 30, tensors(30), {})
    assert names(run) == ["step-00000010", "step-00000020", "step-00000030"]


def test_prune_keeps_the_newest_and_the_protected(tmp_path):
    for step in range(1, 8):
        checkpoint.save(tmp_path, step, {}, {})
    removed = checkpoint.prune(tmp_path, 2, protect=[3, tmp_path / "checkpoints/step-00000004"])
    assert [path.name for path in removed] == ["step-00000001", "step-00000002", "step-00000005"]
    assert names(tmp_path) == [f"step-0000000{step}" for step in (3, 4, 6, 7)]
    assert checkpoint.prune(tmp_path, 9) == []
    with pytest.raises(ConfigError, match="keep = 0: must be at least 1"):
        checkpoint.prune(tmp_path, 0)


# -- nothing half-written


class FullDisk:
    """A file that takes ``room`` bytes and then says that the disk is full."""

    def __init__(self, file, room: list[int]) -> None:
        self.file, self.room = file, room

    def write(self, data) -> int:
        self.room[0] -= len(data)
        if self.room[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


@pytest.mark.parametrize("room", [0, 100, 300, 600])
def test_a_full_disk_leaves_the_earlier_checkpoints_and_no_remains(run, monkeypatch, room):
    left = [room]

    def nearly_full(path, mode):
        return FullDisk(open(path, mode), left)

    monkeypatch.setattr(_files, "open", nearly_full, raising=False)
    with pytest.raises(
        CheckpointError, match="step-00000030': cannot be written: No space left on device; earlier"
    ):
        checkpoint.save(run, 30, tensors(30), {})
    monkeypatch.undo()
    assert names(run) == ["step-00000010", "step-00000020"]
    assert checkpoint.read(run).step == 20


def test_a_file_size_limit_of_the_system(run):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(CheckpointError, match="cannot be written: File too large"):
            checkpoint.save(run, 30, {"model": {"weight": torch.zeros(100_000)}}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(run) == ["step-00000010", "step-00000020"]


def test_an_unwritable_directory(tmp_path):
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(CheckpointError, match=r"step-00000001': cannot be written: Not a directory"):
        checkpoint.save(tmp_path / "file" / "run", 1, tensors(), {})
    if os.geteuid() == 0:
        return  # root may write everywhere
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(CheckpointError, match="cannot be written: Permission denied"):
        checkpoint.save(tmp_path / "closed", 1, tensors(), {})


@pytest.mark.parametrize(
    ("group", "meta", "error"),
    [
        ({"a": torch.zeros(2, dtype=torch.float8_e5m2)}, {}, CheckpointError),
        ({"a": torch.zeros(2)}, {"x": {1, 2}}, TypeError),
    ],
)
def test_what_cannot_be_saved_leaves_nothing(run, group, meta, error):
    with pytest.raises(error):
        checkpoint.save(run, 30, {"model": group}, meta)
    assert names(run) == ["step-00000010", "step-00000020"]


def test_group_names_and_steps_are_checked(tmp_path):
    with pytest.raises(ConfigError, match=r"group = '\.\./x': must be a plain word"):
        checkpoint.save(tmp_path, 1, {"../x": {}}, {})
    with pytest.raises(ConfigError, match="step = -1: must be at least 0"):
        checkpoint.save(tmp_path, -1, {}, {})


KILLS = 25
KILLER = """
import os, random, select, signal, sys, time
import torch
from quatrain import checkpoint

run, kills = sys.argv[1], int(sys.argv[2])
pick, caught, step = random.Random(1), 0, 0
for _ in range(kills):
    listen, tell = os.pipe()
    child = os.fork()
    if child == 0:
        while True:
            step += 1
            weight = torch.full((20_000,), float(step))
            groups = {"model": {"w": weight}, "optimizer": {"m": weight + 1}}
            checkpoint.save(run, step, groups, {"step": step})
            os.write(tell, step.to_bytes(8, "little"))
            checkpoint.prune(run, 2)
    select.select([listen], [], [])  # the first save is done: from here on, any moment will do
    time.sleep(pick.uniform(0, 0.04))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(tell)
    promised = int.from_bytes(os.read(listen, 1 << 20)[-8:], "little")
    os.close(listen)
    caught += any(name.startswith(".tmp-") for name in os.listdir(run + "/checkpoints"))
    found = checkpoint.read(run)
    assert found.step in (promised, promised + 1), (found.step, promised)
    assert (found.tensors("model")["w"] == found.step).all() and found.meta == {"step": found.step}
    for name in os.listdir(run + "/checkpoints"):
        if name.startswith("step-"):
            assert checkpoint.read(f"{run}/checkpoints/{name}").groups == ("model", "optimizer")
    step = found.step
sys.stdout.write(f"{caught}")
"""


def test_sigkill_at_random_moments_never_costs_a_checkpoint(tmp_path):
    """Every checkpoint that `save` had returned is still there and whole, in 25 of 25 kills."""
    command = [sys.executable, "-c", KILLER, str(tmp_path / "run"), str(KILLS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0, "no kill fell into a save: the test has shown nothing"


# -- damage


def alter(path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def edit(**changes):
    def apply(path) -> None:
        values = json.loads((path / "manifest.json").read_text())
        (path / "manifest.json").write_text(json.dumps(values | changes))

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda path: os.truncate(path / "model.safetensors", 99),
            "model.safetensors: is truncated: has 99 bytes, must",
        ),
        (
            lambda path: alter(path / "model.safetensors"),
            "model.safetensors: was altered: its SHA-256 is not",
        ),
        (lambda path: alter(path / "optimizer.safetensors"), "optimizer.safetensors: was altered"),
        (lambda path: (path / "model.safetensors").unlink(), "model.safetensors: is missing"),
        (
            lambda path: os.truncate(path / "manifest.json", 50),
            "manifest.json: is not JSON: truncated or altered",
        ),
        (lambda path: (path / "manifest.json").unlink(), "is not a checkpoint: manifest.json is missing"),
        (edit(meta={"loss": 0}), "manifest.json: was altered: its content does not have the SHA-256"),
        (edit(step=99), "manifest.json: was altered"),
        (edit(format="pt"), "format = 'pt': is not a checkpoint of Quatrain"),
        (edit(version=2), "version = 2: this Quatrain reads version 1; a newer Quatrain wrote it: upgrade"),
        (edit(version="x"), "version = 'x': this Quatrain reads version 1$"),
        (lambda path: (path / "manifest.json").write_text("3"), "is not a checkpoint of Quatrain"),
    ],
)
def test_damage_is_named(run, damage, message):
    path = run / "checkpoints/step-00000020"
    damage(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoint.read(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert checkpoint.read(run / "checkpoints/step-00000010").step == 10


def test_foreign_files(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "model.pt")
    (tmp_path / "old.bin").write_bytes(pickle.dumps({}))
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    for name in ("model.pt", "old.bin"):
        with pytest.raises(
            CheckpointError, match=rf"{name}: is a PyTorch file \(pickle\), which can run code"
        ):
            quatrain.load(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is a file; a checkpoint is a directory"):
        quatrain.load(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"is not a checkpoint: manifest\.json is missing"):
        quatrain.load(tmp_path)
    with pytest.raises(CheckpointError, match="nowhere: does not exist"):
        quatrain.load(tmp_path / "nowhere")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="is a run without a checkpoint yet"):
        quatrain.load(tmp_path / "run")


def test_a_manifest_cannot_name_files_elsewhere(run):
    from quatrain.checkpoint._manifest import _seal

    path = run / "checkpoints/step-00000020"
    body = json.loads((path / "manifest.json").read_text())
    del body["sha256"]
    body["files"]["model"]["file"] = "../step-00000010/model.safetensors"
    (path / "manifest.json").write_text(json.dumps(body | {"sha256": _seal(body)}))
    with pytest.raises(CheckpointError, match="must lie in the checkpoint's own directory"):
        checkpoint.read(path)


def test_a_group_that_is_not_there(run):
    with pytest.raises(CheckpointError, match="has no group 'carry', only model, optimizer"):
        checkpoint.read(run).tensors("carry")
