"""``quatrain inspect``: rows of what a model does inside, the page that they make, and what is refused."""

import io
import json
import math
import re
import shutil
import struct
import subprocess
import zlib
from base64 import b64decode

import numpy as np
import pytest
import torch

import quatrain
from quatrain import checkpoint, cli
from quatrain.config.schema import to_dict
from quatrain.data.sequences import Meaning
from quatrain.errors import ConfigError, DataError
from quatrain.lab.inspection import inspect
from quatrain.lab.look import LIMIT, look
from quatrain.mixers import MIXERS
from quatrain.model.config import ModelConfig
from quatrain.model.init import initialise
from quatrain.model.sequence import build
from quatrain.report import inspect as page
from quatrain.report._inspect_words import head, steps, visible
from quatrain.report._pictures import LogAxis, heat, lines, ticks

TEXT = b"the cat sat on the mat.\nthe dog sat on the log. " * 3
MEANINGS = {
    "classify": Meaning(task="classify", labels=("bad", "good")),
    "tag": Meaning(task="tag", labels=("digit", "letter", "space")),
    "transcribe": Meaning(
        task="transcribe", channels=3, labels=("a", "b"), mean=(0.0,) * 3, std=(1.0,) * 3, features=""
    ),
    "forecast": Meaning(
        task="forecast",
        channels=2,
        columns=("wave", "other"),
        targets=1,
        mean=(10.0, 2.0),
        std=(3.0, 1.5),
        naive=(1.0,),
        horizon=4,
        season=12,
    ),
}
SIZES = {
    "lm": {},
    "classify": {"outputs": 2},
    "tag": {"outputs": 3},
    "transcribe": {"channels": 3, "outputs": 3},
    "forecast": {"channels": 2, "horizon": 4, "outputs": 4 * 6},
}


def make(path, task="lm", pattern="s6 attention lstm gru rnn s4d", layers=6, **more):
    """A checkpoint as training writes it, of a model that was not trained."""
    config = ModelConfig(task=task, width=16, layers=layers, pattern=pattern, **SIZES[task], **more)
    model = build(config)
    initialise(model, seed=1)
    meta = {"config": {"train": {"sequence": 64}}, "model": to_dict(config), "progress": {"step": 7}}
    tensors = {"model": model.state_dict()}
    if task in MEANINGS:
        meta["meaning"] = to_dict(MEANINGS[task])
    else:
        meta["tokenizer"] = "bytes"
    checkpoint.save(path, 7, tensors, meta)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("inspect"), {}

    def of(task):
        if task not in found:
            pattern = {"lm": "s6 attention lstm gru rnn s4d"}.get(task, "lstm attention")
            found[task] = make(folder / task, task, pattern, 6 if task == "lm" else 2)
        return found[task]

    return of


@pytest.fixture(scope="module")
def rows(made):
    return inspect(made("lm"), TEXT)


def run(*args, capsys):
    code = cli.main([str(word) for word in args])
    out, err = capsys.readouterr()
    return code, out, err


def layers_of(rows):
    return [row for row in rows if row["kind"] == "layer"]


# -- the rows


def test_losses_and_guesses_are_those_of_the_model(made, rows):
    model = checkpoint.load(made("lm"))
    tokens = torch.tensor(list(TEXT))
    with torch.no_grad():
        logs = model(tokens[None])[0][0].log_softmax(-1)
    text = rows[1]
    assert [span[0] for span in text["spans"]] == [chr(byte) for byte in TEXT]
    assert text["spans"][0][3] is None
    for step, span in enumerate(text["spans"][1:], 1):
        assert span[3] == pytest.approx(-logs[step - 1, tokens[step]].item(), abs=1e-3)
        best = logs[step - 1].exp().max().item()
        assert span[4][0][1] == pytest.approx(best, abs=1e-3)
    mean = -logs[:-1].gather(1, tokens[1:, None]).mean().item()
    assert text["nats"] == pytest.approx(mean, abs=1e-3)
    assert len(text["next"]) == 3


def test_layers_say_what_look_says(made, rows):
    layers = look(checkpoint.load(made("lm")), torch.tensor(list(TEXT)))
    assert [row["mixer"] for row in layers_of(rows)] == ["s6", "attention", "lstm", "gru", "rnn", "s4d"]
    for row, layer in zip(layers_of(rows), layers, strict=True):
        assert row["hidden"] == pytest.approx(layer.hidden.tolist(), rel=1e-3)
        drawn = set(layer.gates) | ({"step"} if layer.step is not None else set())
        assert {strip["name"] for strip in row["strips"]} == drawn | (
            {"state"} if layer.kind == "rnn" else set()
        )
        for strip in row["strips"]:
            shades = np.frombuffer(b64decode(strip["data"]), np.uint8).reshape(
                strip["rows"], strip["columns"]
            )
            values = {**layer.gates, "step": layer.step, "state": layer.state}[strip["name"]]
            values = values.abs() if strip["name"] == "state" else values
            assert strip["columns"] == len(TEXT)
            assert sorted(strip["units"]) == sorted(set(strip["units"]))
            if strip["scale"] == "unit":
                wanted = values[:, strip["units"]].T.numpy() * 255
                assert np.abs(shades - wanted).max() <= 0.51
                assert strip["profile"] == pytest.approx(values.mean(1).tolist(), rel=1e-3)
        if layer.memory is not None:
            quartiles = row["memory"]["quartiles"]
            assert quartiles[2] == pytest.approx(
                layer.memory.double().flatten().quantile(0.5).item(), rel=0.2
            )
            assert sum(row["memory"]["counts"]) + row["memory"]["never"] == layer.memory.numel()


def test_maps_keep_their_sums_when_they_are_made_smaller():
    from quatrain.lab._layer_row import _maps

    weights = torch.rand(2, 50, 50).tril().clamp(min=1e-9).softmax(-1)
    for side in (50, 16):
        found = _maps(weights, side)
        size = found["side"]
        assert (size, found["group"]) == ((50, 1) if side == 50 else (13, 4))
        shades = np.frombuffer(b64decode(found["data"][0]), np.uint8).reshape(size, size) / 255.0
        assert np.abs((shades**2).sum(1) - 1).max() < 0.12  # of 50 bytes
        assert (shades[0] > 0).any()


def test_heads_are_named_by_what_they_do():
    from quatrain.lab._layer_row import _head

    back = torch.eye(40).roll(1, 0)
    back[0] = torch.eye(40)[0]
    assert head(_head(back)) == "reads the step before (100\N{NO-BREAK SPACE}%)"
    assert head(_head(torch.eye(40))).startswith("reads the step itself")
    first = torch.zeros(40, 40)
    first[:, 0] = 1
    assert head(_head(first)).startswith("rests on the first step")
    even = torch.ones(40, 40).tril()
    assert "steps back on average" in head(_head(even / even.sum(1, keepdim=True)))
    assert head(_head(torch.ones(1, 1))).startswith("reads the step itself")


def test_steps_of_long_inputs_are_averaged_and_said(tmp_path):
    run_dir = make(tmp_path / "run", pattern="lstm", layers=1)
    rows = inspect(run_dir, b"abcdefgh" * 300, limit=2100)
    assert rows[0]["notes"] == ["Only the first 2,100 of 2,400 bytes are looked at."]
    (row,) = layers_of(rows)
    assert (row["strips"][0]["columns"], row["strips"][0]["group"]) == (700, 3)
    assert "means of 3 steps" in page.html(rows)


def test_learned_positions_end_the_input(tmp_path):
    settings = {"attention": {"positions": "learned", "max_positions": 16}}
    run_dir = make(tmp_path / "run", pattern="attention", layers=1, mixer=settings)
    rows = inspect(run_dir, TEXT)
    assert rows[0]["steps"] == 16
    assert "learned positions end" in rows[0]["notes"][0]


def test_characters_of_several_bytes_are_shown_whole(made):
    text = inspect(made("lm"), "né 好".encode() + b"\xff!")[1]
    assert [(span[0], span[2]) for span in text["spans"]] == [
        ("n", 1), ("é", 2), (" ", 1), ("好", 3), ("<FF>", 1), ("!", 1),
    ]  # fmt: skip
    assert [span[1] for span in text["spans"]] == [0, 1, 3, 4, 7, 8]


@pytest.mark.parametrize("text", [b"a", b"ab", "好".encode()])
def test_the_shortest_texts_make_a_page(made, text):
    rows = inspect(made("lm"), text)
    assert rows[0]["steps"] == len(text)
    assert "<h1>" in page.html(rows)


@pytest.mark.parametrize("form", ["residual", "stack"])
@pytest.mark.parametrize("kind", MIXERS)
def test_every_architecture_makes_a_page(kind, form, tmp_path):
    run_dir = make(tmp_path / "run", pattern=kind, layers=2, form=form)
    rows = inspect(run_dir, TEXT[:40])
    shown = page.html(rows)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert shown.count('class="layer"') == 2
    assert ("added by the mixer" in shown) == (form == "residual")
    assert "nan" not in re.sub(r'"[^"]*base64[^"]*"', "", shown).lower().replace("nance", "")


def test_other_tasks_answer(made):
    texts = inspect(made("classify"), b"abc 123")
    assert [row["kind"] for row in texts] == ["inspection", "text", "answer", "layer", "layer"]
    answer = texts[2]
    given = quatrain.predict(made("classify"), b"abc 123")[0]["probabilities"]
    assert dict(answer["classes"]) == pytest.approx(given, abs=1e-4)
    assert len(answer["course"][0]) == 7
    assert answer["course"][0][-1] == pytest.approx(answer["classes"][0][1], abs=1e-3)
    tags = inspect(made("tag"), b"abc 123")[2]["steps"]
    assert [tag for tag, _ in tags] == quatrain.predict(made("tag"), b"abc 123")[0]["tags"]
    values = np.random.default_rng(0).normal(size=(30, 3))
    said = inspect(made("transcribe"), values)
    assert said[2]["text"] == quatrain.predict(made("transcribe"), values)[0]["text"]
    assert said[1]["values"][0] == pytest.approx(values[:, 0].tolist(), abs=1e-4)
    series = np.stack([10 + 3 * np.sin(np.arange(90)), np.arange(90) % 5], 1)
    ahead = inspect(made("forecast"), series)
    assert ahead[0]["notes"] == ["Only the last 64 rows of the series are looked at."]
    np.testing.assert_allclose(ahead[2]["mean"][0], quatrain.predict(made("forecast"), series).mean[:, 0])
    for rows in (texts, inspect(made("tag"), b"abc 123"), said, ahead):
        assert "What the model answers" in page.html(rows)
    assert page.summary(inspect(made("tag"), b"abc 123"))[0].endswith("reads 7 bytes and tags them")


# -- the page


def test_the_page_holds_everything_and_asks_nobody(rows):
    shown = page.html(rows)
    assert len(shown.encode()) < 2_000_000
    assert "http" not in shown.replace("http-equiv", "")
    assert "default-src 'none'" in shown
    assert shown.count('class="layer"') == 6
    assert shown.count('class="map"') == 4
    for name in (
        "Input gate",
        "Forget gate",
        "Update gate",
        "Step size",
        "Attention maps",
        "Effective memory",
    ):
        assert name in shown
    assert page.summary(rows)[0].startswith(
        "A hybrid of Mamba (S6), Transformer, LSTM, GRU, RNN and S4D reads 144"
    )
    assert len(page.summary(rows)) == 7
    assert page.html(rows) == shown


def test_a_large_model_stays_small(tmp_path):
    run_dir = make(tmp_path / "run", pattern="attention lstm", layers=24, mixer={"attention": {"heads": 8}})
    shown = page.html(inspect(run_dir, TEXT * 4))
    assert len(shown.encode()) < 2_000_000
    assert shown.count('class="map"') == 96


def test_texts_are_escaped(made):
    shown = page.html(inspect(made("lm"), b"</script><script>alert(1)</script>&\"'"))
    assert "<script>alert" not in shown
    assert "\\u003c" in shown
    hidden = page.html(inspect(made("lm"), b"a\x07\xc2\xadb"))
    assert visible("\x07") == "\\x07"
    assert "\x07" not in hidden


def test_rows_of_something_else_are_refused():
    for wrong in ([], [{"kind": "comparison"}], [{"kind": "inspection"}]):
        with pytest.raises(DataError, match="hold no inspection"):
            page.html(wrong)


def test_pictures():
    data = "AP+AQA=="  # 0 255 128 64
    address = heat(data, 2, 2, "#102030")
    file = b64decode(address.removeprefix("data:image/png;base64,"))
    assert file.startswith(b"\x89PNG")
    chunks, at = {}, 8
    while at < len(file):
        (size,) = struct.unpack(">I", file[at : at + 4])
        kind, body = file[at + 4 : at + 8], file[at + 8 : at + 8 + size]
        assert struct.unpack(">I", file[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + body)
        chunks[kind], at = body, at + 12 + size
    assert zlib.decompress(chunks[b"IDAT"]) == b"\0\0\xff\0\x80\x40"
    assert chunks[b"PLTE"][:3] == b"\x10\x20\x30"
    with pytest.raises(ValueError, match="3 x 2"):
        heat(data, 3, 2, "#102030")
    assert lines([([1.0], "red", "")], 0, 1, "one").count("<path") == 1
    assert ticks(1) == [1]
    assert ticks(400) == [1, 50, 100, 150, 200, 250, 300, 350, 400]
    scale = LogAxis(0.2, 3000)
    assert 0 <= scale.at(0.2) < scale.at(10) < scale.at(3000) <= 100
    assert (steps(0.187), steps(14.2), steps(3061.0)) == ("0.19", "14", "3,100")


# -- the command


def test_the_command_writes_a_page(made, tmp_path, capsys, monkeypatch):
    out = tmp_path / "page.html"
    code, said, err = run("inspect", made("lm"), "--text", "To be", "--out", out, capsys=capsys)
    assert (code, err) == (0, "")
    assert said.splitlines()[0].startswith("A hybrid")
    assert said.splitlines()[-1] == f"page     {out}"
    first = out.read_text("utf-8")
    (tmp_path / "in.txt").write_text("To be")
    code, _, err = run("inspect", made("lm"), tmp_path / "in.txt", "--out", out, capsys=capsys)
    assert (code, err) == (0, "")
    assert out.read_text("utf-8").replace(str(tmp_path / "in.txt"), "--text") == first
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"To be")))
    code, _, err = run("inspect", made("lm"), "-", "--out", out, capsys=capsys)
    assert (code, err, "standard input" in out.read_text("utf-8")) == (0, "", True)
    code, said, err = run(
        "inspect", made("lm"), "--text", "abcdef", "--limit", 3, "--out", out, capsys=capsys
    )
    assert "Only the first 3 of 6 bytes are looked at." in said
    found = quatrain.inspect(made("lm"), b"To be")
    assert found.write(tmp_path / "again.html").read_text("utf-8").count('class="layer"') == 6
    assert str(found).startswith(found.headline)


def test_files_of_other_tasks(made, tmp_path, capsys, monkeypatch):
    out = tmp_path / "page.html"
    rows = [{"text": "abc 1", "label": "good"}, {"text": "x", "label": "bad"}]
    labelled = tmp_path / "l.jsonl"
    labelled.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for task in ("classify", "tag", "lm"):
        code, said, err = run("inspect", made(task), labelled, "--out", out, capsys=capsys)
        assert (code, err, "reads 5 bytes" in said) == (0, "", True)
        assert "this is the first" in said
    for text in (b"abc 1", b'{"text": "abc 1"}\n{"text": "x"}\n'):
        for task in ("classify", "lm"):
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
            code, said, err = run("inspect", made(task), "-", "--out", out, capsys=capsys)
            assert (code, err, "reads 5 bytes" in said) == (0, "", True)
    lines = ["time,wave,other", *(f"{k},{10 + math.sin(k):.3f},{k % 5}" for k in range(80))]
    (tmp_path / "s.csv").write_text("\n".join(lines) + "\n")
    code, said, err = run("inspect", made("forecast"), tmp_path / "s.csv", "--out", out, capsys=capsys)
    assert (code, err, "forecasts 4 more" in said) == (0, "", True)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((tmp_path / "s.csv").read_bytes())))
    code, said, err = run("inspect", made("forecast"), "-", "--out", out, capsys=capsys)
    assert (code, err, "forecasts 4 more" in said) == (0, "", True)


def test_wrong_input_is_told_in_a_line(made, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary").write_bytes(b"\0\1\2")
    (tmp_path / "in.html").write_text("text")
    (tmp_path / "bad.csv").write_text("time,wave\n1,2\n")
    (tmp_path / "note.txt").write_text("hello")
    out = tmp_path / "page.html"
    for task, args, message in (
        ("lm", (), "give a file, - for stdin, or --text"),
        ("lm", ("a.txt", "--text", "b"), "contradicts --text"),
        ("lm", ("--text", ""), "is empty"),
        ("lm", (tmp_path / "no.txt",), "does not exist"),
        ("lm", (tmp_path,), "is a directory; name a file"),
        ("lm", (tmp_path / "empty.txt",), "is empty"),
        ("lm", (tmp_path / "binary",), "is binary"),
        ("lm", ("--text", "a", "--limit", 0), "--limit = 0: must be at least 1"),
        ("lm", ("--text", "a", "--limit", "x"), "must be an integer"),
        ("lm", ("--text", "a", "--out", tmp_path / "page.pdf"), "must end in .html"),
        ("lm", ("--text", "a", "--out", tmp_path / "no" / "page.html"), "is no directory"),
        ("lm", (tmp_path / "in.html", "--out", tmp_path / "in.html"), "is the input"),
        ("lm", ("--text", "a", "--device", "tpu"), "device"),
        ("forecast", ("--text", "a"), "a text; the model forecasts numbers"),
        ("forecast", (tmp_path / "bad.csv",), "has no column 'other'"),
        ("transcribe", (tmp_path / "note.txt",), "has text, the model reads 3 numbers a step"),
        ("transcribe", ("--text", "a"), "has text, the model reads 3 numbers a step"),
    ):
        code, said, err = run(
            "inspect", made(task), *args, *(() if "--out" in args else ("--out", out)), capsys=capsys
        )
        assert (code, said, len(err.splitlines())) == (2, "", 1), (args, err)
        assert message in err, (message, err)
    assert not out.exists()
    code, _, err = run("inspect", tmp_path / "nowhere", "--text", "a", "--out", out, capsys=capsys)
    assert (code, len(err.splitlines())) == (2, 1)
    for stdin in (b"", b"\0\0"):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code, _, err = run("inspect", made("lm"), "-", "--out", out, capsys=capsys)
        assert (code, len(err.splitlines())) == (2, 1)
    with pytest.raises(DataError, match="an array of numbers"):
        quatrain.inspect(made("lm"), np.zeros(3))
    with pytest.raises(DataError, match="must be numbers"):
        quatrain.inspect(made("transcribe"), np.zeros((0, 3)))
    with pytest.raises(ConfigError, match="limit = 0"):
        quatrain.inspect(made("lm"), b"a", limit=0)


def test_the_limit_of_the_command_is_that_of_look():
    from quatrain.cli.inspect import LIMIT as told

    assert told == LIMIT


# -- in a browser

# All on the load event, when every image is there: a promise may be kept after the page was written out.
PROBE = """<script>addEventListener("load", () => {
  const root = document.documentElement;
  const point = (element, x, y) => {
    element.scrollIntoView({ block: "center", behavior: "instant" });
    const box = element.getBoundingClientRect();
    element.dispatchEvent(new PointerEvent("pointermove",
      { bubbles: true, clientX: box.left + x * box.width, clientY: box.top + y * box.height }));
    return document.querySelector(".tip.visible")?.textContent;
  };
  root.dataset.token = point(document.querySelectorAll(".text span")[3], .5, .5);
  root.dataset.gate = point(document.querySelector("#layer-3 .heat"), 10.5 / 144, .02);
  root.dataset.here = document.querySelector(".text .here").dataset.t;
  root.dataset.map = point(document.querySelector("#layer-2 .square"), .001, .001);
});</script>"""


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, 1), (390, 0)], ids=["1280-light", "390-dark"])
def test_browser_draws_points_and_asks_nobody(rows, tmp_path, width, scheme):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no Chromium on this machine")
    shown = page.html(rows)
    at = shown.rindex("</body>")
    target = tmp_path / "page.html"
    target.write_text(shown[:at] + PROBE + shown[at:], "utf-8")
    command = [
        chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom",
        "--enable-logging=stderr", "--virtual-time-budget=8000", "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900",
        f"--blink-settings=preferredColorScheme={scheme}", target.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert [line for line in done.stderr.splitlines() if re.search(r"CONSOLE[:(]", line)] == []
    root = re.search(r"<html[^>]*>", done.stdout).group()
    data = dict(re.findall(r'data-(\w+)="([^"]*)"', root))
    assert (data["requests"], data["overflow"]) == ("0", "no")
    assert int(data["ready"]) > 20
    nats = rows[1]["spans"][3][3]
    assert f"loss{nats:.3g} nats" in data["token"]
    strip = layers_of(rows)[2]["strips"][0]
    value = np.frombuffer(b64decode(strip["data"]), np.uint8)[10] / 255
    told = re.search(r"unit(\d+)value([\d.]+)text", data["gate"])
    assert int(told[1]) == strip["units"][0] + 1
    assert float(told[2]) == pytest.approx(value, abs=0.006)
    assert data["here"] == "10"
    assert data["map"].endswith("weight1")
