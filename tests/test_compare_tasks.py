"""`quatrain compare` on every kind of data: rows, table, page, going on, and what is refused."""

import json
import math
import random

import pytest
from tests.stopping import Killed

import quatrain
from quatrain import records, report
from quatrain.cli import main
from quatrain.data.task import TASKS
from quatrain.data.tokens import prepare
from quatrain.errors import ConfigError
from quatrain.lab import calibrate
from quatrain.lab.calibrate import Speed
from quatrain.lab.config import CompareConfig
from quatrain.lab.leak import leaks
from quatrain.lab.text import TextTask
from quatrain.model.config import ModelConfig
from quatrain.model.init import initialise
from quatrain.model.sequence import build

SPEED = Speed(step_seconds=0.01, forward_seconds=1e-6, peak_memory_bytes=10**8, empty_memory_bytes=10**7)
SMALL = ("--params", "4K", "--mixers", "rnn,attention", "--learning-rates", "3e-3,1e-2", "--contexts",
         "8,16", "--evaluation", "20s", "--threads", "1")  # fmt: skip
FORMS = {
    "lm": "text",
    "classify": "classes",
    "tag": "tags",
    "transcribe": "transcripts",
    "forecast": "forecast",
}


@pytest.fixture(autouse=True)
def known_speed(monkeypatch):
    """Calibration starts a process per model; that it measures is tested in test_lab.py."""
    monkeypatch.setattr(calibrate, "measure", lambda *ignored: SPEED)


def lines_of(task):
    """Sequences that a few steps of training get somewhere with."""
    drawn = random.Random(3)
    for index in range(90):
        if task == "classify":
            kind, length = index % 3, drawn.randrange(5, 9)
            yield {
                "values": [round(drawn.gauss(2 * kind, 1), 3) for _ in range(length)],
                "label": f"kind {kind}",
            }
        elif task == "tag":
            text = "".join(drawn.choice("abé") for _ in range(drawn.randrange(4, 9)))
            yield {"text": text, "labels": ["A" if char == "a" else "other" for char in text]}
        else:
            text = "".join(drawn.choice("xy") for _ in range(2))
            yield {
                "values": [[float(c == "x"), float(c == "y")] for c in text for _ in range(3)],
                "text": text,
            }


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    for task in ("classify", "tag", "transcribe"):
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines_of(task)))
    waves = (f"{at},{10 + 3 * math.sin(at * math.tau / 12):.4f},{at % 5}\n" for at in range(400))
    (folder / "forecast.csv").write_text("time,wave,other\n" + "".join(waves))
    drawn = random.Random(0)
    (folder / "lm.txt").write_text("".join(drawn.choice(("bed ", "cab ", "dead. ")) for _ in range(1500)))
    return folder


def command_of(sources, task, out, *more):
    (source,) = sources.glob(f"{task}.*")
    budget = {"lm": "1536tokens", "forecast": "2Ktokens"}.get(task, "1400tokens")
    size = {"lm": ("--sequence", "16", "--batch", "4"), "forecast": ("--sequence", "16", "--batch", "4")}
    data = ("--horizon", "4", "--data.season", "12", "--data.fractions", "0.7,0.15,0.15")
    args = ["compare", str(source), "--out", str(out), "--budget", budget, *SMALL]
    return [*args, *size.get(task, ("--batch", "8")), *(data if task == "forecast" else ()), *more]


def rows_of(out, *kinds):
    return [row for row in records.read(out / "records.jsonl") if row["kind"] in kinds]


@pytest.fixture(scope="module", params=list(TASKS))
def compared(request, sources, tmp_path_factory):
    """One comparison of each task by the command, what it said, and its directory."""
    task, out = request.param, tmp_path_factory.mktemp("out") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate, "measure", lambda *ignored: SPEED)
        assert main(command_of(sources, task, out)) == 0
    return task, out


def test_every_task_has_its_metrics_baselines_and_samples(compared):
    task, out = compared
    (about,) = rows_of(out, "comparison")
    names = [metric.name for metric in TASKS[task].metrics]
    assert about["task"] == task
    assert about["primary"]["name"] == names[0]
    results, baselines = rows_of(out, "result"), rows_of(out, "baseline")
    assert [(row["mixer"], row["status"]) for row in results] == [("rnn", "ok"), ("attention", "ok")]
    for row in (*results, *baselines):
        assert set(row["metrics"]) == set(row["valid_metrics"]) == set(names)
    known = TASKS[task].baselines
    assert all(row["name"].startswith(known) for row in baselines)
    assert {row["trained"] for row in rows_of(out, "gradient")} == {False, True}
    assert {row["context"] for row in rows_of(out, "step_cost")} == {8, 16}
    assert [row["form"] for row in rows_of(out, "sample")] == [FORMS[task]] * 2
    assert len({row["tokens"] for row in results}) == 1  # all read the same
    sizes = [row["params"] for row in rows_of(out, "model")]
    assert max(sizes) <= 1.02 * min(sizes)


def test_the_rate_and_the_checkpoint_are_chosen_by_the_first_metric(compared):
    task, out = compared
    metric = TASKS[task].metrics[0]
    (about,) = rows_of(out, "comparison")
    for result in rows_of(out, "result"):
        looks = [row for row in rows_of(out, "valid") if row["mixer"] == result["mixer"]]
        at_rung = {
            row["lr"]: (row["loss"] if task == "lm" else row["metrics"][metric.name])
            for row in looks
            if row["step"] == about["rung_steps"]
        }
        assert len(at_rung) == 2
        best = min(at_rung.values()) if metric.lower else max(at_rung.values())
        assert at_rung[result["lr"]] == best


def test_table_summary_and_page_speak_of_the_task(compared):
    task, out = compared
    rows = list(records.read(out / "records.jsonl"))
    metric = TASKS[task].metrics[0]
    header = report.table(rows).header
    assert any("bits/byte" in title for title in header) == (task == "lm")
    assert any("steps/s" in title for title in header) == (task != "lm")
    page = (out / "report.html").read_text("utf-8")
    if task != "lm":
        assert metric.says in report.summary(rows).headline
        assert ("less is better" if metric.lower else "more is better") in page
        assert "nats per token" not in page.split("<script", 1)[0]
    assert page.count('class="sample"') == 2
    assert "http://" not in page.split("<script>")[0]
    merits = [row["metrics"][metric.name] for row in rows if row["kind"] == "result"]
    best = min(merits) if metric.lower else max(merits)
    assert report.best(rows)["metrics"][metric.name] == best


VOLATILE = ("seconds", "per_second", "memory", "ms_per_token", "exponent")


def numbers_of(out):
    kept = rows_of(out, "train", "valid", "result", "gradient", "sample", "baseline", "note")
    return [{key: row[key] for key in row if not any(word in key for word in VOLATILE)} for row in kept]


def test_stopped_and_called_again_it_ends_with_the_same_numbers(
    compared, sources, tmp_path, monkeypatch, capsys
):
    task, whole = compared
    from quatrain.lab import search

    monkeypatch.setattr(report, "write", lambda out: out / "report.html")  # it has a test of its own
    args, real, stops = command_of(sources, task, tmp_path / "run"), search.Search._train, []

    def stopping(self, *rest):
        if len(stops) in (1, 3):  # before a stretch of training, twice
            stops.append("stop")
            raise Killed
        stops.append("go")
        return real(self, *rest)

    monkeypatch.setattr(search.Search, "_train", stopping)
    for _ in range(2):
        with pytest.raises(Killed):
            main(args)
    assert main(args) == 0
    assert numbers_of(tmp_path / "run") == numbers_of(whole)
    assert main(args) == 0
    assert "was finished before" in capsys.readouterr().out


def test_a_run_of_a_comparison_answers(compared, sources, capsys):
    task, out = compared
    if task in ("lm", "forecast"):
        return
    (source,) = sources.glob(f"{task}.*")
    best = report.best(list(records.read(out / "records.jsonl")))
    assert main(["predict", str(out / best["run"]), str(source)]) == 0
    assert capsys.readouterr().out.count("\n") >= 90


# -- other readers, and texts that are no bytes


def test_folders_of_recordings_and_ucr_files_are_compared(tmp_path, monkeypatch):
    import struct

    drawn = random.Random(1)
    for kind, pitch in (("low", 200), ("high", 900)):
        folder = tmp_path / "birds" / kind
        folder.mkdir(parents=True)
        for number in range(14):
            wave = [
                round(8000 * math.sin(math.tau * pitch * at / 8000) + drawn.gauss(0, 300))
                for at in range(800)
            ]
            body = struct.pack(f"<{len(wave)}h", *wave)
            head = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 8000, 16000, 2, 16)
            size = struct.pack("<I", len(body))
            riff = b"RIFF" + struct.pack("<I", 36 + len(body)) + b"WAVE"
            (folder / f"{number}.wav").write_bytes(riff + head + b"data" + size + body)
    out = quatrain.compare(
        tmp_path / "birds", tmp_path / "out", mixers=["rnn"], params=4000, tokens=3000, threads=1,
        settings={"batch": 8, "learning_rates": [1e-2], "contexts": [8], "evaluation_seconds": 10.0},
    )  # fmt: skip
    assert "accuracy" in out.headline
    assert out.best is not None
    assert {row["answer"] for row in quatrain_answers(out)} <= {"low", "high"}
    assert not out.again
    assert "| majority |" in str(out)


def quatrain_answers(out):
    return [item for row in out.rows if row["kind"] == "sample" for item in row["items"]]


def test_losses_of_other_tokens_are_given_per_byte_and_per_character(tmp_path):
    pytest.importorskip("tokenizers")
    (tmp_path / "poem.txt").write_text("床前明月光 疑是地上霜。\n舉頭望明月 低頭思故鄉。\n" * 200, "utf-8")
    out = quatrain.compare(
        tmp_path / "poem.txt", tmp_path / "out", mixers=["rnn"], params=4000, tokens=1500, threads=1,
        settings={"sequence": 16, "batch": 4, "learning_rates": [1e-2], "contexts": [8]},
        data_settings={"tokenizer": "bpe", "bpe_vocab": 300},
    )  # fmt: skip
    (result,) = (row for row in out.rows if row["kind"] == "result")
    ratio = result["test_bits_per_character"] / result["test_bits_per_byte"]
    assert 2.5 < ratio < 3.1  # three bytes a character, and line ends
    header = report.table(out.rows).header
    assert "Test (bits/byte)" in header
    assert "Test (bits/char)" in header
    (sample,) = (row for row in out.rows if row["kind"] == "sample")
    assert sample["text"]
    for row in out.rows:
        if row["kind"] == "baseline":
            assert row["test_bits_per_character"] > row["test_bits_per_byte"]


def test_bits_of_bases_are_called_that(tmp_path):
    drawn = random.Random(0)
    sequence = "".join(drawn.choice("ACGT") for _ in range(4000))
    (tmp_path / "genome.fa").write_text(">one\n" + sequence + "\n")
    from quatrain.data.config import DataConfig
    from quatrain.data.prepare import prepare as prepare_data

    data = prepare_data(DataConfig(source=str(tmp_path / "genome.fa")), tmp_path / "data")
    task = TextTask(CompareConfig(sequence=16, batch=4), data)
    assert task.describe()["tokenizer"] == "dna"
    assert set(task._bits(math.log(4), task._pieces(task.test, 100, "test part"))) == {"test_bits_per_byte"}
    assert task._bits(math.log(4), task._pieces(task.test, 100, "test part"))["test_bits_per_byte"] == 2.0


def test_a_text_is_planned_as_before(tmp_path):
    (tmp_path / "text.txt").write_bytes(b"the cat sat on the mat. " * 500)
    task = TextTask(CompareConfig(), prepare(str(tmp_path / "text.txt"), tmp_path / "data"))
    assert (task.config.sequence, task.config.batch) == (256, 8)


# -- leaks


@pytest.mark.parametrize("task", ["classify", "tag", "transcribe", "forecast"])
@pytest.mark.parametrize("kind", ["lstm", "attention", "s6", "s4d"])
def test_no_model_of_a_task_sees_the_future(task, kind):
    horizon = 2 if task == "forecast" else 0
    outputs = horizon * 6 or 3
    model = build(
        ModelConfig(pattern=kind, width=16, layers=2, task=task, channels=2, outputs=outputs, horizon=horizon)
    )
    initialise(model, 0)
    assert leaks(model.eval(), 30) == ""


def test_padding_that_reaches_an_answer_is_found(monkeypatch):
    from quatrain.model import sequence

    model = build(ModelConfig(pattern="rnn", width=16, layers=2, task="classify", channels=1, outputs=2))
    monkeypatch.setattr(sequence, "pooled", lambda x, lengths, how: x.mean(1) + x.shape[1])
    assert "padded" in leaks(model.eval(), 20)


# -- what is refused, and leaves nothing behind


def labelled(folder, rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refused(path, tmp_path, capsys, *more):
    out = tmp_path / "refused"
    assert main(["compare", str(path), "--out", str(out), *SMALL, *more]) == 2
    told = capsys.readouterr().err.splitlines()
    assert not out.exists()
    errors = [line for line in told if line.startswith("quatrain compare: ")]
    assert len(errors) == 1
    return errors[0]


def test_one_class_only(tmp_path, capsys):
    path = labelled(tmp_path, ({"values": [1.0, float(k)], "label": "same"} for k in range(40)))
    assert "one class" in refused(path, tmp_path, capsys)


def test_a_label_in_the_test_part_alone(tmp_path, capsys):
    rows = [{"values": [1.0, 2.0], "label": "ab"[k % 2], "split": "train"} for k in range(20)]
    rows += [{"values": [1.0, 2.0], "label": "c", "split": "test"} for _ in range(4)]
    assert "'c'" in refused(labelled(tmp_path, rows), tmp_path, capsys)


def test_an_empty_directory(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert "the directory is empty" in refused(tmp_path / "empty", tmp_path, capsys)


def test_a_horizon_longer_than_the_series(tmp_path, capsys):
    path = tmp_path / "short.csv"
    path.write_text("time,load\n" + "".join(f"{k},{k % 7}\n" for k in range(60)))
    told = refused(path, tmp_path, capsys, "--horizon", "500")
    assert "horizon = 500" in told


def test_a_task_that_the_data_is_not_for(sources, tmp_path, capsys):
    told = refused(sources / "classify.jsonl", tmp_path, capsys, "--task", "forecast")
    assert "the task forecast needs other data" in told
    told = refused(sources / "lm.txt", tmp_path, capsys, "--task", "tag")
    assert "the task tag needs other data" in told


def test_a_sequence_of_labelled_data(sources, tmp_path, capsys):
    told = refused(sources / "tag.jsonl", tmp_path, capsys, "--sequence", "8")
    assert "sequence = 8: is not for the task tag" in told


def test_a_budget_too_small_for_the_data(sources, tmp_path, capsys):
    told = refused(sources / "tag.jsonl", tmp_path, capsys, "--budget", "100tokens", "--batch", "8")
    assert "budget_tokens = 100: must be at least" in told


def test_settings_that_contradict_each_other():
    with pytest.raises(ConfigError, match="contradicts seconds"):
        quatrain.compare("python", seconds=3, tokens=5)
