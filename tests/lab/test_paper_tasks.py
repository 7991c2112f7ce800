"""Tasks of the papers: a pure function of (seed, step, split), and targets that a slow check agrees with."""

import gzip
import lzma
import re
import struct
import wave
from collections import deque
from itertools import pairwise

import numpy as np
import pytest
import torch

from quatrain.config.schema import from_dict
from quatrain.errors import ConfigError, DataError
from quatrain.lab.paper import TASKS, cells, task_class, wikitext2
from quatrain.lab.paper import recipe as recipes
from quatrain.lab.paper._generator import IGNORE, SPLITS, Endless, length_of, stream, subsets
from quatrain.lab.paper._score import asked_loss, asked_only
from quatrain.lab.paper.adding import Adding
from quatrain.lab.paper.copy_memory import CopyMemory
from quatrain.lab.paper.dyck import Dyck
from quatrain.lab.paper.induction_heads import InductionHeads
from quatrain.lab.paper.modular_arithmetic import ModularArithmetic
from quatrain.lab.paper.mqar import MQAR
from quatrain.lab.paper.parity import Parity
from quatrain.lab.paper.raw_audio import RawAudio, levels
from quatrain.lab.paper.selective_copying import SelectiveCopying
from quatrain.lab.paper.sequential_mnist import SequentialMNIST
from quatrain.lab.paper.string_copying import StringCopying
from quatrain.lab.paper.wikitext2 import WikiText2
from quatrain.model.config import ModelConfig
from quatrain.model.sequence import build

# Each with a length, and one that it cannot make.
CASES = {
    "selective_copying": (SelectiveCopying(data=5, symbols=9), 40, 9),
    "induction_heads": (InductionHeads(), 33, 2),
    "mqar": (MQAR(pairs=4, symbols=32), 24, 25),
    "parity": (Parity(), 17, 0),
    "modular_arithmetic": (ModularArithmetic(), 21, 20),
    "adding": (Adding(), 31, 1),
    "copy_memory": (CopyMemory(data=4), 30, 8),
    "string_copying": (StringCopying(), 20, 21),
    "dyck": (Dyck(), 40, 0),
}
tasks = pytest.mark.parametrize("name", CASES)


def test_every_drawn_task_is_tried():
    assert set(CASES) == {name for name in TASKS if issubclass(task_class(name), Endless)}


@tasks
def test_batches_are_functions_of_seed_step_and_split(name):
    task, length, _ = CASES[name]

    def drawn(seed, step, split):
        return task.batch(seed, step, split, 6, length)

    first = drawn(3, 7, "train")
    drawn(4, 7, "train"), drawn(3, 8, "valid")  # whatever was drawn between
    again = drawn(3, 7, "train")
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(first, again, strict=True))
    others = [drawn(4, 7, "train"), drawn(3, 8, "train"), *(drawn(3, 7, split) for split in SPLITS[1:])]
    assert not any(torch.equal(first.inputs, other.inputs) for other in others)


@tasks
def test_shapes_types_and_ranges(name):
    task, length, _ = CASES[name]
    inputs, targets = task.batch(0, 1, "train", 5, length)
    assert targets.shape == (5, length)
    asked = task.batch(0, 1, "train", 5, length).asked()
    assert asked.any(1).all()
    if task.channels:
        assert inputs.shape == (5, length, task.channels)
        assert inputs.dtype == targets.dtype == torch.float32
        return
    assert inputs.shape == (5, length)
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.min() >= 0
    assert inputs.max() < task.vocab
    assert targets[asked].min() >= 0
    assert targets[asked].max() < task.outputs
    assert (targets[~asked] == IGNORE).all()


@tasks
def test_all_batches_of_a_length_have_the_same_shapes(name):
    """A step is recorded as a CUDA graph for each shape of what it reads."""
    task, length, _ = CASES[name]
    drawn = [asked_only(task.batch(0, step, "train", 16, length)) for step in range(20)]
    assert len({tuple(tensor.shape for tensor in batch) for batch in drawn}) == 1


def test_what_is_not_asked_does_not_count():
    task = Dyck(kinds=3)
    batch = task.batch(0, 0, "train", 16, 40)
    shape = {"task": "tag", "vocab": task.vocab, "outputs": task.outputs}
    model = build(ModelConfig(pattern="rnn", width=8, layers=1, **shape))
    flat = batch.targets.flatten()
    where = (flat != IGNORE).nonzero()[:, 0]
    every, some = (
        asked_loss(model, tensors)[0] for tensors in (asked_only(batch), (batch.inputs, flat[where], where))
    )
    assert len(where) < len(flat)
    torch.testing.assert_close(every, some)


@tasks
def test_a_length_that_cannot_be_made_is_one_line(name):
    task, length, wrong = CASES[name]
    with pytest.raises(ConfigError, match=rf"^length = {wrong}: must be .* in \w+$"):
        task.batch(0, 1, "train", 2, wrong)
    with pytest.raises(ConfigError, match="hold none that fits"):
        task.lengths((wrong, wrong))
    assert length in task.lengths((1, 100))


def test_lengths_are_drawn_from_the_seed():
    lengths = Parity().lengths((1, 40))
    drawn = [length_of(lengths, 5, step) for step in range(2000)]
    assert drawn == [length_of(lengths, 5, step) for step in range(2000)]
    assert set(drawn) == set(range(1, 41))
    assert ModularArithmetic().lengths((1, 10)) == (1, 3, 5, 7, 9)


# -- targets against a slow reading of the inputs


def answer_selective_copying(task, row):
    kept = [token for token in row if 0 < token < task.symbols - 1]
    return [IGNORE] * (len(row) - task.data) + kept


def answer_induction_heads(task, row):
    return [IGNORE] * (len(row) - 1) + [row[row.index(task.symbols - 1) + 1]]


def answer_mqar(task, row):
    said, found = dict(zip(row[: 2 * task.pairs : 2], row[1 : 2 * task.pairs : 2], strict=True)), []
    assert len(said) == task.pairs
    for place, token in enumerate(row):
        found.append(said.get(token, IGNORE) if place >= 2 * task.pairs else IGNORE)
    assert sorted(value for value in found if value != IGNORE) == sorted(said.values())
    return found


def answer_parity(task, row):
    odd = False
    for bit in row:
        odd ^= bool(bit)
    return [IGNORE] * (len(row) - 1) + [int(odd)]


def answer_modular_arithmetic(task, row):
    text = "".join("+-*"[token - task.modulus] if token >= task.modulus else str(token) for token in row)
    assert re.fullmatch(r"\d([+*-]\d)*", text)
    return [IGNORE] * (len(row) - 1) + [eval(text) % task.modulus]


def answer_copy_memory(task, row):
    return [0] * (len(row) - task.data) + row[: task.data]


def answer_string_copying(task, row):
    half = row.index(task.symbols)
    assert half * 2 == len(row)
    return [IGNORE] * half + row[:half]


def answer_dyck(task, row):
    open_, found = deque(), []
    for token in row:
        if token < task.kinds:
            open_.append(token)
        else:
            assert open_.pop() == token - task.kinds
        assert len(open_) <= task.depth
        found.append(open_[-1] if open_ else IGNORE)
    return found


@pytest.mark.parametrize("name", [name for name in CASES if name != "adding"])
def test_targets_by_a_slow_check(name):
    task, length, _ = CASES[name]
    inputs, targets = task.batch(1, 2, "train", 50, length)
    for row, target in zip(inputs.tolist(), targets.tolist(), strict=True):
        assert globals()[f"answer_{name}"](task, row) == target


def test_adding_adds_the_marked():
    inputs, targets = Adding().batch(0, 1, "train", 200, 31)
    for row, target in zip(inputs, targets, strict=True):
        marked = row[:, 1].nonzero()[:, 0].tolist()
        assert len(marked) == 2
        assert marked[0] < 15 <= marked[1]
        assert target[-1].item() == pytest.approx(row[marked, 0].sum().item(), abs=1e-6)
        assert target[:-1].isnan().all()
    assert inputs[..., 0].mean().item() == pytest.approx(0.5, abs=0.02)


# -- the picture in each docstring is one that the generator can make

PICTURES = {
    "selective_copying": SelectiveCopying(data=3, symbols=6),
    "induction_heads": InductionHeads(symbols=5),
    "mqar": MQAR(pairs=2, symbols=8),
    "parity": Parity(),
    "modular_arithmetic": ModularArithmetic(modulus=5),
    "copy_memory": CopyMemory(data=3, symbols=8),
    "string_copying": StringCopying(symbols=4),
    "dyck": Dyck(kinds=2),
}


@pytest.mark.parametrize("name", PICTURES)
def test_the_picture_is_true(name):
    lines = task_class(name).__doc__.splitlines()
    row, target = (
        next(line for line in lines if line.strip().startswith(word)).split()[1:]
        for word in ("input", "target")
    )
    row = [int(token) for token in row if token.isdigit()]
    target = [IGNORE if token == "." else int(token) for token in target]
    task = PICTURES[name]
    assert task.fits(len(row))
    assert len(row) == len(target)
    assert globals()[f"answer_{name}"](task, row) == target


def test_the_picture_of_adding_is_true():
    _, first, second, target = (
        line.replace("input", "").replace("target", "").split()
        for line in Adding.__doc__.splitlines()[0:2] + Adding.__doc__.splitlines()[2:5]
        if line.strip()
    )
    assert float(target[-1]) == pytest.approx(
        sum(float(n) for n, mark in zip(first, second, strict=True) if mark == "1")
    )


# -- what makes a task hard is there


def test_noise_lies_anywhere_and_keys_come_in_any_order():
    task = SelectiveCopying(data=4, symbols=8)
    inputs, _ = task.batch(0, 1, "train", 2000, 24)
    used = (inputs[:, :20] > 0).float().mean(0)
    assert ((used - 0.2).abs() < 0.05).all()
    heads, _ = InductionHeads().batch(0, 1, "train", 4000, 20)
    place = (heads == 15).int().argmax(1)
    assert set(place.tolist()) == set(range(18))
    mqar = MQAR(pairs=4, symbols=32, power=0.01)
    _, targets = mqar.batch(0, 1, "train", 2000, 64)
    share = (targets != IGNORE).float().mean(0)[8::2]
    assert share.sum().item() == pytest.approx(4, abs=1e-3)
    assert all(near > far for near, far in pairwise(share[[0, 3, 8, 24]].tolist()))


def test_subsets_are_equally_likely():
    drawn = subsets(stream(0, 0, 1), 20_000, 3, 6)
    kinds, counts = np.unique(np.sort(drawn, 1), axis=0, return_counts=True)
    assert len(kinds) == 20, "every three of six"
    assert (np.diff(kinds, axis=1) > 0).all()
    assert abs(counts - 1000).max() < 5 * (1000 * 0.95) ** 0.5
    assert sorted(subsets(stream(0, 0, 2), 1, 7, 7)[0]) == list(range(7))


def test_keys_and_values_are_uniform_and_differ():
    inputs, _ = MQAR(pairs=3, symbols=14).batch(0, 1, "train", 20_000, 16)
    keys, values = inputs[:, 0:6:2], inputs[:, 1:6:2]
    for found, low, high in ((keys, 1, 7), (values, 7, 14)):
        assert all(len(set(row)) == 3 for row in found[:500].tolist())
        for place in range(3):  # which key comes first is drawn too
            shares = torch.bincount(found[:, place], minlength=14)[low:high] / len(found)
            assert torch.allclose(shares, torch.full_like(shares, 1 / (high - low)), atol=0.015)


@pytest.mark.parametrize(
    ("name", "values", "line"),
    [
        ("mqar", {"pairs": 8, "symbols": 17}, "symbols = 17: must be even and at least"),
        ("mqar", {"power": 0.0}, "power = 0.0: must be positive"),
        ("selective_copying", {"symbols": 3}, "symbols = 3: must be at least 4"),
        ("dyck", {"depth": 0}, "depth = 0: must be at least 1"),
        ("dyck", {"kind": 3}, r"kind = 3: unknown key \(did you mean data.kinds\?\)"),
    ],
)
def test_wrong_settings_are_one_line(name, values, line):
    with pytest.raises(ConfigError, match=line):
        from_dict(task_class(name), values, "data")


def test_unknown_tasks_suggest():
    with pytest.raises(ConfigError, match=r"task = 'paritty': must be one of .* \(did you mean parity\?\)"):
        task_class("paritty")
    assert task_class("Induction-Heads") is InductionHeads


# -- digits


@pytest.fixture
def digits(tmp_path):
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (60, 28, 28)).astype(np.uint8), random.integers(0, 10, 60).astype(np.uint8)
    np.savez(tmp_path / "digits.npz", x=x, y=y)
    head = bytes(16)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + x.tobytes()))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(head[:8] + y.tobytes()))
    return tmp_path, x, y


def test_digits_are_read_from_both_formats(digits):
    folder, x, y = digits
    for name in ("digits.npz", "train-images-idx3-ubyte.gz"):
        task = SequentialMNIST(source=str(folder / name))
        assert [task.pieces(split, 784) for split in SPLITS] == [45, 5, 10]
        inputs, targets = task.batch(0, 0, "test", 10, 784)
        assert torch.equal(inputs[:, :, 0], torch.from_numpy(x[50:].reshape(10, 784)).float() / 255)
        assert targets[:, -1].tolist() == y[50:].tolist()
        seen = torch.cat([task.batch(3, step, "train", 9, 784).inputs for step in range(1, 6)])
        epoch = sorted(map(tuple, (seen[:, :, 0] * 255).round().int().tolist()))
        assert epoch == sorted(map(tuple, x[:45].reshape(45, 784).tolist())), "an epoch reads each digit once"


def test_digits_that_are_none_are_one_line(digits, tmp_path):
    folder, _, _ = digits
    (tmp_path / "text.npz").write_text("no zip")
    (tmp_path / "lone-images-idx3-ubyte").write_bytes(bytes(16 + 784))
    for name, line in {
        "absent.npz": "there is no such file",
        "text.npz": "cannot be read as digits: neither an .npz nor",
        "lone-images-idx3-ubyte": "cannot be read as digits: .*No such file",
    }.items():
        with pytest.raises(DataError, match=line):
            SequentialMNIST(source=str(folder / name)).pieces("train", 784)
        with pytest.raises(DataError, match=line):
            cells.check(recipes.load("sequential_mnist", source=str(folder / name)))
    with pytest.raises(
        ConfigError, match=r"data.source = '': must name the file of digits; give --data FILE"
    ):
        SequentialMNIST()


# -- words


@pytest.fixture
def text(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    words = " ".join("abcde"[n * n % 5] for n in range(60))
    (folder / "wiki.train.tokens").write_text(f"{words}\n{words}\n")
    (folder / "wiki.valid.tokens").write_text("a b c\n\nd\n")
    (folder / "wiki.test.tokens.xz").write_bytes(lzma.compress(b"e a b zebra\n"))
    return folder


def test_words_are_read_in_order(text):
    task = WikiText2(source=str(text))
    assert task.vocab == 7, "five letters, <eos> and zebra"
    assert [task.pieces(split, 4) for split in SPLITS] == [-(-121 // 4), 2, 1]
    found = task.batch(0, 0, "test", 1, 6)
    assert torch.equal(found.inputs[0, 1:4], found.targets[0, :3])
    assert found.asked().tolist() == [[True] * 4 + [False] * 2], "nothing is asked behind the end"
    first, second = (task.batch(9, step, "train", 2, 8) for step in (1, 2))
    assert torch.equal(first.inputs[:, 1:], first.targets[:, :-1])
    assert torch.equal(first.targets[:, -1], second.inputs[:, 0]), "a stream goes on"
    windows = 121 // 2 // 8
    assert [task.begins(step, 2, 8) for step in (1, 2, windows + 1)] == [True, False, True]
    assert torch.equal(task.batch(9, windows + 1, "train", 2, 8).inputs, first.inputs)


def test_texts_that_are_none_are_one_line(text):
    with pytest.raises(ConfigError, match=r"train.batch = 50: must leave 8 words to each stream"):
        WikiText2(source=str(text)).batch(0, 1, "train", 50, 8)
    with pytest.raises(DataError, match="must be a folder; there is none"):
        _ = WikiText2(source=str(text / "nothing")).vocab
    wikitext2._read.cache_clear()
    (text / "wiki.test.tokens.xz").write_bytes(b"no xz")
    with pytest.raises(DataError, match=r"wiki.test.tokens.xz: cannot be read as text"):
        _ = WikiText2(source=str(text)).vocab
    (text / "wiki.test.tokens").write_text("a")
    with pytest.raises(
        DataError, match=r"must hold one file with 'wiki' and 'test' in its name; it holds wiki.test"
    ):
        _ = WikiText2(source=str(text)).vocab


# -- recordings


@pytest.fixture
def clips():
    return {f"clip{n:02}": (3000 * np.sin(np.arange(50 + n) * 0.1 * n)).astype(np.int16) for n in range(20)}


def test_samples_become_levels():
    assert levels(np.array([-1.0, 0.0, 1.0])).tolist() == [0, 128, 255]
    found = levels(np.linspace(-1, 1, 20_001))
    assert (np.diff(found) >= 0).all()
    assert set(found.tolist()) == set(range(256))
    back = found / 255 * 2 - 1  # the inverse of the law, ((1 + mu)^|y| - 1) / mu
    back = np.sign(back) * (256 ** np.abs(back) - 1) / 255
    assert np.abs(back - np.linspace(-1, 1, 20_001)).max() < 0.025


def test_recordings_are_read_from_both_formats(clips, tmp_path):
    np.savez(tmp_path / "clips.npz", **dict(reversed(clips.items())))
    folder = tmp_path / "clips"
    folder.mkdir()
    for name, clip in clips.items():
        with wave.open(str(folder / f"{name}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(struct.pack(f"<{len(clip)}h", *clip.tolist()))
    one, other = RawAudio(source=str(tmp_path / "clips.npz")), RawAudio(source=str(folder))
    for split, which in (("valid", (8, 18)), ("test", (9, 19))):
        whole = np.concatenate([levels(clips[f"clip{n:02}"] / 2**15) for n in which])
        assert one.pieces(split, 40) == -(-(len(whole) - 1) // 40)
        found = one.batch(0, 0, split, one.pieces(split, 40), 40)
        assert found.inputs.flatten().tolist()[: len(whole)] == whole.tolist()
        assert found.targets[found.asked()].tolist() == whole[1:].tolist(), "each sample but the first, once"
        assert torch.equal(other.batch(0, 0, split, 2, 40).inputs, found.inputs[:2])
    first, again, later = (one.batch(3, step, "train", 4, 30) for step in (1, 1, 2))
    assert torch.equal(first.inputs, again.inputs)
    assert not torch.equal(first.inputs, later.inputs)
    assert torch.equal(first.inputs[:, 1:], first.targets[:, :-1])
    assert first.asked().all()


def test_recordings_that_are_none_are_one_line(clips, tmp_path):
    def fails(line, name="a.npz", error=DataError):
        with pytest.raises(error, match=line):
            RawAudio(source=str(tmp_path / name)).batch(0, 1, "train", 2, 99_999)

    fails("there is no such file or folder")
    (tmp_path / "empty").mkdir()
    fails("must hold at least 10 recordings; has 0", "empty")
    (tmp_path / "text.npz").write_text("no zip")
    fails(r"must be an \.npz or a folder of \.wav or \.flac files", "text.npz")
    np.savez(tmp_path / "a.npz", **clips)
    fails(r"length = 99999: must be below the \d+ samples of the training part", error=ConfigError)
    for wrong in (np.zeros((3, 2), np.int16), np.array([0.0, np.nan]), np.array([2.0]), np.array([7])):
        np.savez(tmp_path / "b.npz", **clips, odd=wrong)
        fails("odd: must be a row of int16 samples, or of numbers in", "b.npz")
    with pytest.raises(ConfigError, match=r"data.source = '': must name the recordings; give --data FILE or"):
        RawAudio()
