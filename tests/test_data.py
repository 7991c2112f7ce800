"""Finding texts, token files, and the batches drawn from them."""

import gzip
import hashlib
import io
import json
import lzma
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from quatrain.data.corpus import find
from quatrain.data.sampler import Streams, Windows, permute
from quatrain.data.tokenizer import COMPLEMENT
from quatrain.data.tokens import TokenFile, prepare
from quatrain.errors import ConfigError, DataError

TEXT = b"To be, or not to be, that is the question.\n" * 50


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "hamlet.txt"
    path.write_bytes(TEXT)
    return path


def content(source) -> bytes:
    return b"".join(find(str(source)).chunks())


def pipe(monkeypatch, data: bytes, tty: bool = False) -> None:
    """Make ``data`` the standard input."""
    stdin = io.TextIOWrapper(io.BytesIO(data))
    stdin.isatty = lambda: tty
    monkeypatch.setattr(sys, "stdin", stdin)


# -- finding


def test_a_file(text):
    corpus = find(str(text))
    assert (corpus.name, corpus.files) == ("hamlet.txt", (text,))
    assert b"".join(corpus.chunks()) == TEXT


@pytest.mark.parametrize(("ending", "module"), [("xz", lzma), ("gz", gzip)])
def test_compressed_files_are_unpacked(tmp_path, ending, module):
    path = tmp_path / f"a.txt.{ending}"
    path.write_bytes(module.compress(TEXT))
    assert content(path) == TEXT
    assert find(str(path)).name == "a.txt"
    path.write_bytes(module.compress(TEXT)[:-9])
    with pytest.raises(DataError, match=rf"a\.txt\.{ending}': cannot be read: Compressed file ended"):
        content(path)
    path.write_bytes(TEXT)
    with pytest.raises(DataError, match=rf"a\.txt\.{ending}': cannot be read"):
        content(path)


def test_a_directory_is_read_in_order_without_hidden_and_binary_files(tmp_path):
    files = {"b.txt": b"b", "a/z.txt": b"z", "a/y.txt": b"y", "c.txt.gz": gzip.compress(b"c")}
    skipped = {
        ".hidden": b"no",
        ".git/config": b"no",
        "a/.x": b"no",
        "image.bin": b"a\0b",
        "d.gz": gzip.compress(b"\0"),
    }
    for name, data in (files | skipped).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    os.mkfifo(tmp_path / "fifo")
    corpus = find(str(tmp_path))
    assert b"".join(corpus.chunks()) == b"yzbc"
    assert corpus.description.endswith("4 files (skipped: 3 hidden, 2 binary, 1 not regular)")


def test_a_glob_takes_what_it_matches_in_order(tmp_path):
    for name in ("b.txt", "a.txt", "c.md", "sub/a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    assert content(tmp_path / "*.txt") == b"a.txtb.txt"
    assert content(tmp_path / "**" / "*.txt") == b"a.txtb.txtsub/a.txt"
    (tmp_path / "[x].txt").write_bytes(b"literal")
    assert content(tmp_path / "[x].txt") == b"literal"


def test_stdin_is_read_once(monkeypatch):
    pipe(monkeypatch, TEXT)
    corpus = find("-")
    assert (corpus.name, corpus.repeatable) == ("stdin", False)
    assert b"".join(corpus.chunks()) == TEXT


def test_pythons_library_is_found_offline():
    corpus = find("python")
    version = ".".join(map(str, sys.version_info[:3]))
    assert corpus.name == f"python-{version}"
    assert version in corpus.description
    assert not {"test", "site-packages"} & {part for path in corpus.files for part in path.parts[-3:-1]}
    assert [find("python").files == corpus.files, list(corpus.files) == sorted(corpus.files)] == [True, False]
    assert sum(path.stat().st_size for path in corpus.files) > 2_000_000


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "cannot be read: No such file or directory"),
        (lambda path: path.write_bytes(b""), "the file is empty"),
        (lambda path: path.mkdir(), "the directory holds no text file"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, make, message):
    path = tmp_path / "text"
    make(path)
    with pytest.raises(DataError, match=f"data source '{path}': {message}"):
        find(str(path))


def test_a_glob_that_matches_nothing(tmp_path):
    with pytest.raises(DataError, match=r"\*\.txt': no file matches"):
        find(str(tmp_path / "*.txt"))


def test_an_unreadable_file(text, monkeypatch):
    text.chmod(0)
    if os.geteuid() == 0:  # root may read everything, so the answer that others get is put in its place
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        find(str(text))


# -- token files


def test_a_token_file_holds_the_bytes_and_says_what_they_are(text, tmp_path):
    data = prepare(str(text), tmp_path / "out")
    assert data.tokens.tobytes() == TEXT
    assert isinstance(data.tokens, np.memmap)
    assert not data.tokens.flags.writeable
    assert data.digest == hashlib.sha256(TEXT).hexdigest()
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest == data.manifest
    assert manifest == {
        "format": "quatrain tokens",
        "version": 1,
        "name": "hamlet.txt",
        "source": str(text),
        "description": "file hamlet.txt",
        "files": 1,
        "bytes": len(TEXT),
        "tokens": len(TEXT),
        "vocab": 256,
        "tokenizer": "bytes",
        "fractions": [0.85, 0.05, 0.1],
        "digest": data.digest,
    }
    assert sorted(os.listdir(tmp_path / "out")) == ["manifest.json", "tokens.bin"]
    assert TokenFile.open(tmp_path / "out", verify=True).digest == data.digest


def test_the_parts_are_contiguous_train_first_test_last(text, tmp_path):
    data = prepare(str(text), tmp_path / "out")
    parts = [data.part(name) for name in ("train", "valid", "test")]
    assert b"".join(part.tobytes() for part in parts) == TEXT
    assert data.splits == {"train": 1828, "valid": 107, "test": 215}
    assert data.splits["test"] == len(TEXT) // 10
    with pytest.raises(ConfigError, match="part = 'dev': must be train, valid or test"):
        data.part("dev")


@pytest.mark.parametrize("size", [10, 99, 1000, 10_000, 12_345])
def test_split_sizes_do_not_suffer_from_rounding(tmp_path, size):
    path = tmp_path / "text"
    path.write_bytes(b"x" * size)
    splits = prepare(str(path), tmp_path / "out").splits
    assert (splits["test"], splits["valid"]) == (size // 10, size // 20)


def test_bytes_need_not_be_utf8(tmp_path):
    path = tmp_path / "raw"
    path.write_bytes(bytes(range(256)) * 3)
    assert prepare(str(path), tmp_path / "out").tokens.tobytes() == bytes(range(256)) * 3


def test_preparing_again_takes_the_same_file_and_refuses_another_text(text, tmp_path):
    out = tmp_path / "out"
    prepare(str(text), out)
    before = (out / "tokens.bin").stat().st_mtime_ns
    assert prepare(str(text), out).digest == TokenFile.open(out).digest
    assert (out / "tokens.bin").stat().st_mtime_ns == before
    with pytest.raises(DataError, match=r"was split \[0.85, 0.05, 0.1\], not \[0.8, 0.1, 0.1\]"):
        prepare(str(text), out, (0.8, 0.1, 0.1))
    text.write_bytes(TEXT + b"!")
    with pytest.raises(DataError, match=rf"has {len(TEXT) + 1} bytes .* made of {len(TEXT)} bytes"):
        prepare(str(text), out)
    assert TokenFile.open(out).tokens.tobytes() == TEXT


def test_a_piped_text_is_copied_and_a_later_start_needs_no_pipe(tmp_path, monkeypatch):
    out = tmp_path / "out"
    pipe(monkeypatch, TEXT)
    assert prepare("-", out).tokens.tobytes() == TEXT
    for again, tty in ((TEXT, False), (b"", False), (b"ignored", True)):
        pipe(monkeypatch, again, tty)
        assert prepare("-", out).tokens.tobytes() == TEXT
    pipe(monkeypatch, b"another text")
    with pytest.raises(DataError, match="data source '-': has 12 bytes"):
        prepare("-", out)


@pytest.mark.parametrize("source", ["-", "a.gz"])
def test_an_empty_text_leaves_nothing_behind(tmp_path, monkeypatch, source):
    pipe(monkeypatch, b"")
    (tmp_path / "a.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(DataError, match="is empty"):
        prepare(source if source == "-" else str(tmp_path / source), tmp_path / "deep" / "out")
    assert os.listdir(tmp_path) == ["a.gz"]


def test_a_damaged_source_leaves_nothing_behind(tmp_path):
    path = tmp_path / "a.xz"
    path.write_bytes(lzma.compress(os.urandom(3 << 20))[:-5000])
    with pytest.raises(DataError, match="cannot be read"):
        prepare(str(path), tmp_path / "deep" / "out")
    assert os.listdir(tmp_path) == ["a.xz"]


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.9, 0.2, -0.1), (0.5, 0.2, 0.2), (1, 0, 0)])
def test_fractions_that_are_no_split(text, tmp_path, fractions):
    with pytest.raises(ConfigError, match="must be three positive fractions that sum to 1"):
        prepare(str(text), tmp_path / "out", fractions)


def break_size(out: Path) -> None:
    os.truncate(out / "tokens.bin", 10)


def grow(out: Path) -> None:
    (out / "tokens.bin").write_bytes(TEXT + b"x")


def lose(out: Path) -> None:
    (out / "tokens.bin").unlink()


def edit(**changes):
    def apply(out: Path) -> None:
        values = json.loads((out / "manifest.json").read_text()) | changes
        (out / "manifest.json").write_text(json.dumps(values))

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_size, f"tokens.bin: is truncated: has 10 bytes, must have {len(TEXT)}"),
        (grow, "tokens.bin: is not the one of its manifest"),
        (lose, "tokens.bin: is missing"),
        (lambda out: (out / "manifest.json").unlink(), "is no token file: manifest.json is missing"),
        (lambda out: (out / "manifest.json").write_text("{"), "is no JSON: truncated or altered"),
        (lambda out: (out / "manifest.json").write_text("[]"), "is not the manifest of a token file"),
        (edit(format="quatrain"), "is not the manifest of a token file"),
        (edit(version=2), "is of version 2, this Quatrain reads version 1"),
        (edit(tokens="many", surprise=1), "surprise = 1: unknown key.*; tokens = 'many': must be an integer"),
    ],
)
def test_damaged_token_files_are_refused(text, tmp_path, damage, message):
    out = tmp_path / "out"
    prepare(str(text), out)
    damage(out)
    with pytest.raises(DataError, match=message) as caught:
        TokenFile.open(out)
    assert "\n" not in str(caught.value)


def test_altered_tokens_are_found_by_verify(text, tmp_path):
    out = tmp_path / "out"
    prepare(str(text), out)
    (out / "tokens.bin").write_bytes(TEXT.replace(b"be", b"me"))
    with pytest.raises(DataError, match=r"tokens\.bin: was altered"):
        TokenFile.open(out, verify=True)


def test_a_half_prepared_text_is_prepared_anew(text, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "tokens.bin").write_bytes(b"half")  # killed before the manifest was written
    assert prepare(str(text), out).tokens.tobytes() == TEXT


def test_memory_does_not_grow_with_the_text(tmp_path):
    """100 MiB of zeros, packed into a small file, are prepared in less than 32 MiB."""
    packed = tmp_path / "big.gz"
    with gzip.open(packed, "wb", compresslevel=1) as file:
        for _ in range(100):
            file.write(bytes(1 << 20))
    script = f"""
import resource
from quatrain.data.tokens import prepare
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = prepare({str(packed)!r}, {str(tmp_path / "out")!r})
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
assert data.bytes == 100 << 20, data.bytes
assert grown < 32 << 10, grown
"""
    subprocess.run([sys.executable, "-c", script], check=True)


# -- sampling


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000, 4097, 65_536, 100_003])
@pytest.mark.parametrize("key", [0, 1, 2**64 - 1])
def test_permute_is_a_permutation(count, key):
    image = permute(np.arange(count, dtype=np.uint64), count, key)
    assert np.array_equal(np.sort(image), np.arange(count))
    shuffled = np.random.default_rng(0).permutation(count).astype(np.uint64)[: count // 2 + 1]
    assert np.array_equal(permute(shuffled, count, key), image[shuffled])  # each position by itself


def test_permute_serves_huge_ranges_and_depends_on_its_key():
    count = 10**15 + 7
    positions = np.array([0, 1, 2, count - 1], dtype=np.uint64)
    a, b = permute(positions, count, 1), permute(positions, count, 2)
    assert (a < count).all()
    assert len(set(a.tolist()) | set(b.tolist())) == 8


def test_permute_looks_uniform():
    """Where the first element goes, over 3,000 keys: chi-squared, 5 degrees of freedom, p = 1e-4 at 25.7."""
    for position in (0, 5):
        hits = Counter(int(permute(np.array([position], dtype=np.uint64), 6, key)[0]) for key in range(3000))
        assert sum((hits[value] - 500) ** 2 / 500 for value in range(6)) < 25.7


def test_permute_leaves_no_order_behind():
    image = permute(np.arange(10_000, dtype=np.uint64), 10_000, 3).astype(float)
    assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(image, np.arange(10_000))[0, 1]) < 0.05


def numbers(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.int64)


def test_windows_are_pure_functions_of_seed_and_step():
    windows, again = Windows(numbers(5000), 16, 8, seed=3), Windows(numbers(5000), 16, 8, seed=3)
    later = [again.batch(step) for step in (90, 7, 41)]
    for step, (inputs, targets) in zip((90, 7, 41), later, strict=True):
        assert torch.equal(windows.batch(step)[0], inputs)
        assert torch.equal(windows.batch(step)[1], targets)
    assert not torch.equal(windows.batch(0)[0], Windows(numbers(5000), 16, 8, seed=4).batch(0)[0])


def test_windows_have_the_shape_and_the_shift():
    inputs, targets = Windows(numbers(5000), 16, 8, seed=0).batch(5)
    assert inputs.shape == targets.shape == (8, 16)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(targets, inputs + 1)
    assert (inputs[:, 1:] - inputs[:, :-1] == 1).all()


@pytest.mark.parametrize(
    ("total", "sequence", "batch"), [(1000, 10, 7), (1009, 10, 4), (64, 8, 3), (21, 10, 2), (11, 10, 1)]
)
def test_an_epoch_visits_every_window_once(total, sequence, batch):
    windows = Windows(numbers(total), sequence, batch, seed=1)
    steps = -(-3 * windows.count // batch)
    starts = np.concatenate([windows.starts(step) for step in range(steps)])[: 3 * windows.count]
    offsets = set()
    for epoch in starts.reshape(3, windows.count):
        (offset,) = set((epoch % sequence).tolist())  # one offset an epoch, so windows do not overlap
        offsets.add(offset)
        assert len(set(epoch.tolist())) == windows.count
        assert epoch.min() >= 0
        assert epoch.max() + sequence + 1 <= total
    assert total < 100 or len(offsets) > 1
    assert windows.count * sequence > total - 2 * sequence - 1  # hardly anything is left out


def test_windows_read_a_token_file(text, tmp_path):
    data = prepare(str(text), tmp_path / "out")
    inputs, targets = Windows(data.part("train"), 43, 4, 0).batch(0)
    for row, following in zip(inputs, targets, strict=True):
        sentence = bytes(row.tolist())
        assert sentence in TEXT
        assert bytes(following.tolist())[:-1] == sentence[1:]


def test_too_few_tokens_name_both_numbers():
    with pytest.raises(DataError, match="sequence = 16: needs 17 tokens in a row, the training part has 16"):
        Windows(numbers(16), 16, 1, 0)
    assert Windows(numbers(17), 16, 1, 0).batch(3)[0].tolist() == [list(range(16))]
    with pytest.raises(DataError, match="sequence = 16: 4 streams need 65 tokens, valid has 64"):
        Streams(numbers(64), 16, 4, part="valid")
    assert Streams(numbers(65), 16, 4).batch(9)[0].flatten().tolist() == list(range(64))


def test_half_of_the_windows_come_from_the_other_strand():
    bases = np.random.default_rng(1).integers(0, 6, 4000).astype(np.uint8)
    plain = Windows(bases, 20, 16, seed=2)
    both = Windows(bases, 20, 16, seed=2, complement=COMPLEMENT)
    turned = 0
    for step in range(40):
        for start, one, other in zip(
            plain.starts(step), *(w.batch(step)[0] for w in (plain, both)), strict=True
        ):
            window = bases[start : start + 21]
            if not torch.equal(one, other):
                turned += 1
                assert other.tolist() == COMPLEMENT[window[::-1]][:-1].tolist()
        inputs, targets = both.batch(step)
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        assert torch.equal(inputs, both.batch(step)[0])
    assert 240 < turned < 400  # of 640
    assert COMPLEMENT[COMPLEMENT].tolist() == list(range(6))


def test_json_lines_of_texts_are_documents(tmp_path):
    path = tmp_path / "d.jsonl"
    rows = [{"text": "first, ünï"}, {"id": 2, "text": "second\nline"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = find(str(path))
    assert corpus.documents
    assert corpus.description == "documents of d.jsonl, by text"
    assert b"".join(corpus.chunks()).decode() == "first, ünï\nsecond\nline\n"
    path.write_text('{"text": "a"}\n{"texts": "b"}\n')
    with pytest.raises(DataError, match=r"d.jsonl, line 2: needs text \(a string\)"):
        list(find(str(path)).chunks())
    path.write_text('{"body": "a"}\n')  # nothing that is known: its bytes, as of any other file
    assert b"".join(find(str(path)).chunks()) == b'{"body": "a"}\n'


@pytest.mark.parametrize(("sequence", "batch", "seed"), [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_sizes_out_of_range(sequence, batch, seed):
    with pytest.raises(ConfigError):
        Windows(numbers(100), sequence, batch, seed)


def test_streams_read_on_where_they_stopped():
    streams = Streams(numbers(1003), 10, 4)
    assert streams.steps_per_epoch == 25
    last = torch.empty(0)
    for step in range(60):
        inputs, targets, fresh = streams.batch(step)
        assert inputs.shape == (4, 10)
        assert torch.equal(targets, inputs + 1)
        assert fresh.tolist() == [step % 25 == 0] * 4
        if not fresh.any():
            assert torch.equal(inputs[:, 0], last + 1)
        assert torch.equal(streams.batch(step)[0], inputs)
        last = inputs[:, -1]


def test_streams_cover_the_text_once_an_epoch():
    streams = Streams(numbers(1003), 10, 4)
    for epoch in range(3):
        seen = torch.cat([streams.batch(epoch * 25 + step)[0].flatten() for step in range(25)])
        assert len(set(seen.tolist())) == 1000
        assert int(seen.max()) < 1002
