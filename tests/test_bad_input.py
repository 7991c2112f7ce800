"""What a new user gets wrong: one line that names place and rule, exit code 2, nothing left behind."""

import io
import json
import struct
import wave

import pytest

from quatrain import cli

SMALL = [
    "--train.steps",
    "1",
    "--model.width",
    "8",
    "--model.layers",
    "1",
    "--mixer",
    "gru",
    "--threads",
    "1",
]


def wav(path, samples=800, rate=8000):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(b"".join(struct.pack("<h", (k * 37) % 2000 - 1000) for k in range(samples)))


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def parquet(path, columns):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path)


def sounds(folder, rate=8000, samples=800):
    for kind in ("high", "low"):
        for number in range(8):
            wav(folder / kind / f"{number}.wav")
    wav(folder / "low" / "8.wav", samples, rate)
    return folder


def rows(count, make):
    return "".join(make(k) + "\n" for k in range(count))


CASES = {
    "empty file": (lambda p: put(p / "a.txt", ""), "the file is empty"),
    "missing": (lambda p: p / "a.txt", "cannot be read: No such file"),
    "binary as a table": (lambda p: put(p / "a.csv", b"\0\1\2" * 400), "is binary, not text (a NUL"),
    "binary as json lines": (lambda p: put(p / "a.jsonl", b"\0\1\2" * 400), "is binary, not text (a NUL"),
    "text in a column": (
        lambda p: put(p / "a.csv", "t,x\n" + rows(300, lambda k: f"{k},{'oops' if k == 200 else k}")),
        "row 201, column 'x' = 'oops': must be a finite number",
    ),
    "nan in a column": (
        lambda p: put(p / "a.csv", "t,x\n" + rows(300, lambda k: f"{k},{'NaN' if k == 7 else k}")),
        "row 8, column 'x' = 'NaN': must be a finite number",
    ),
    "hole in a column": (
        lambda p: put(p / "a.csv", "t,x\n" + rows(300, lambda k: f"{k},{'' if k == 7 else k}")),
        "row 8, column 'x' = '': must be a finite number",
    ),
    "one class only": (
        lambda p: put(p / "a.jsonl", lines(*({"text": f"w{k}", "label": "a"} for k in range(60)))),
        "has one class only, 'a': nothing to tell apart",
    ),
    "label only in test": (
        lambda p: put(
            p / "a.jsonl",
            lines(
                *({"text": f"w{k}", "label": "ab"[k % 2], "split": "train"} for k in range(60)),
                *({"text": f"w{k}", "label": "abc"[k % 3], "split": "test"} for k in range(9)),
            ),
        ),
        "label 'c' appears only in the test part, never in training",
    ),
    "foreign letters in fasta": (
        lambda p: put(p / "a.fa", ">one\nACGT\nACJT\n"),
        "line 3: 'J': must be one of ACGTN",
    ),
    "a class in several tables": (
        lambda p: put(p / "a.csv", "label,x\n" + rows(50, lambda k: f"{k % 2},{k}{',1' if k == 9 else ''}")),
        "row 10: 3 cells, the header has 2",
    ),
    "ragged steps": (
        lambda p: put(
            p / "a.jsonl",
            lines(*({"values": [[1, 2], [3]] if k == 5 else [[1, 2]], "label": k % 2} for k in range(40))),
        ),
        "line 6: step 2 has 1 numbers, step 1 has 2",
    ),
    "ragged widths": (
        lambda p: put(
            p / "a.jsonl", lines(*({"values": [[1] * (1 + k // 30)], "label": k % 2} for k in range(40)))
        ),
        "line 31: has 2 numbers a step",
    ),
    "wav of another rate": (lambda p: sounds(p / "s", rate=16_000), "8.wav: has 16000 samples a second"),
    "wav without samples": (lambda p: sounds(p / "s", samples=0), "8.wav: has 0 samples"),
    "one wav": (lambda p: wav(p / "a.wav") or p / "a.wav", "is one recording; give a directory"),
    "empty directory": (lambda p: (p / "none").mkdir() or p / "none", "the directory is empty"),
    "nested parquet": (
        lambda p: parquet(p / "a.parquet", {"x": [[1, 2]] * 9, "y": [1] * 9}) or p / "a.parquet",
        "column 'x' is nested (list<",
    ),
    "hole in a parquet": (
        lambda p: parquet(p / "a.parquet", {"x": [1.0] * 90 + [None] + [2.0] * 90}) or p / "a.parquet",
        "row 91, column 'x' = None: must be a finite number",
    ),
    "no parquet": (lambda p: put(p / "a.parquet", "x,y\n1,2\n"), "is no Parquet file"),
    "times out of order": (
        lambda p: put(p / "a.csv", "t,date,x\n" + rows(300, lambda k: f"1,2020-01-{1 + k % 28:02d},{k}")),
        "row 29, column 'date' = '2020-01-01': is not later than the row before",
    ),
    "counts out of order": (
        lambda p: put(p / "a.csv", "time,x\n" + rows(300, lambda k: f"{k if k != 50 else 3},{k}")),
        "row 51, column 'time' = '3': is not later than the row before",
    ),
    "damaged gz": (lambda p: put(p / "a.csv.gz", b"\x1f\x8b\x08\0 no more"), "a.csv.gz': cannot be read: "),
    "documents without text": (
        lambda p: put(p / "a.jsonl", lines({"text": "one"}, {"body": "two"})),
        "line 2: needs text (a string)",
    ),
    "broken json": (lambda p: put(p / "a.jsonl", '{"text": "a", "label": 1}\n{"te\n'), "line 2: is no JSON"),
    "too short a series": (
        lambda p: put(p / "a.csv", "t,x\n" + rows(60, lambda k: f"{k},{k}")),
        "needs 280 steps in a row with the horizon of 24, the training part has 51",
    ),
}


def put(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("name", CASES)
def test_wrong_data_is_refused_in_one_line(name, tmp_path, capsys):
    make, message = CASES[name]
    source = make(tmp_path)
    out = tmp_path / "out"
    code = cli.main(["train", str(source), *SMALL, "--out", str(out)])
    said, err = capsys.readouterr()
    refused = [line for line in err.splitlines() if not line.startswith(("data: ", "training "))]
    assert (code, said, len(refused)) == (2, "", 1), err
    assert message in refused[0]
    assert not out.exists()


def test_binary_data_is_read_as_bytes_and_called_so(tmp_path, capsys):
    path = put(tmp_path / "a.bin", bytes(range(256)) * 40)
    args = [*SMALL, "--train.sequence", "16", "--train.batch_tokens", "32"]
    assert cli.main(["train", str(path), *args, "--out", str(tmp_path / "out")]) == 0
    assert "binary data, not text (file a.bin): a language model over its bytes" in capsys.readouterr().err


def test_eval_names_a_label_that_the_model_does_not_know(tmp_path, capsys, monkeypatch):
    kinds = lines(*({"text": "ab" * 4, "label": "xy"[k % 2]} for k in range(60)))
    out = str(tmp_path / "out")
    assert cli.main(["train", str(put(tmp_path / "a.jsonl", kinds)), *SMALL, "--out", out]) == 0
    capsys.readouterr()
    other = put(tmp_path / "b.jsonl", lines({"text": "ab", "label": "x"}, {"text": "ab", "label": "z"}))
    for source, stdin, message in (
        (str(other), "", "line 2: label 'z': the model knows only x, y"),
        ("-", other.read_text(), "line 2: label 'z': the model knows only x, y"),
        ("-", "", "is empty (standard input)"),
        (str(put(tmp_path / "c.jsonl", lines({"text": "ab"}))), "", "the task classify needs other data"),
    ):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        assert cli.main(["eval", out, source]) == 2
        said, err = capsys.readouterr()
        assert (said, len(err.splitlines())) == ("", 1)
        assert message in err
