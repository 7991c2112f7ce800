"""Every task from data to answer: trained, stopped and resumed, scored, asked; from the command line too."""

import csv
import io
import json
import math

import numpy as np
import pytest
import torch

from quatrain import checkpoint, cli, records
from quatrain.config.schema import from_dict
from quatrain.data import metrics
from quatrain.data.prepare import open_data
from quatrain.data.task import TASKS
from quatrain.errors import ConfigError
from quatrain.infer.answers import Predictor
from quatrain.tasks.score import greedy, score
from quatrain.tasks.trivial import trivial
from quatrain.train.config import RunConfig
from quatrain.train.loop import train


def rows_of(task, count=120):
    draw = np.random.default_rng(5)
    for index in range(count):
        length = int(draw.integers(4, 9))
        if task == "classify":
            kind = index % 3
            yield {"values": (draw.normal(size=length) + 2 * kind).round(3).tolist(), "label": f"kind {kind}"}
        elif task == "tag":
            text = "".join(draw.choice(list("abé"), size=length))
            yield {"text": text, "labels": ["A" if char == "a" else "other" for char in text]}
        else:
            text = "".join(draw.choice(list("xy"), size=2))
            steps = [[float(char == "x"), float(char == "y")] for char in text for _ in range(3)]
            yield {"values": steps, "text": text}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    for task in ("classify", "tag", "transcribe"):
        lines = (json.dumps(row) + "\n" for row in rows_of(task))
        (folder / f"{task}.jsonl").write_text("".join(lines))
    with open(folder / "forecast.csv", "w") as file:
        file.write("date,wave,other\n")
        for k in range(400):
            when = f"2020-01-{1 + k // 24:02d} {k % 24:02d}:00"
            file.write(f"{when},{10 + 3 * math.sin(math.tau * k / 12):.4f},{k % 5}\n")
    return folder


def config_of(sources, task, **more) -> RunConfig:
    (source,) = sources.glob(f"{task}.*")
    steps = {"steps": 12, "eval_every": 4, "save_every": 3, "sequence": 24, "batch_tokens": 192, "lr": 1e-2}
    data = {"source": str(source), "horizon": 6, "season": 12, "fractions": [0.6, 0.2, 0.2]}
    return from_dict(
        RunConfig,
        {
            "data": data | ({"target": ["wave"]} if task == "forecast" else {}),
            "model": {"width": 16, "layers": 2, "pattern": "lstm", "dropout": 0.1} | more.pop("model", {}),
            "train": steps | {"batch_sequences": 8} | more,
        },
    )


per_task = pytest.mark.parametrize("task", [name for name in TASKS if name != "lm"])


@pytest.fixture(scope="module")
def trained(sources, tmp_path_factory):
    """A run of each task, long enough to know something; made when first asked for."""
    made = {}

    def of(task):
        if task not in made:
            out = tmp_path_factory.mktemp(task) / "run"
            train(config_of(sources, task, steps=80, eval_every=20, save_every=40), out, threads=1)
            made[task] = out
        return made[task]

    return of


def numbers_of(out):
    rows = [
        (row["kind"], row["step"], row.get("loss"), row.get("grad_norm"), row.get("metrics"))
        for row in records.read(out / "records.jsonl")
        if row["kind"] in ("step", "eval")
    ]
    saved = checkpoint.read(checkpoint.latest(out))
    return rows, {**saved.tensors("model"), **saved.tensors("optimizer")}


@per_task
@pytest.mark.parametrize("accumulate", [1, 2])
def test_stopped_and_resumed_it_ends_bit_for_bit_as_in_one_go(task, accumulate, sources, tmp_path):
    config = config_of(sources, task, accumulate=accumulate)
    train(config, tmp_path / "whole", threads=1)
    for stop in (1, 5):
        assert train(config, tmp_path / "parts", stop_at=stop, threads=1).status == "stopped"
    assert train(config, tmp_path / "parts", threads=1).resumed_from == 5
    (rows, tensors), (wanted, weights) = numbers_of(tmp_path / "parts"), numbers_of(tmp_path / "whole")
    assert rows == wanted
    for name, value in weights.items():
        assert torch.equal(tensors[name], value), name


@per_task
def test_a_trained_model_beats_what_is_trivial(task, trained):
    out = trained(task)
    model, file = checkpoint.load(out), open_data(out / "data")
    assert model.config.task == task
    found = score(model, file, "test", sequence=24, batch=8)
    beside = trivial(file, "test", sequence=24)
    assert tuple(beside) == TASKS[task].baselines
    for metric in TASKS[task].metrics:
        assert math.isfinite(found.metrics[metric.name])
        for name, values in beside.items():
            if name == "seasonal-naive":
                continue  # the wave repeats every season: nothing is better
            assert metric.name in values
    metric = TASKS[task].metrics[0]
    trivially = beside[TASKS[task].baselines[0]][metric.name]
    assert found.metrics[metric.name] < trivially if metric.lower else found.metrics[metric.name] > trivially
    assert not model.training


@per_task
def test_padding_and_batches_do_not_change_a_score(task, trained):
    out = trained(task)
    model, file = checkpoint.load(out), open_data(out / "data")
    one, many = (score(model, file, "test", sequence=24, batch=size) for size in (1, 16))
    assert one.loss == pytest.approx(many.loss, rel=1e-5)
    assert one.metrics == pytest.approx(many.metrics, rel=1e-4)
    few = score(model, file, "test", sequence=24, batch=16, limit=60)
    assert 1 <= few.scored < one.scored == one.total == few.total


def test_a_class_with_its_probability(sources, trained):
    predictor = Predictor(trained("classify"))
    from quatrain.infer.inputs import read_inputs

    answers = list(predictor.answers(read_inputs(sources / "classify.jsonl", predictor.meaning)))
    assert len(answers) == 120
    right = [a["class"] == r["label"] for a, r in zip(answers, rows_of("classify"), strict=True)]
    assert sum(right) > 100
    for answer in answers[:5]:
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert answer["probability"] == max(answer["probabilities"].values())
        assert answer["source"].endswith(f"line {answers.index(answer) + 1}")


def test_the_python_call_gives_what_the_command_gives(sources, trained):
    import quatrain
    from quatrain.errors import DataError

    answers = quatrain.predict(trained("classify"), sources / "classify.jsonl")
    assert (len(answers), set(answers[0])) == (120, {"source", "class", "probability", "probabilities"})
    assert quatrain.predict(trained("forecast"), sources / "forecast.csv").mean.shape == (6, 1)
    for task in ("classify", "forecast"):
        with pytest.raises(DataError, match="does not exist"):
            quatrain.predict(trained(task), sources / "nowhere.csv")


def test_a_stream_gives_what_a_file_gives(sources, trained):
    predictor = Predictor(trained("forecast"))
    from quatrain.infer.inputs import read_context

    values = read_context(sources / "forecast.csv", predictor.meaning, predictor.context)
    assert values.shape == (24, 2)
    want = predictor.forecast(values)
    *_, last = predictor.stream(values)
    np.testing.assert_allclose(last.mean, want.mean, rtol=1e-4)
    np.testing.assert_allclose(last.quantiles, want.quantiles, rtol=1e-4)
    assert (np.diff(want.quantiles, axis=-1) >= 0).all()
    assert want.mean.shape == (6, 1)


# -- the command line


def run(*args, capsys):
    code = cli.main([str(word) for word in args])
    out, err = capsys.readouterr()
    return code, out, err


@per_task
def test_eval_shows_the_metrics_beside_the_baselines(task, trained, sources, capsys):
    code, out, err = run("eval", trained(task), capsys=capsys)
    assert (code, err) == (0, "")
    for name in (*TASKS[task].baselines, *(metric.says for metric in TASKS[task].metrics)):
        assert name in out
    (source,) = sources.glob(f"{task}.*")
    code, out, err = run("eval", trained(task), source, capsys=capsys)
    assert (code, err) == (0, "")
    assert ", all;" in out


def test_predict_answers_every_kind(trained, sources, capsys, monkeypatch):
    for task, key in (("classify", "class"), ("tag", "tags"), ("transcribe", "text")):
        code, out, err = run("predict", trained(task), sources / f"{task}.jsonl", capsys=capsys)
        assert (code, err, len(out.splitlines())) == (0, "", 120)
        assert key in json.loads(out.splitlines()[0])
    code, out, err = run("predict", trained("forecast"), sources / "forecast.csv", capsys=capsys)
    head, *rows = csv.reader(io.StringIO(out))
    assert (code, err, len(rows)) == (0, "", 6)
    assert head == ["step", "wave", *(f"wave q{level}" for level in (0.1, 0.25, 0.5, 0.75, 0.9))]
    monkeypatch.setattr("sys.stdin", io.StringIO("wave,other\n10,1\n11.5,2\n"))
    code, out, err = run("predict", trained("forecast"), "-", capsys=capsys)
    assert (code, err, len(out.splitlines())) == (0, "", 3)
    monkeypatch.setattr("sys.stdin", io.StringIO('{"values": [4, 4, 4, 4]}\n'))
    code, out, err = run("predict", trained("classify"), "-", capsys=capsys)
    assert json.loads(out)["class"] == "kind 2"


@pytest.mark.parametrize(
    ("task", "name", "content", "message"),
    [
        ("classify", "a.txt", "words", "a.txt: has text, the model reads 1 numbers a step"),
        ("classify", "a.jsonl", '{"values": [[1, 2]]}\n', "has 2 numbers a step, the model reads 1"),
        ("forecast", "a.csv", "wave,another\n1,2\n", "has no column 'other', which the model reads"),
        ("forecast", "a.csv", "wave,other\n1,x\n", "row 1, column 'other' = 'x'"),
        ("tag", "b.txt", None, "b.txt: does not exist"),
        ("tag", "b.txt", "", "b.txt: is empty"),
    ],
)
def test_wrong_input_of_predict(task, name, content, message, trained, tmp_path, capsys):
    if content is not None:
        (tmp_path / name).write_text(content)
    code, out, err = run("predict", trained(task), tmp_path / name, capsys=capsys)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert message in err


def test_train_says_what_it_takes_the_data_for(sources, tmp_path, capsys):
    args = ["--mixer", "gru", "--train.steps", "2", "--model.width", "8", "--model.layers", "1"]
    more = ["--target", "wave", "--horizon", "3", "--train.sequence", "32"]
    out = tmp_path / "run"
    code, said, err = run("train", sources / "forecast.csv", *args, *more, "--out", out, capsys=capsys)
    assert code == 0
    assert "a series of 2 columns by 'date': forecast wave, 3 steps ahead (recognised; --task" in err
    assert "MSE of the normalised series" in said
    assert f"quatrain predict {out}" in said
    code, said, err = run("train", "--resume", out, capsys=capsys)
    assert (code, "was finished before" in said) == (0, True)
    code, said, err = run("generate", out, "--prompt", "x", capsys=capsys)
    assert (code, "holds a model of the task forecast; this needs a language model" in err) == (2, True)


def test_settings_that_do_not_go_with_the_data(sources, tmp_path):
    with pytest.raises(ConfigError, match=r"train.carry_state = True: is not for the task classify"):
        train(config_of(sources, "classify", carry_state=True), tmp_path / "a")
    with pytest.raises(ConfigError, match=r"model.outputs = 9: the data asks for 3"):
        train(config_of(sources, "classify", model={"task": "classify", "outputs": 9}), tmp_path / "a")
    assert not (tmp_path / "a").exists()


# -- metrics


def test_f1_and_accuracy():
    table = metrics.confusion(np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 0]), 4)
    found = metrics.classification(table)
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["f1"] == pytest.approx((0.5 + 0.8 + 0) / 3)


def test_edit_distance():
    for truth, guess, want in (
        ("kitten", "sitting", 3),
        ("", "abc", 3),
        ("abc", "", 3),
        ("ab", "ba", 2),
        ("", "", 0),
    ):
        assert metrics.edit_distance(truth, guess) == want
    judge = metrics.Transcripts()
    judge.add("one two", "one too")
    judge.add("a", "a b")
    assert judge.result() == {"cer": 3 / 8, "wer": 2 / 3}


def test_forecast_errors_are_those_of_a_loop():
    draw = np.random.default_rng(1)
    truth, forecast = draw.normal(size=(5, 3, 2)), draw.normal(size=(5, 3, 2, 3))
    scale, naive, levels = np.array([2.0, 3.0]), np.array([0.5, 0.25]), (0.1, 0.9)
    judge = metrics.ForecastError(scale, naive, levels)
    judge.add(truth[:2], forecast[:2])
    judge.add(truth[2:], forecast[2:])
    error = truth - forecast[..., 0]
    pinball = [
        max(q * (t - f), (q - 1) * (t - f))
        for t, fs in zip(truth.reshape(-1), forecast.reshape(-1, 3), strict=True)
        for q, f in zip(levels, fs[1:], strict=True)
    ]
    assert judge.result() == pytest.approx(
        {
            "mse": (error**2).mean(),
            "mae": abs(error).mean(),
            "rmse": math.sqrt(((error * scale) ** 2).mean()),
            "quantile": np.mean(pinball),
            "mase": (abs(error).mean((0, 1)) / naive).mean(),
        }
    )


def test_greedy_decoding_merges_and_drops_blanks():
    path = torch.tensor([0, 1, 1, 0, 1, 2, 2, 0, 2])
    logits = torch.nn.functional.one_hot(path, 3).float()
    assert greedy(logits, 9, ("a", "b")) == "aabb"
    assert greedy(logits, 5, ("a", "b")) == "aa"
