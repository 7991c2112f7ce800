"""Using what was trained: answers from files, pipes and Python; scores; fine-tuning; charts."""

import gzip
import io
import json
import math
import subprocess
import sys
import time
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch

import quatrain
from quatrain import checkpoint, cli
from quatrain.config.schema import from_dict
from quatrain.errors import CheckpointError, ConfigError, DataError
from quatrain.infer.sample import Sampling
from quatrain.train.config import RunConfig
from quatrain.train.loop import train


def run(*args, capsys):
    code = cli.main([str(word) for word in args])
    out, err = capsys.readouterr()
    return code, out, err


def config_of(source, model=None, data=None, **more) -> RunConfig:
    settings = {"steps": 30, "eval_every": 15, "save_every": 30, "sequence": 32, "batch_tokens": 256}
    return from_dict(
        RunConfig,
        {
            "data": {"source": str(source), "fractions": [0.6, 0.2, 0.2]} | (data or {}),
            "model": {"width": 16, "layers": 1, "pattern": "lstm"} | (model or {}),
            "train": settings | {"lr": 1e-2, "batch_sequences": 8} | more,
        },
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("use")
    (place / "text.txt").write_text("the cat sat on the mat. the dog sat on the log. " * 100)
    rows = ["time,wave,other"]
    rows += [f"{k},{10 + 3 * math.sin(math.tau * k / 12):.4f},{k % 5}" for k in range(300)]
    (place / "series.csv").write_text("\n".join(rows) + "\n")
    labelled = [{"text": "ab" * (3 + k % 4) if k % 2 else "xy" * 5, "label": f"k{k % 2}"} for k in range(80)]
    (place / "kinds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled))
    (place / "bases.fa").write_text(">one\n" + "ACGTTGCA" * 200 + "\n>two\n" + "GGCATTAC" * 200 + "\n")
    return place


@pytest.fixture(scope="module")
def trained(folder):
    sources = {"lm": "text.txt", "forecast": "series.csv", "classify": "kinds.jsonl", "dna": "bases.fa"}
    made = {}

    def of(kind):
        if kind not in made:
            data = {"horizon": 6, "season": 12, "target": ["wave"]} if kind == "forecast" else {}
            made[kind] = folder / f"run-{kind}"
            train(config_of(folder / sources[kind], data=data), made[kind], threads=1)
        return made[kind]

    return of


# -- predict


def test_a_language_model_continues_files_lines_and_pipes(folder, trained, tmp_path, capsys, monkeypatch):
    one, many = tmp_path / "one.txt.gz", tmp_path / "many.jsonl"
    one.write_bytes(gzip.compress(b"the cat sat"))
    many.write_text('{"text": "the dog"}\n{"text": "on the"}\n')
    code, out, err = run("predict", trained("lm"), one, many, "--max-tokens", 5, capsys=capsys)
    answers = [json.loads(line) for line in out.splitlines()]
    assert (code, err, len(answers)) == (0, "", 3)
    assert [answer["source"] for answer in answers] == [str(one), f"{many}, line 1", f"{many}, line 2"]
    assert all(answer["tokens"] == 5 for answer in answers)
    monkeypatch.setattr("sys.stdin", io.StringIO('the dog\n\n{"text": "on the"}\n'))
    code, out, err = run("predict", trained("lm"), "-", "--max-tokens", 5, capsys=capsys)
    piped = [json.loads(line) for line in out.splitlines()]
    assert [row["text"] for row in piped] == [row["text"] for row in answers[1:]]
    assert [row["source"] for row in piped] == ["stdin, line 1", "stdin, line 3"]
    again = quatrain.predict(trained("lm"), b"the dog", max_tokens=5, device="cpu")
    assert again[0]["text"] == answers[1]["text"]
    drawn = quatrain.predict(trained("lm"), many, max_tokens=40, sampling=Sampling(seed=3))
    assert len(drawn) == 2
    assert [row["text"] for row in drawn] != [row["text"] for row in answers[1:]]


def test_dna_is_continued_in_bases(trained, tmp_path, capsys):
    code, out, err = run("predict", trained("dna"), tmp_path / "no.fa", capsys=capsys)
    assert (code, "does not exist" in err) == (2, True)
    (tmp_path / "q.fa").write_text(">q\nACGTTGCAACG\n")
    code, out, err = run("predict", trained("dna"), tmp_path / "q.fa", "--max-tokens", 9, capsys=capsys)
    assert (code, set(json.loads(out)["text"]) <= set("ACGTN")) == (0, True)


def test_labelled_lines_are_answered_and_their_labels_left_alone(folder, trained, capsys, monkeypatch):
    lines = (folder / "kinds.jsonl").read_text()
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    code, out, err = run("predict", trained("classify"), "-", capsys=capsys)
    found = [json.loads(line)["class"] for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert found == [row["class"] for row in quatrain.predict(trained("classify"), folder / "kinds.jsonl")]
    packed = folder / "kinds-again.jsonl.gz"
    packed.write_bytes(gzip.compress(lines.encode()))
    assert [row["class"] for row in quatrain.predict(trained("classify"), packed)] == found


def test_arrays_and_bytes_are_inputs_too(folder, trained):
    (answer,) = quatrain.predict(trained("classify"), b"abababab")
    assert answer["class"] == "k1"
    rows = np.loadtxt(folder / "series.csv", delimiter=",", skiprows=1)[:, 1:]
    by_array = quatrain.predict(trained("forecast"), rows)
    by_file = quatrain.predict(trained("forecast"), folder / "series.csv")
    np.testing.assert_allclose(by_array.mean, by_file.mean, rtol=1e-5)
    for kind, wrong, message in (
        ("forecast", np.zeros((4, 3)), "has 3 numbers a step, the model reads 2"),
        ("forecast", np.zeros((0, 2)), "must be numbers"),
        ("forecast", np.array([[1.0, np.nan]]), "step 1, channel 2 is nan"),
        ("forecast", b"text", "a text; the model forecasts numbers"),
        ("lm", np.zeros(3), "a language model reads a text"),
        ("lm", b"", "prompt: empty"),
        ("classify", b"", "the text is empty"),
    ):
        with pytest.raises(DataError, match=message):
            quatrain.predict(trained(kind), wrong)


@pytest.mark.parametrize("pattern", ["lstm", "s6", "attention", "gru", "rnn", "s4d"])
def test_a_forecast_by_line_is_the_forecast_by_file(pattern, folder, tmp_path, capsys, monkeypatch):
    data = {"horizon": 6, "season": 12, "target": ["wave"]}
    out = tmp_path / "run"
    train(config_of(folder / "series.csv", {"pattern": pattern}, data, steps=4), out, threads=1)
    lines = (folder / "series.csv").read_text().splitlines()
    (tmp_path / "part.csv").write_text("\n".join(lines[:30]) + "\n")
    code, by_file, _ = run("predict", out, tmp_path / "part.csv", capsys=capsys)
    assert code == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines[:30]) + "\n"))
    code, by_line, err = run("predict", out, "-", capsys=capsys)
    assert (code, err, len(by_line.splitlines())) == (0, "", 30)  # a header, and 29 rows
    last = [float(cell) for cell in by_line.splitlines()[-1].split(",")]
    means = [float(row.split(",")[1]) for row in by_file.splitlines()[1:]]
    np.testing.assert_allclose(last, means, rtol=1e-4)


def test_a_slow_pipe_is_answered_line_by_line(trained):
    command = [sys.executable, "-m", "quatrain", "predict", str(trained("forecast")), "-", "--threads", "1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("time,wave,other\n")
        process.stdin.flush()
        assert process.stdout.readline().startswith("wave+1,wave+2")
        answers = []
        for k in range(4):
            process.stdin.write(f"{k},{10 + k},{k}\n")
            process.stdin.flush()
            answers.append(process.stdout.readline())  # would wait for ever if answers were kept back
            time.sleep(0.05)
        assert all(len(answer.split(",")) == 6 for answer in answers)
        assert len(set(answers)) == 4
        process.stdin.write("4,bad,1\n")
        process.stdin.close()
        assert process.wait(timeout=60) == 2


def test_wrong_lines_of_a_stream_name_line_and_column(trained, capsys, monkeypatch):
    for text, message in (
        ("10,1\n11,x\n", "stdin, line 2, column 'other' = 'x'"),
        ("10,1\n11\n", "stdin, line 2: has 1 numbers, must have 2: wave, other"),
        ("time,wave\n", "stdin, line 1: has no column 'other'"),
        ("10,nan\n", "column 'other' = 'nan': must be a finite number"),
    ):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        code, _, err = run("predict", trained("forecast"), "-", capsys=capsys)
        assert (code, len(err.splitlines())) == (2, 1)
        assert message in err


def test_a_model_of_the_calendar_reads_the_time_of_every_line(folder, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    data = {"horizon": 6, "season": 12, "target": ["wave"], "calendar": True}
    train(config_of(folder / "series.csv", {"pattern": "lstm"}, data, steps=4), out, threads=1)
    lines = (folder / "series.csv").read_text().splitlines()[:30]
    (tmp_path / "part.csv").write_text("\n".join(lines) + "\n")
    code, by_file, _ = run("predict", out, tmp_path / "part.csv", capsys=capsys)
    assert code == 0
    want = [float(row.split(",")[1]) for row in by_file.splitlines()[1:]]
    bare = [line.split(",") for line in lines[1:]]
    time = lines[0].split(",").index("time")
    for sent in (lines, [",".join((row[time], *row[:time], *row[time + 1 :])) for row in bare]):
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(sent) + "\n"))
        code, by_line, err = run("predict", out, "-", capsys=capsys)
        assert (code, err) == (0, "")
        got = [float(cell) for cell in by_line.splitlines()[-1].split(",")]
        np.testing.assert_allclose(got, want, rtol=1e-4)
    for text, message in (
        ("soon,1,2\n", "column 'time' = 'soon': must be a time such as"),
        (
            "2020-01-02 00:00,1,2\n2020-01-01 00:00,1,2\n",
            "line 2, column 'time' = '2020-01-01 00:00': is not",
        ),
        ("wave,other\n", "stdin, line 1: has no column 'time'"),
    ):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        code, _, err = run("predict", out, "-", capsys=capsys)
        assert (code, len(err.splitlines()), message in err) == (2, 1, True), err


def test_several_series_stand_under_one_header(folder, trained, tmp_path, capsys):
    (tmp_path / "b.csv").write_text((folder / "series.csv").read_text())
    code, out, _ = run(
        "predict", trained("forecast"), folder / "series.csv", tmp_path / "b.csv", capsys=capsys
    )
    rows = [line.split(",") for line in out.splitlines()]
    assert (code, len(rows), rows[0][:3]) == (0, 13, ["source", "step", "wave"])
    assert {row[0] for row in rows[1:]} == {str(folder / "series.csv"), str(tmp_path / "b.csv")}


def test_a_chart_of_the_forecast(folder, trained, tmp_path, capsys):
    source, model = folder / "series.csv", trained("forecast")
    code, out, err = run("predict", model, source, "--chart", tmp_path / "f.svg", capsys=capsys)
    assert (code, err, len(out.splitlines())) == (0, "", 7)
    assert ET.fromstring((tmp_path / "f.svg").read_text()).tag.endswith("svg")
    code, _, err = run("predict", model, source, "--chart", tmp_path / "f.html", capsys=capsys)
    page = (tmp_path / "f.html").read_text()
    assert (code, err) == (0, "")
    assert 'src="http' not in page
    for args, message in (
        ((model, source, "--chart", tmp_path / "f.png"), "must end in .svg or .html"),
        ((model, "-", "--chart", tmp_path / "f.svg"), "draws the forecast of one file"),
        ((model, source, "--chart", tmp_path / "no" / "f.svg"), "is no directory"),
        ((trained("lm"), source, "--chart", tmp_path / "g.svg"), "is for forecasts; this model's task is lm"),
    ):
        code, out, err = run("predict", *args, capsys=capsys)
        assert (code, out, message in err) == (2, "", True)
    assert not (tmp_path / "g.svg").exists()


# -- evaluate


def test_evaluate_gives_what_eval_shows(folder, trained, capsys, monkeypatch):
    found = quatrain.evaluate(trained("classify"))
    assert (found.task, found.scored, found.metrics["accuracy"]) == ("classify", found.total, 1.0)
    assert set(found.baselines) == {"majority"}
    code, out, _ = run("eval", trained("classify"), capsys=capsys)
    assert (code, "100.00%" in out) == (0, True)
    every = quatrain.evaluate(trained("classify"), folder / "kinds.jsonl", device="cpu")
    assert (every.scored, every.data) == (80, "kinds, all")
    lines = (folder / "kinds.jsonl").read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines)))
    assert quatrain.evaluate(trained("classify"), "-").metrics == every.metrics
    text = quatrain.evaluate(trained("lm"), part="valid", limit=200)
    assert text.metrics["bits_per_byte"] == pytest.approx(text.loss / math.log(2))
    assert text.context
    with pytest.raises(ConfigError, match=r"part = 'some': must be one of"):
        quatrain.evaluate(trained("lm"), part="some")
    with pytest.raises(ConfigError, match=r"limit = 0"):
        quatrain.evaluate(trained("lm"), limit=0)
    with pytest.raises(DataError, match=r"does not|cannot be read"):
        quatrain.evaluate(trained("lm"), folder / "nowhere.txt")


# -- fine-tuning


def test_fine_tuning_begins_with_the_weights(folder, trained, tmp_path, capsys):
    (tmp_path / "more.txt").write_text("the mat sat on the cat. " * 200)
    before = checkpoint.load(trained("lm")).state_dict()
    out = tmp_path / "run"
    args = ["--train.steps", 1, "--train.lr", 1e-9, "--train.sequence", 32, "--train.batch_tokens", 64]
    more = ("--init-from", trained("lm"), "--out", out, "--threads", 1)
    code, _, err = run("train", tmp_path / "more.txt", *args, *more, capsys=capsys)
    assert code == 0
    assert f"note: begins with {sum(v.numel() for v in before.values()):,} weights of" in err
    after = checkpoint.load(out).state_dict()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=1e-6, rtol=0)
    first = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert first[0]["config"]["train"]["init_from"] == str(trained("lm"))
    assert first[1]["loss"] < 3  # an untrained model begins at log 256
    code, out_text, err = run("train", "--resume", out, capsys=capsys)
    assert (code, "was finished before" in out_text) == (0, True)


def test_other_labels_get_a_new_head_and_a_text_model_learns_classes(folder, trained, tmp_path, capsys):
    rows = [{"text": "ab" * 5 if k % 3 else "xy" * 5, "label": f"c{k % 3}"} for k in range(60)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = ["--train.steps", 1, "--train.batch_sequences", 4, "--threads", 1]
    for kind, said in (
        ("classify", "new head (the labels differ)"),
        ("lm", "new head (task lm there, classify here)"),
    ):
        out = tmp_path / kind
        args = ("--init-from", trained(kind), "--out", out)
        code, _, err = run("train", tmp_path / "c.jsonl", *small, *args, capsys=capsys)
        assert (code, said in err) == (0, True), err
        old, new = (checkpoint.load(place).state_dict() for place in (trained(kind), out))
        assert len(new["head.bias"]) == 3
        torch.testing.assert_close(new["embedding.weight"], old["embedding.weight"], atol=1e-2, rtol=0)


def test_classes_of_byte_pairs_are_answered_and_judged(folder, tmp_path, capsys, monkeypatch):
    pytest.importorskip("tokenizers")
    rows = [{"text": f"{'good' if k % 2 else 'awful'} film {k}", "label": "yn"[k % 2]} for k in range(80)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "c.jsonl").write_text(lines)
    out, small = tmp_path / "run", ["--model.layers", 1, "--train.batch_sequences", 8, "--threads", 1]
    args = ("--tokenizer", "bpe", "--data.bpe_vocab", 300, "--model.width", 16, "--out", out)
    rate = ("--train.steps", 30, "--train.lr", 0.03)
    code, _, err = run("train", tmp_path / "c.jsonl", *small, *args, *rate, capsys=capsys)
    assert (code, "read as 300 byte pairs" in err) == (0, True), err
    assert checkpoint.load(out).config.vocab == 300
    asked = json.dumps({"text": "an awful film"}) + "\nwhat a good film\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(asked))
    code, said, err = run("predict", out, "-", capsys=capsys)
    assert (code, err) == (0, "")
    assert [json.loads(line)["class"] for line in said.splitlines()] == ["y", "n"]
    assert quatrain.evaluate(out, tmp_path / "c.jsonl").metrics["accuracy"] == 1
    assert quatrain.evaluate(out).scored < 80
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), errors="surrogateescape"))
    code, said, err = run("predict", out, "-", capsys=capsys)
    assert (code, said) == (2, "")
    assert "stdin, line 1: byte 4 is not UTF-8" in err or "stdin, line 1: byte 0xe9 is not UTF-8" in err
    more = ("--init-from", out, "--out", tmp_path / "more", "--train.steps", 1)
    code, _, err = run("train", tmp_path / "c.jsonl", *small, *more, capsys=capsys)
    assert (code, "; new " in err) == (0, False), err
    old, new = (checkpoint.read(place).tensors("tokenizer")["json"] for place in (out, tmp_path / "more"))
    assert torch.equal(old, new)


def test_dna_after_text_gets_new_tables(folder, trained, tmp_path, capsys):
    args = ("--init-from", trained("lm"), "--out", tmp_path / "run", "--train.steps", 1, "--threads", 1)
    sizes = ("--train.sequence", 32, "--train.batch_tokens", 64)
    code, out, err = run("train", folder / "bases.fa", *args, *sizes, capsys=capsys)
    assert (code, "new embedding (vocab 256 there, 6 here)" in err) == (0, True), err
    assert "bases, each record a document; windows come from both strands" in err
    assert "quatrain generate" in out
    assert "--prompt 'ACGT'" in out


def test_what_does_not_fit_is_named(folder, trained, tmp_path, capsys):
    for more, message in (
        (["--mixer", "gru"], "does not fit this model: "),
        (["--model.width", "24"], "model.width = 16 there, 24 here"),
        (["--model.layers", "2"], "model.layers = 1 there, 2 here"),
    ):
        args = ("--init-from", trained("lm"), "--out", tmp_path / "run")
        code, out, err = run("train", folder / "text.txt", *more, *args, capsys=capsys)
        assert (code, out) == (2, "")
        assert message in err.splitlines()[-1]
        assert not (tmp_path / "run").exists()
    code, _, err = run("train", folder / "text.txt", "--init-from", tmp_path, capsys=capsys)
    assert (code, "is not a checkpoint" in err) == (2, True)
    config = config_of(folder / "text.txt", {"pattern": "rnn"}, init_from=str(trained("lm")))
    with pytest.raises(CheckpointError, match=r"model.pattern = 'lstm' there, 'rnn' here"):
        train(config, tmp_path / "r", threads=1)
    assert not (tmp_path / "r").exists()


def test_fine_tuning_reads_a_text_in_the_models_own_byte_pairs(folder, tmp_path, capsys):
    data = {"tokenizer": "bpe", "bpe_vocab": 280}
    before = tmp_path / "before"
    train(config_of(folder / "text.txt", data=data, steps=2), before, threads=1)
    (tmp_path / "more.txt").write_text("a bat and a rat went up the mat. " * 200)
    sizes = ("--train.sequence", 32, "--train.batch_tokens", 64, "--train.steps", 1, "--threads", 1)
    args = ("--init-from", before, "--out", tmp_path / "after", *sizes)
    code, _, err = run("train", tmp_path / "more.txt", *args, capsys=capsys)
    assert (code, "; new " in err) == (0, False), err
    old, new = (checkpoint.read(place).tensors("tokenizer")["json"] for place in (before, tmp_path / "after"))
    assert torch.equal(old, new)
    assert checkpoint.load(tmp_path / "after").config.vocab == checkpoint.load(before).config.vocab


def test_the_other_strand_is_for_dna(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"data.reverse_complement = 'on': is for DNA"):
        train(config_of(folder / "text.txt", data={"reverse_complement": "on"}), tmp_path / "a", threads=1)
    strands = {"reverse_complement": "on"}
    with pytest.raises(ConfigError, match=r"data.reverse_complement = 'on': is for windows of DNA"):
        train(config_of(folder / "bases.fa", data=strands, carry_state=True), tmp_path / "b", threads=1)
    losses = []
    for wanted in ("auto", "on", "off"):
        config = config_of(folder / "bases.fa", data={"reverse_complement": wanted}, steps=1)
        losses.append(train(config, tmp_path / wanted, threads=1).progress.loss)
    assert losses[0] == losses[1] != losses[2]
