"""Sequences and series: recognised, read, split, normalised, and refused in one line."""

import json
import struct
import sys

import numpy as np
import pytest

from quatrain.config.schema import from_dict
from quatrain.data.batches import Sequences, SeriesWindows, places, windows
from quatrain.data.config import DataConfig
from quatrain.data.prepare import open_data, prepare, prepare_like
from quatrain.data.readers import audio
from quatrain.data.recognise import recognise
from quatrain.data.sequences import SequenceFile
from quatrain.data.task import TASKS
from quatrain.data.tokens import TokenFile
from quatrain.errors import ConfigError, DataError, MissingExtraError


def config_of(source, **values) -> DataConfig:
    return from_dict(DataConfig, {"source": str(source), **values})


def write_wav(path, samples, rate=8000, bits=16, kind=1, channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == 3:
        body = np.asarray(samples).astype(f"<f{bits // 8}").tobytes()
    elif bits == 8:
        body = (np.asarray(samples) * 128 + 128.5).astype(np.uint8).tobytes()
    else:
        whole = np.asarray(np.asarray(samples) * (2 ** (bits - 1) - 1), dtype="<i4")
        body = whole.view(np.uint8).reshape(-1, 4)[:, : bits // 8].tobytes()
    width = channels * bits // 8
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, kind, channels, rate, rate * width, width, bits)
    data = form + b"LIST" + struct.pack("<I", 3) + b"abc\0" + b"data" + struct.pack("<I", len(body)) + body
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(data)) + b"WAVE" + data)


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def labelled(count=40):
    return [{"values": [k, k % 7, -k], "label": "even" if k % 2 == 0 else "odd"} for k in range(count)]


def series(path, rows=200, header="date,a,b"):
    lines = [header, *(f"2020-01-{1 + k // 24:02d} {k % 24:02d}:00,{k},{k % 24}" for k in range(rows))]
    path.write_text("\n".join(lines) + "\n")
    return path


def sound(folder, count=10):
    time = np.arange(1600) / 8000
    for label, pitch in (("high", 900), ("low", 200)):
        for k in range(count):
            write_wav(
                folder / label / f"{k}.wav", 0.5 * np.sin(2 * np.pi * (pitch + k) * time[: 1600 - 8 * k])
            )
    return folder


# -- recognised


def ucr(path, part, rows=("1,2,3:4,5,6:x", "3,2,1:6,5,4:y")):
    text = "#a comment\n@problemName p\n@classLabel true x y\n@data\n" + "\n".join(rows) + "\n"
    (path / f"Waves_{part}.ts").write_text(text)


def test_kinds_are_recognised_and_said(tmp_path):
    (tmp_path / "a.txt").write_text("text " * 100)
    (tmp_path / "texts.csv").write_text("label,text\nx,hello\ny,bye\n")
    (tmp_path / "rows.csv").write_text("label,split,t0,t1\n1,train,2,3\n0,test,4,5\n")
    (tmp_path / "ts").mkdir()
    ucr(tmp_path / "ts", "TRAIN")
    ucr(tmp_path / "ts", "TEST")
    for label in ("cats", "dogs"):
        (tmp_path / "classes" / label).mkdir(parents=True)
        for k in range(3):
            (tmp_path / "classes" / label / f"{k}.txt").write_text(label)
    seen = {
        tmp_path / "a.txt": ("lm", "text"),
        series(tmp_path / "s.csv"): ("forecast", "a series of 2 columns by 'date': forecast a, b, 24 steps"),
        tmp_path / "texts.csv": ("classify", "texts in 'text' read as bytes: classes by 'label'"),
        tmp_path / "rows.csv": ("classify", "rows of 2 numbers: classes by 'label'"),
        jsonl(tmp_path / "l.jsonl", labelled()): ("classify", "JSON Lines with values, label"),
        jsonl(tmp_path / "t.jsonl", [{"text": "ab", "labels": ["x", "y"]}]): ("tag", "one tag for each step"),
        jsonl(tmp_path / "h.jsonl", [{"audio": "a.wav", "text": "hello"}]): ("transcribe", "to be heard"),
        jsonl(tmp_path / "v.jsonl", [{"values": [1, 2]}]): ("forecast", "a series a line"),
        tmp_path / "ts": ("classify", "UCR/UEA series, split as the archive has it"),
        tmp_path / "ts" / "Waves_TRAIN.ts": ("classify", "UCR/UEA"),
        tmp_path / "classes": ("classify", "6 texts in 2 folders read as bytes: classes by folder"),
        sound(tmp_path / "sound"): ("classify", "20 recordings in 2 folders"),
    }
    for source, (task, says) in seen.items():
        found = recognise(config_of(source))
        assert (found.task, says in found.says) == (task, True), found
        assert task in TASKS
    assert recognise(config_of(tmp_path / "s.csv", task="lm")).task == "lm"
    assert recognise(config_of("python")).task == "lm"


def test_what_is_no_text_is_said_to_be_none(tmp_path):
    (tmp_path / "a.bin").write_bytes(bytes(range(256)) * 10)
    assert "binary data, not text" in recognise(config_of(tmp_path / "a.bin")).says


# -- read


def test_labelled_numbers_come_back_normalised_by_the_training_part_only(tmp_path):
    rows = labelled()
    file = prepare(config_of(jsonl(tmp_path / "l.jsonl", rows)), tmp_path / "out")
    assert isinstance(file, SequenceFile)
    assert (file.task, file.meaning.labels, len(file)) == ("classify", ("even", "odd"), 40)
    parts = {part: file.indices(part) for part in ("train", "valid", "test")}
    assert sorted(np.concatenate(list(parts.values()))) == list(range(40))
    training = np.concatenate([np.array(rows[i]["values"], float) for i in parts["train"]])
    assert file.meaning.mean == pytest.approx((training.mean(),), rel=1e-6)
    assert file.meaning.std == pytest.approx((training.std(),), rel=1e-6)
    for index in (0, 7, 39):
        want = (np.array(rows[index]["values"]) - training.mean()) / training.std()
        np.testing.assert_allclose(file.sequence(index)[:, 0], want, rtol=1e-5)
        assert file.meaning.labels[file.target(index)[0]] == rows[index]["label"]
    again = prepare(config_of(tmp_path / "l.jsonl"), tmp_path / "out")
    assert again.digest == file.digest == open_data(tmp_path / "out").digest


def test_classes_are_split_alike_and_everywhere_the_same(tmp_path):
    rows = [{"text": f"number {k}", "label": "rare" if k % 10 == 0 else "common"} for k in range(1000)]
    file = prepare(config_of(jsonl(tmp_path / "l.jsonl", rows), fractions=[0.7, 0.1, 0.2]), tmp_path / "out")
    for part, share in (("train", 0.7), ("valid", 0.1), ("test", 0.2)):
        classes = file.classes(file.indices(part))
        assert abs((classes == 0).sum() - 900 * share) <= 2
        assert abs((classes == 1).sum() - 100 * share) <= 2
    assert bytes(file.sequence(3)) == b"number 3"


def test_a_split_that_the_data_names_goes_first(tmp_path):
    rows = [row | {"split": "test" if k < 10 else "train"} for k, row in enumerate(labelled())]
    file = prepare(config_of(jsonl(tmp_path / "l.jsonl", rows)), tmp_path / "out")
    assert list(file.indices("test")) == list(range(10))
    assert len(file.indices("valid")) >= 1
    assert set(file.indices("valid")) | set(file.indices("train")) == set(range(10, 40))


def test_ucr_series_have_dimensions_and_the_archives_split(tmp_path):
    train = [f"{k},2,3:4,5,{k}:{'xy'[k % 2]}" for k in range(20)]
    ucr(tmp_path, "TRAIN", train)
    ucr(tmp_path, "TEST", ["7,8,9,1:1,2,3,4:x", "1,2:3,4:y"])
    file = prepare(config_of(tmp_path), tmp_path / "out")
    assert (file.name, file.meaning.channels, file.splits["test"], len(file)) == ("Waves", 2, 2, 22)
    assert file.sequence(20).shape == (4, 2)


def test_tags_of_a_text_stand_at_the_last_byte_of_their_character(tmp_path):
    rows = [{"text": "aé中", "labels": ["x", "y", "z"]} for _ in range(40)]
    file = prepare(config_of(jsonl(tmp_path / "t.jsonl", rows)), tmp_path / "out")
    assert list(file.target(0)) == [0, -100, 1, -100, -100, 2]
    assert len(file.sequence(0)) == 6


def test_transcripts_have_the_blank_as_symbol_0(tmp_path):
    sound(tmp_path / "sound")
    rows = [{"audio": f"sound/high/{k % 10}.wav", "text": "ba" if k % 2 else "ab"} for k in range(40)]
    file = prepare(config_of(jsonl(tmp_path / "h.jsonl", rows)), tmp_path / "out")
    assert (file.task, file.meaning.labels, file.meaning.rate) == ("transcribe", ("a", "b"), 8000)
    assert sorted(file.target(0)) == [1, 2]


def test_series_are_split_by_time_with_the_targets_first(tmp_path):
    config = config_of(series(tmp_path / "s.csv"), target=["b"], horizon=5, fractions=[0.6, 0.2, 0.2])
    file = prepare(config, tmp_path / "out")
    assert file.meaning.columns == ("b", "a")
    assert file.splits == {"train": 120, "valid": 40, "test": 40}
    assert file.meaning.mean == pytest.approx((np.mean(np.arange(120) % 24), 59.5))
    assert file.meaning.naive == (0.0,)  # b repeats every 24 hours
    found, total = places(file, "test", 30, np.inf)
    assert (len(found), total) == (36, 36)
    assert (found[0], found[-1]) == ((0, 130), (0, 165))
    assert len(places(file, "test", 30, 150)[0]) == 5
    block = windows(file, found[:2], 30)
    assert (block.inputs.shape, block.targets.shape) == ((2, 30, 3), (2, 35, 1))


def test_a_forecast_reads_differences_beside_the_level_that_it_starts_from(tmp_path):
    source = series(tmp_path / "s.csv")
    config = config_of(source, target=["b"], horizon=5, fractions=[0.6, 0.2, 0.2], calendar=True)
    file = prepare(config, tmp_path / "out")
    meaning = file.meaning
    assert (meaning.inputs, meaning.anchors, meaning.channels, meaning.width) == ("difference", 1, 8, 9)
    b, a = np.arange(200) % 24, np.arange(200.0)
    moves = np.diff(b[:120])
    assert meaning.change[0] * meaning.std[0] == pytest.approx(np.sqrt(np.mean(moves**2)))
    assert meaning.change[1] * meaning.std[1] == pytest.approx(1)
    whole = file.sequence(0)
    np.testing.assert_allclose(whole[:, 0], (b - meaning.mean[0]) / meaning.std[0], atol=1e-5)
    want = np.diff(b, prepend=b[0]) / np.sqrt(np.mean(moves**2))
    np.testing.assert_allclose(whole[:, 1], want, atol=1e-5)
    np.testing.assert_allclose(whole[:, 2], np.diff(a, prepend=a[0]), atol=1e-4)
    # A window is a function of its own rows: its first difference is 0, as that of a stream that begins.
    window = file.sequence(0, 50, 60)
    assert (window[0, 1:3] == 0).all()
    np.testing.assert_array_equal(window[1:], whole[51:60])
    raw = np.stack([b, a], 1)
    rows = np.concatenate((raw, np.zeros((200, 6))), 1)
    one = meaning.normalised(rows[51:52], rows[50])
    np.testing.assert_array_equal(one[0, :3], whole[51, :3])
    level = prepare(config_of(source, target=["b"], inputs="level", others=False), tmp_path / "level")
    assert (level.meaning.width, level.meaning.anchors, level.sequence(0).shape) == (1, 0, (200, 1))


def test_the_calendar_is_six_waves_of_the_time(tmp_path):
    file = prepare(config_of(series(tmp_path / "s.csv"), calendar=True), tmp_path / "out")
    assert file.meaning.channels == 8
    raw = file.sequence(0)[:, 4] * file.meaning.std[2] + file.meaning.mean[2]
    np.testing.assert_allclose(raw, np.sin(2 * np.pi * np.arange(200) / 24), atol=1e-5)


@pytest.mark.parametrize(
    ("bits", "kind", "channels"), [(8, 1, 1), (16, 1, 2), (24, 1, 1), (32, 1, 1), (32, 3, 1), (64, 3, 2)]
)
def test_wav(bits, kind, channels, tmp_path):
    wave = 0.5 * np.sin(np.arange(400) / 9)
    write_wav(tmp_path / "a.wav", np.repeat(wave, channels), bits=bits, kind=kind, channels=channels)
    samples, rate = audio.load(tmp_path / "a.wav")
    assert rate == 8000
    np.testing.assert_allclose(samples, wave, atol=0.01 if bits == 8 else 1e-4)


def test_log_mel_energies_show_the_pitch():
    time = np.arange(8000) / 8000
    low, high = (
        audio.mel(np.sin(2 * np.pi * pitch * time).astype(np.float32), 8000) for pitch in (300, 3000)
    )
    assert low.shape == (100, 40)
    assert low[50].argmax() < 12 < 30 < high[50].argmax()


# -- batches


def test_an_epoch_has_every_sequence_once_and_a_batch_depends_on_its_step_alone(tmp_path):
    rows = [{"values": list(range(1 + k % 9)), "label": str(k % 2)} for k in range(100)]
    file = prepare(config_of(jsonl(tmp_path / "l.jsonl", rows)), tmp_path / "out")
    one, two = Sequences(file, "train", 4, 7), Sequences(file, "train", 4, 7)
    seen = [one.batch(step) for step in range(one.per_epoch)]
    assert sum(len(batch.inputs) for batch in seen) == one.per_epoch * 4 > len(one.indices) - 4
    again = two.batch(5)
    assert all((a == b).all() for a, b in zip(seen[5][:3], again[:3], strict=True))
    first, second = one.batch(0), one.batch(one.per_epoch)  # another epoch has another order
    assert first.inputs.shape != second.inputs.shape or not (first.inputs == second.inputs).all()
    batch = seen[0].rows(1, 3)
    assert batch.inputs.shape[:2] == (2, int(batch.lengths.max()))


def test_windows_lie_in_the_training_part(tmp_path):
    file = prepare(config_of(series(tmp_path / "s.csv"), horizon=5), tmp_path / "out")
    sampler = SeriesWindows(file, 10, 8, 1)
    raw = [
        sampler.batch(step).targets[..., 0] * file.meaning.std[0] + file.meaning.mean[0] for step in range(50)
    ]
    assert max(float(block.max()) for block in raw) <= 169.01
    with pytest.raises(DataError, match="sequence = 400: needs 405 steps in a row"):
        SeriesWindows(file, 400, 8, 1)


# -- other data for a trained model


def test_other_data_takes_the_labels_and_scale_of_the_model(tmp_path):
    file = prepare(config_of(jsonl(tmp_path / "l.jsonl", labelled())), tmp_path / "out")
    jsonl(tmp_path / "m.jsonl", [{"values": [1, 2], "label": "odd"}])
    other = prepare_like(config_of(tmp_path / "m.jsonl"), _new(tmp_path / "other"), file.meaning)
    assert (other.meaning, list(other.indices("test")), other.target(0)[0]) == (file.meaning, [0], 1)
    jsonl(tmp_path / "n.jsonl", [{"values": [1, 2], "label": "new"}])
    with pytest.raises(DataError, match="line 1: label 'new': the model knows only even, odd"):
        prepare_like(config_of(tmp_path / "n.jsonl"), _new(tmp_path / "third"), file.meaning)


def _new(path):
    path.mkdir()
    return path


# -- labelled texts in byte pairs


def said(count=60):
    """Sentences of four words, the third of which decides the label."""
    nouns, kinds = ("film", "story", "song"), (("grand", "good"), ("awful", "bad"))
    return [
        {"text": f"the {nouns[k % 3]} was {kinds[k % 2][0]}", "label": kinds[k % 2][1]} for k in range(count)
    ]


def test_labelled_texts_become_byte_pairs_of_the_training_part(tmp_path):
    pytest.importorskip("tokenizers")
    rows = [{**row, "split": "train"} for row in said()]
    rows += [
        {"text": f"zebra zebra {row['text']}", "label": row["label"], "split": "test"} for row in said(8)
    ]
    source = jsonl(tmp_path / "t.jsonl", rows)
    config = config_of(source, tokenizer="bpe", bpe_vocab=300)
    file = prepare(config, tmp_path / "out")
    assert "JSON Lines with text, label, split read as 300 byte pairs" in file.description
    spelled = file.tokenizer.spelled
    assert (file.meaning.tokenizer, file.vocab) == ("bpe", len(spelled))
    for index, row in enumerate(rows):
        assert b"".join(spelled[token] for token in file.sequence(index)).decode() == row["text"]
    assert b" grand" in spelled  # a word of the training part is one token, one of the test part is not
    assert not any(b"zebra" in token for token in spelled)
    lengths = file.lengths(np.arange(len(file)))
    assert (file.manifest.steps, file.manifest.longest) == (lengths.sum(), lengths.max())
    assert lengths.sum() < sum(len(row["text"]) for row in rows) / 2
    assert prepare(config, tmp_path / "out").digest == file.digest
    with pytest.raises(DataError, match="was prepared with other settings"):
        prepare(config_of(source), tmp_path / "out")


def test_other_texts_are_read_in_the_models_byte_pairs(tmp_path):
    pytest.importorskip("tokenizers")
    config = config_of(jsonl(tmp_path / "t.jsonl", said()), tokenizer="bpe", bpe_vocab=300)
    file = prepare(config, tmp_path / "out")
    jsonl(tmp_path / "new.jsonl", said(4)[::-1])
    other = prepare_like(
        config_of(tmp_path / "new.jsonl"), _new(tmp_path / "other"), file.meaning, file.tokenizer
    )
    assert other.meaning == file.meaning
    assert other.sequence(0).tolist() == file.sequence(3).tolist()


def test_the_encoding_may_come_from_a_file(tmp_path):
    pytest.importorskip("tokenizers")
    first = prepare(
        config_of(jsonl(tmp_path / "t.jsonl", said()), tokenizer="bpe", bpe_vocab=280), tmp_path / "a"
    )
    named = config_of(tmp_path / "t.jsonl", tokenizer=str(tmp_path / "a" / "tokenizer.json"))
    second = prepare(named, tmp_path / "b")
    assert [second.sequence(k).tolist() for k in range(9)] == [first.sequence(k).tolist() for k in range(9)]


REFUSED = {
    "numbers": (labelled(), "bpe", "data.tokenizer = 'bpe': is for texts, each with one label"),
    "tags": (
        [{"text": "ab", "labels": ["x", "y"]}] * 30,
        "bpe",
        "data.tokenizer = 'bpe': is for texts, each with one label",
    ),
    "dna": (said(), "dna", "data.tokenizer = 'dna': is for FASTA files; labelled texts take bytes or bpe"),
    "no file": (said(), "nowhere.json", "data.tokenizer = 'nowhere.json': cannot be read"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_encodings_that_do_not_go_with_the_data(what, tmp_path):
    pytest.importorskip("tokenizers")
    rows, tokenizer, message = REFUSED[what]
    with pytest.raises((DataError, ConfigError), match=message):
        prepare(config_of(jsonl(tmp_path / "t.jsonl", rows), tokenizer=tokenizer), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_text_that_is_not_utf8_has_no_byte_pairs(tmp_path):
    pytest.importorskip("tokenizers")
    for label in ("a", "b"):
        for k in range(20):
            path = tmp_path / "in" / label / f"{k}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"plain" if (label, k) != ("b", 7) else b"caf\xe9")
    with pytest.raises(DataError, match=r"b/7.txt: byte 4 is not UTF-8"):
        prepare(config_of(tmp_path / "in", tokenizer="bpe"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert prepare(config_of(tmp_path / "in"), tmp_path / "bytes").vocab == 256


# -- refused

TOO_FEW = [{"text": f"t{k}", "label": str(k % 2)} for k in range(3)]
BAD_LINES = {
    "ragged": ([{"values": [[1, 2], [3]], "label": "x"}], "line 1: step 2 has 1 numbers, step 1 has 2"),
    "infinite": ([{"values": [1, 1e999], "label": "x"}], "step 2, channel 1 is inf: must be a finite number"),
    "word": ([{"values": [1, "two"], "label": "x"}], "step 2, channel 1 = 'two': must be a number"),
    "widths": (
        [{"values": [1], "label": "x"}, {"values": [[1, 2]], "label": "y"}],
        "line 2: has 2 numbers a step",
    ),
    "one class": ([{"text": "a", "label": "x"}] * 30, "has one class only, 'x'"),
    "no label": (
        [{"text": "a", "label": "x"}, {"text": "b"}],
        "line 2: has no label, which the task classify",
    ),
    "empty text": ([{"text": "", "label": "x"}], "line 1: the text is empty"),
    "null": ([{"text": "a", "label": None}], "label = None: must be a string or a number"),
    "free labels": ([{"text": "a", "label": str(k)} for k in range(100)], "these are no classes"),
    "too few": (TOO_FEW, "3 sequences are too few: the valid part is empty"),
    "split": (
        [{"text": "a", "label": "x", "split": "half"}],
        "split = 'half': must be one of train, valid, test",
    ),
    "test only": (
        [{"text": "a", "label": str(k % 2), "split": "train"} for k in range(30)]
        + [{"text": "b", "label": "2", "split": "test"}],
        "label '2' appears only in the test part, never in training",
    ),
    "tags": ([{"text": "abc", "labels": ["x"]}], "line 1: 1 labels for 3 steps"),
    "list": ([[1, 2]], "line 1: is a list: must be an object"),
}


@pytest.mark.parametrize("what", BAD_LINES)
def test_bad_lines_are_named_and_nothing_is_left_behind(what, tmp_path):
    rows, message = BAD_LINES[what]
    jsonl(tmp_path / "bad.jsonl", rows)
    with pytest.raises(DataError) as caught:
        prepare(config_of(tmp_path / "bad.jsonl"), tmp_path / "out" / "data")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl"]


BAD_TABLES = {
    "nan": ("a,b\n1,2\n3,nan\n", {}, "row 2, column 'b' = 'nan': must be a finite number"),
    "word": ("a,b\n1,2\n3,x\n", {}, "row 2, column 'b' = 'x': must be a finite number"),
    "empty cell": ("a,b\n1,2\n3,\n", {}, "row 2, column 'b' = '': must be a finite number"),
    "ragged": ("a,b\n1,2\n3\n", {}, "row 2: 1 cells, the header has 2"),
    "order": (
        "date,a\n2020-01-02,1\n2020-01-01,2\n",
        {},
        "row 2, column 'date' = '2020-01-01': is not later",
    ),
    "no time": (
        "date,a\n2020-01-02,1\nyesterday,2\n",
        {},
        "row 2, column 'date' = 'yesterday': must be a time",
    ),
    "no header": ("1,2\n3,4\n", {}, "has no header"),
    "no rows": ("a,b\n", {}, "has a header and no rows"),
    "twice": ("a,a\n1,2\n", {}, "two columns are called 'a'"),
    "target": ("a,b\n1,2\n", {"target": ["bb"]}, "data.target = 'bb': is no column (did you mean b?)"),
    "no label": ("a,b\n1,2\n", {"task": "classify"}, "name the column with the label; found a, b"),
    "binary": ("a,b\n1,\0\n", {}, "is binary, not text"),
}


@pytest.mark.parametrize("what", BAD_TABLES)
def test_bad_tables(what, tmp_path):
    text, values, message = BAD_TABLES[what]
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        prepare(config_of(tmp_path / "bad.csv", **values), tmp_path / "out")
    assert message in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.csv"]


def test_bad_recordings(tmp_path):
    sound(tmp_path / "sound")
    write_wav(tmp_path / "sound" / "low" / "x.wav", np.zeros(80), rate=16000)
    with pytest.raises(DataError, match=r"x.wav: has 16000 samples a second, .* has 8000"):
        prepare(config_of(tmp_path / "sound"), tmp_path / "out")
    write_wav(tmp_path / "sound" / "low" / "x.wav", np.zeros(0))
    with pytest.raises(DataError, match=r"x.wav: has 0 samples"):
        prepare(config_of(tmp_path / "sound"), tmp_path / "out")
    (tmp_path / "sound" / "low" / "x.wav").write_text("RIFFnope")
    with pytest.raises(DataError, match=r"x.wav: is no WAV file"):
        prepare(config_of(tmp_path / "sound"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_directories_and_series(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="the directory is empty"):
        prepare(config_of(tmp_path / "empty"), tmp_path / "out")
    ucr(tmp_path, "TRAIN", ["1,?,3:4,5,6:x"])
    with pytest.raises(DataError, match=r"line 5: dimension 1, value 2 = '\?': must be a number"):
        prepare(config_of(tmp_path / "Waves_TRAIN.ts"), tmp_path / "out")
    with pytest.raises(DataError, match="the task forecast needs other data"):
        prepare(config_of(tmp_path / "Waves_TRAIN.ts", task="forecast"), tmp_path / "out")


def test_a_transcript_longer_than_its_recording_is_refused(tmp_path):
    write_wav(tmp_path / "a.wav", np.ones(160))
    jsonl(tmp_path / "h.jsonl", [{"audio": "a.wav", "text": "aab"}])
    with pytest.raises(DataError, match=r"2 steps are too few for a text of 3 symbols \(needs 4\)"):
        prepare(config_of(tmp_path / "h.jsonl"), tmp_path / "out")


def test_changed_data_is_not_taken_for_the_same(tmp_path):
    prepare(config_of(jsonl(tmp_path / "l.jsonl", labelled())), tmp_path / "out")
    jsonl(tmp_path / "l.jsonl", labelled(50))
    with pytest.raises(DataError, match="has changed since"):
        prepare(config_of(tmp_path / "l.jsonl"), tmp_path / "out")
    with pytest.raises(DataError, match="was prepared with other settings"):
        prepare(config_of(tmp_path / "l.jsonl", horizon=3), tmp_path / "out")


def test_a_truncated_file_is_found(tmp_path):
    prepare(config_of(jsonl(tmp_path / "l.jsonl", labelled())), tmp_path / "out")
    (tmp_path / "out" / "offsets.bin").write_bytes(bytes(8))
    with pytest.raises(DataError, match=r"offsets.bin: is not the one of its manifest"):
        open_data(tmp_path / "out")


def test_parquet_and_flac_say_which_extra_they_need(tmp_path, monkeypatch):
    for name, extra, module in (("a.parquet", "parquet", "pyarrow"), ("a.flac", "audio", "soundfile")):
        (tmp_path / name).write_bytes(b"x")
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
        with pytest.raises(MissingExtraError, match=rf"pip install 'quatrain\[{extra}\]'"):
            audio.load(tmp_path / name) if extra == "audio" else recognise(config_of(tmp_path / name))


def test_flac_reads_as_wav_does(tmp_path):
    import soundfile

    wave = np.array([-(2**15), 2**15 - 1, *(2**14 * np.sin(np.arange(800) / 9))]).astype(np.int16)
    soundfile.write(tmp_path / "a.flac", wave, 8000, subtype="PCM_16")
    write_wav(tmp_path / "a.wav", wave.astype(np.float64) / (2**15 - 1))  # which it takes for 1
    (flac, rate), (wav, _) = (audio.load(tmp_path / f"a.{kind}") for kind in ("flac", "wav"))
    assert rate == 8000
    np.testing.assert_array_equal(flac, wav)
    (tmp_path / "b.flac").write_bytes(b"no sound")
    with pytest.raises(DataError, match=r"b\.flac: cannot be read"):
        audio.load(tmp_path / "b.flac")


def test_parquet_reads_as_csv_does(tmp_path):
    import pyarrow
    from pyarrow import parquet

    columns = {"date": [f"2020-01-01 00:{k:02d}" for k in range(60)], "a": list(range(60))}
    parquet.write_table(pyarrow.table(columns), tmp_path / "s.parquet")
    file = prepare(config_of(tmp_path / "s.parquet", horizon=2), tmp_path / "out")
    assert (file.meaning.columns, file.meaning.time, file.manifest.steps) == (("a",), "date", 60)
    parquet.write_table(pyarrow.table({"a": [[1, 2]], "b": [1]}), tmp_path / "n.parquet")
    with pytest.raises(DataError, match="column 'a' is nested"):
        recognise(config_of(tmp_path / "n.parquet"))


def test_a_text_is_prepared_as_before(tmp_path):
    (tmp_path / "a.txt").write_text("word " * 100)
    assert isinstance(prepare(config_of(tmp_path / "a.txt"), tmp_path / "out"), TokenFile)
