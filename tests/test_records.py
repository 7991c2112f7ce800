"""Records: rows survive a killed writer, resume at an offset, and are strict JSON."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from quatrain._files import naming
from quatrain.errors import DataError
from quatrain.records import Writer, read


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs" / "records.jsonl"


def test_rows_come_back_as_written(path):
    with Writer(path) as writer:
        writer.write("step", step=1, loss=2.5, text="Tang 唐\n", list=[1, (2, 3)], t={"a": None})
        writer.write("end", complete=True)
    assert list(read(path)) == [
        {
            "v": 1,
            "kind": "step",
            "step": 1,
            "loss": 2.5,
            "text": "Tang 唐\n",
            "list": [1, [2, 3]],
            "t": {"a": None},
        },
        {"v": 1, "kind": "end", "complete": True},
    ]


def test_nan_and_inf_become_null_and_array_scalars_numbers(path):
    with Writer(path) as writer:
        nested = [math.inf, {"a": -math.inf}]
        writer.write("step", loss=math.nan, nested=nested, n=np.int64(3), x=np.float32(0.5))
        writer.write("step", n=np.float64("nan"), m=np.float32("inf"))
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not strict JSON"))
    first, second = read(path)
    assert (first["loss"], first["nested"], first["n"], first["x"]) == (None, [None, {"a": None}], 3, 0.5)
    assert (second["n"], second["m"]) == (None, None)


def test_what_json_cannot_hold_is_refused_and_nothing_written(path):
    with Writer(path) as writer:
        with pytest.raises(TypeError, match="cannot hold a set"):
            writer.write("step", value={1, 2})
        assert writer.offset() == 0


def test_a_row_is_readable_as_soon_as_it_is_written(path):
    with Writer(path) as writer:
        writer.write("step", step=1)
        assert [row["step"] for row in read(path)] == [1]


@pytest.mark.parametrize("torn", [b"{", b'{"v":1,"kind":"st', b'{"v":1,"kind":"step"}', b"\0\0\0"])
def test_a_torn_last_line_is_skipped_and_then_cut(path, torn):
    with Writer(path) as writer:
        writer.write("step", step=1)
    with open(path, "ab") as file:
        file.write(torn)
    assert [row["step"] for row in read(path)] == [1]
    with Writer(path) as writer:
        writer.write("step", step=2)
    assert [row["step"] for row in read(path)] == [1, 2]


@pytest.mark.parametrize("content", [b"# A diary\nDear diary,", b"{", b"a,b\n1,2\n", b"\x89PNG"])
def test_a_foreign_file_is_never_cut(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    if content != b"{":
        with pytest.raises(DataError, match=r"records\.jsonl: is not a file of records"):
            Writer(path)
        assert path.read_bytes() == content


def test_a_torn_middle_line_is_an_error_that_names_it(path):
    with Writer(path) as writer:
        writer.write("step", step=1)
    with open(path, "ab") as file:
        file.write(b'{"v":1,"kin\n{"v":1,"kind":"step","step":2}\n')
    rows = read(path)
    assert next(rows)["step"] == 1
    with pytest.raises(DataError, match=r"records\.jsonl, line 2: is not a row"):
        next(rows)


@pytest.mark.parametrize("version", ["2", '"1"', "null"])
def test_another_version_is_an_error(path, version):
    path.parent.mkdir()
    path.write_text(f'{{"v":{version},"kind":"step"}}\n')
    with pytest.raises(DataError, match="line 1: row of version"):
        list(read(path))


def test_resume_cuts_back_to_the_offset_of_the_checkpoint(path):
    with Writer(path) as writer:
        writer.write("step", step=1)
        offset = writer.offset()
        writer.write("step", step=2)
    assert offset == len(path.read_bytes().splitlines(keepends=True)[0])
    with Writer(path, truncate_to=offset) as writer:
        assert writer.offset() == offset
        writer.write("step", step=20)
    assert [row["step"] for row in read(path)] == [1, 20]
    with Writer(path, truncate_to=0):
        assert path.read_bytes() == b""


def test_an_offset_that_does_not_fit_is_refused_and_nothing_cut(path):
    with Writer(path) as writer:
        writer.write("step", step=1)
    before = path.read_bytes()
    with pytest.raises(DataError, match=f"has {len(before)} bytes, .* counts on {len(before) + 1}"):
        Writer(path, truncate_to=len(before) + 1)
    with pytest.raises(DataError, match="no row ends at byte 5"):
        Writer(path, truncate_to=5)
    assert path.read_bytes() == before


def test_a_killed_writer_loses_no_complete_row(path):
    script = f"""
import os, signal
from quatrain.records import Writer
writer = Writer({str(path)!r})
for step in range(100):
    writer.write("step", step=step)
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script], check=False)
    assert [row["step"] for row in read(path)] == list(range(100))


def test_a_file_name_that_is_no_utf8_stays_valid_json(path):
    with Writer(path) as writer:
        writer.write("comparison", name="caf\udce9")
    assert json.loads(path.read_bytes().decode())["name"] == "caf\udce9"


def test_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        list(read(tmp_path / "none.jsonl"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_named(tmp_path):
    writer = Writer(tmp_path / "records.jsonl")
    full = open("/dev/full", "wb")  # noqa: SIM115 - closed by the writer
    writer._file.close()
    writer._file = full
    with pytest.raises(OSError, match=r"No space left on device: '.*records.jsonl'"):
        writer.write("row", text="x")
    with pytest.raises(OSError, match=r"No space left on device: '.*records.jsonl'"):
        writer.close()
    with pytest.raises(OSError, match=r"No space left on device: 'page.html'"), naming("page.html"):
        raise OSError(28, "No space left on device")
