"""The report says what is in the rows, survives missing ones, and its page draws, sorts and asks nobody."""

import itertools
import math
import random
import re
import shutil
import subprocess
import sys
from typing import Any

import pytest

from quatrain import report
from quatrain.errors import DataError, MissingExtraError
from quatrain.records import Writer
from quatrain.report import numbers
from quatrain.report.charts import POINTS, thin
from quatrain.report.figures import FIGURES, final_losses, rates
from quatrain.report.gather import gather
from quatrain.report.method import footer, method
from quatrain.report.page import html
from quatrain.report.rates import rate_table
from quatrain.report.styles import BASELINE, DARK, LIGHT, OUTLINES, STYLES, styles

Row = dict[str, Any]
RATES = [3e-4, 1e-3, 3e-3]
STEPS, BATCH_TOKENS, RUNG = 1200, 4096, 400
CONTEXTS = [128, 256, 512, 1024, 2048, 4096, 8192, 16384]

# mixer: final nats, tokens/s, width, layers, ms per token, state bytes (0: grows), exponent, gradient's reach
_MODELS = {
    "rnn": (1.512, 62000, 408, 3, 0.21, 4896, 1.01, 14),
    "lstm": (1.298, 31000, 224, 3, 0.38, 5376, 1.02, 60),
    "gru": (1.315, 36000, 264, 3, 0.36, 3168, 1.02, 50),
    "attention": (1.331, 24000, 144, 4, 0.62, 0, 1.63, 700),
    "s6": (1.236, 19000, 136, 4, 0.55, 78336, 1.00, 260),
    "s4d": (1.402, 27000, 136, 4, 0.41, 78336, 1.04, 150),
}
_TEXT = (
    'def read_header(self, size=-1):\n    """Return the next <block> of the stream & its length.\n\n'
    '    If *size* is negative, read until EOF.\n    """\n    if self._closed:\n'
    "        raise ValueError('I/O operation on closed file')\n"
    "    data = self._fp.read(size)\n    return data, len(data)\n"
)


def about(mixers: list[str], seeds: int) -> Row:
    """The comparison row."""
    return {
        "kind": "comparison",
        "id": "a3f9c1",
        "started": "2026-03-14T09:26:53+00:00",
        "machine": {
            "cpu": "Intel(R) Xeon(R) Platinum 8481C @ 2.70GHz",
            "cores": 2,
            "threads": 2,
            "memory_bytes": 8 * 2**30,
            "device": "cpu",
            "os": "Linux 6.1 x86_64",
        },
        "versions": {"quatrain": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "config_digest": "9f2c4d11ab07",
        "command": "quatrain compare --budget 10m",
        "data": {
            "name": "Python 3.11 library",
            "description": "sources and documentation of Python 3.11.7's standard library",
            "digest": "5d41402abc4b",
            "bytes": 21_400_000,
            "tokens": 21_400_000,
            "vocab": 256,
            "splits": {"train": 18_190_000, "valid": 1_070_000, "test": 2_140_000},
        },
        "params_target": 1_000_000,
        "budget_seconds": 600,
        "tokens_per_model": STEPS * BATCH_TOKENS,
        "sequence": 256,
        "batch": 16,
        "steps": STEPS,
        "learning_rates": RATES,
        "rung_fraction": RUNG / STEPS,
        "seeds": list(range(seeds)),
        "mixers": mixers,
    }


def _curve(mixer: str, lr: float, seed: int, steps: int, noise: random.Random) -> list[Row]:
    final, speed = _MODELS[mixer][:2]
    final += {3e-4: 0.11, 1e-3: 0.0, 3e-3: 0.06}[lr] + 0.012 * noise.gauss(0, 1)
    rows = []
    for step in range(0, steps + 1, 10):
        clean = final + (5.55 - final) * math.exp(-((step / 9) ** 0.42))
        tokens = step * BATCH_TOKENS
        same = {
            "mixer": mixer,
            "lr": lr,
            "seed": seed,
            "step": step,
            "tokens": tokens,
            "seconds": tokens / speed,
        }
        if step:
            rows.append({"kind": "train", **same, "loss": clean + 0.03 * noise.gauss(0, 1)})
        if step and step % 100 == 0:
            rows.append({"kind": "valid", **same, "loss": clean + 0.02})
    return rows


def _result(mixer: str, seed: int, last: float, noise: random.Random) -> Row:
    _, speed, width, _, *_ = _MODELS[mixer]
    test = last - 0.03 + 0.004 * noise.gauss(0, 1)
    return {
        "kind": "result", "mixer": mixer, "seed": seed, "lr": 1e-3, "status": "ok", "reason": "",
        "valid_loss": last, "test_loss": test, "test_bits_per_byte": test / math.log(2),
        "test_tokens": 524_288, "test_total_tokens": 2_140_000, "tokens": STEPS * BATCH_TOKENS,
        "train_seconds": STEPS * BATCH_TOKENS / speed, "tokens_per_second": speed * noise.uniform(1, 1.02),
        "peak_memory_bytes": int(3.1e8 + 9e5 * width),
    }  # fmt: skip


def _state(mixer: str, context: int) -> int:
    width, layers, fixed = _MODELS[mixer][2], _MODELS[mixer][3], _MODELS[mixer][5]
    return fixed or 2 * 4 * width * layers * context


def _costs(mixer: str) -> list[Row]:
    _, speed, _, _, latency, fixed, exponent, reach = _MODELS[mixer]
    rows: list[Row] = []
    for context in CONTEXTS:
        ms = latency if fixed else latency * (1 + context / 3000)
        seconds = 0.004 + 3e-5 * context**exponent * 10000 / speed
        rows.append(
            {
                "kind": "step_cost",
                "mixer": mixer,
                "context": context,
                "ms_per_token": ms,
                "state_bytes": _state(mixer, context),
            }
        )
        rows.append({"kind": "prefill", "mixer": mixer, "length": context, "seconds": seconds})
    rows.append({"kind": "prefill_fit", "mixer": mixer, "exponent": exponent, "lengths": CONTEXTS[3:]})
    for trained in (False, True):
        for k in [*range(32), *range(32, 256, 8)]:
            norm = 0.3 * math.exp(-k / (reach if trained else reach / 2)) / (1 + k) ** 0.7
            rows.append({"kind": "gradient", "mixer": mixer, "k": k, "norm": norm, "trained": trained})
    return rows


def model(mixer: str) -> Row:
    """The model row."""
    width, layers = _MODELS[mixer][2:4]
    return {
        "kind": "model", "mixer": mixer, "params": 1_000_000 + 37 * width, "params_embedding": 256 * width,
        "width": width, "layers": layers, "mlp": "gated" if mixer == "attention" else "none",
        "flops_per_token": 2_000_000 + 900 * width, "state_bytes": _state(mixer, 256),
        "summary": f"{layers} layers of width {width}",
    }  # fmt: skip


def baselines() -> list[Row]:
    """Trivial baselines, from log2 256 bits down to an order-3 Markov model."""
    bits = {"uniform": 8.0, "unigram": 4.51, "markov-1": 3.44, "markov-2": 2.67, "markov-3": 2.31}
    nats = {name: bit * math.log(2) for name, bit in bits.items()}
    return [
        {"kind": "baseline", "name": name, "order": order, "test_bits_per_byte": bits[name],
         "test_loss": loss, "valid_loss": loss + 0.02}
        for order, (name, loss) in enumerate(nats.items())
    ]  # fmt: skip


def comparison(mixers: tuple[str, ...] = ("rnn", "lstm", "attention", "s6"), seeds: int = 1) -> list[Row]:
    """All rows of a finished comparison, in the order in which one is run."""
    noise = random.Random(7)
    rows = [about(list(mixers), seeds), *baselines(), *(model(mixer) for mixer in mixers)]
    for mixer in mixers:
        for lr in RATES:
            if lr != 1e-3:
                rows += _curve(mixer, lr, 0, RUNG, noise)
        for seed in range(seeds):
            curve = _curve(mixer, 1e-3, seed, STEPS, noise)
            last = [row["loss"] for row in curve if row["kind"] == "valid"][-1]
            rows += [*curve, _result(mixer, seed, last, noise)]
    for mixer in mixers:
        rows += _costs(mixer)
        rows.append({"kind": "sample", "mixer": mixer, "prompt": "def ", "text": _TEXT[4:] * 2})
    return [*rows, {"kind": "end", "training_seconds": 571.0, "evaluation_seconds": 143.0, "complete": True}]


ALL = ("rnn", "lstm", "gru", "attention", "s6", "s4d")


def changed(rows: list[Row], kind: str, mixer: str, **fields: Any) -> list[Row]:
    return [row | fields if (row["kind"], row.get("mixer")) == (kind, mixer) else row for row in rows]


def facts(rows: list[Row]) -> dict[str, str]:
    return {name: text.replace("\N{NO-BREAK SPACE}", " ") for name, text in report.summary(rows).facts}


# --- words and tables ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (numbers.significant(0.2134), "0.213"),
        (numbers.significant(9.996), "10.0"),
        (numbers.significant(0), "0"),
        (numbers.significant(3e-7), "3.00e-7"),
        (numbers.count(999), "999"),
        (numbers.count(999_960), "1.00M"),
        (numbers.count(1_234_567), "1.23M"),
        (numbers.size(16 * 2**20), "16.0 MiB"),
        (numbers.size(100), "100 B"),
        (numbers.context(16384), "16K"),
        (numbers.context(100), "100"),
        (numbers.duration(0.0123), "12.3 ms"),
        (numbers.duration(600), "10 min"),
        (numbers.duration(252), "4 min 12 s"),
        (numbers.duration(7300), "2 h 1 min"),
        (numbers.rate(3e-4), "3e-4"),
        (numbers.percent(0.031), "3.1 %"),
        (numbers.percent(0.5), "50 %"),
        (numbers.listed(["a", "b", "c"]), "a, b and c"),
    ],
)
def test_numbers_read_like_written_by_a_person(text, expected):
    assert text.replace("\N{NO-BREAK SPACE}", " ") == expected


def test_table_has_a_line_per_model_and_baseline_best_first():
    header, lines = report.table(comparison(ALL))
    assert [line[0] for line in lines] == [
        "Mamba (S6)", "LSTM", "GRU", "Transformer", "S4D", "RNN",
        "order-3 Markov", "order-2 Markov", "order-1 Markov", "unigram", "uniform",
    ]  # fmt: skip
    assert all(len(line) == len(header) for line in lines)
    best = dict(zip(header, lines[0], strict=True))
    assert best["Params (non-embed.)"] == "1.01M"
    assert best["Size (width \N{MULTIPLICATION SIGN} layers)"] == "136 \N{MULTIPLICATION SIGN} 4"
    assert best["State (at 16K)"] == "76.5 KiB"
    assert best["Latency (ms at 16K)"] == "0.550"
    assert best["Prefill (exponent)"] == "1.00"


def test_table_over_seeds_shows_mean_and_deviation():
    rows = comparison(("rnn",), seeds=3)
    losses = [row["test_loss"] for row in rows if row["kind"] == "result"]
    mean = sum(losses) / 3
    deviation = math.sqrt(sum((loss - mean) ** 2 for loss in losses) / 2)
    assert report.table(rows).rows[0][1] == f"{mean:.3f} \N{PLUS-MINUS SIGN} {deviation:.3f}"


def test_markdown_is_one_table_with_its_origin():
    text = report.markdown(comparison())
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 2 + 4 + 5
    for origin in (
        "Intel Xeon",
        "config 9f2c4d11ab07",
        "commit 0123456789ab",
        "2026-03-14",
        "Python 3.11 library",
    ):
        assert origin in text


def test_summary_of_one_seed_names_the_winner_and_calls_itself_a_quick_look():
    rows = comparison()
    summary, told = report.summary(rows), facts(rows)
    assert summary.headline.startswith("Mamba (S6) predicts Python 3.11 library best: 1.782 bits per byte")
    assert "less than LSTM in second place" in summary.headline
    assert "quick look" in told["How sure"]
    assert told["Baselines"].startswith(
        "All four models beat the best trivial baseline (order-3 Markov, 2.310"
    )
    assert told["Fastest to train"].startswith("RNN, 62.9K tokens/s")
    assert told["Cheapest token at 16K"].startswith("RNN, 0.210 ms")
    assert "Only that of Transformer grows with the context." in told["Memory"]
    assert summary.warnings == ()


def test_models_within_the_rule_of_thumb_are_level():
    rows = comparison()
    best = next(row for row in rows if row["kind"] == "result" and row["mixer"] == "s6")
    rows = changed(rows, "result", "lstm", test_loss=1.004 * best["test_loss"])
    headline = report.summary(rows).headline
    assert headline.startswith("Mamba (S6) and LSTM are level")
    assert "Too close to call" in headline


@pytest.mark.parametrize(
    ("differences", "verdict"), [((0.05, 0.06, 0.055), "beyond noise"), ((0.3, -0.2, 0.1), "within noise")]
)
def test_seeds_are_compared_in_pairs(differences, verdict):
    rows = [row for row in comparison(("lstm", "s6"), seeds=3) if row["kind"] != "result"]
    for seed, (base, difference) in enumerate(zip((1.2, 1.6, 1.4), differences, strict=True)):
        for mixer, loss in (("s6", base), ("lstm", base + difference)):
            rows.append({"kind": "result", "mixer": mixer, "seed": seed, "lr": 1e-3, "test_loss": loss})
    assert facts(rows)["How sure"].endswith(f": {verdict}.")
    assert ("level" in report.summary(rows).headline) == (verdict == "within noise")


def test_a_model_that_does_not_beat_the_baselines_is_said_not_to():
    rows = changed(comparison(), "result", "rnn", test_loss=1.7, test_bits_per_byte=2.45)
    assert facts(rows)["Baselines"].startswith("RNN does not beat the best trivial baseline (order-3 Markov")
    assert "RNN does not beat order-3 Markov." in html(gather(rows))
    for mixer in ALL:
        rows = changed(rows, "result", mixer, test_loss=4.0, test_bits_per_byte=5.8)
    assert facts(rows)["Baselines"].startswith("No model beats")


def test_learning_rates_are_compared_where_they_were_stopped():
    rows = comparison(("lstm",))
    grid = rate_table(gather(rows))
    at = {row["lr"]: row["loss"] for row in rows if row["kind"] == "valid" and row["step"] == RUNG}
    assert grid.header == ("Model", "3e-4", "1e-3", "3e-3", "after tokens")
    assert grid.rows == (("LSTM", f"{at[3e-4]:.3f}", f"{at[1e-3]:.3f}*", f"{at[3e-3]:.3f}", "1.64M"),)
    diverged = [row for row in rows if not (row.get("lr") == 3e-3 and row.get("step", 0) > 100)]
    assert rate_table(gather(diverged)).rows[0][3] == "\N{EN DASH}"
    edge = changed(rows, "result", "lstm", lr=3e-3)
    assert "highest learning rate of the grid (3e-3)" in " ".join(report.summary(edge).warnings)


def test_method_says_what_was_sampled_and_what_the_budget_covers():
    told = dict(method(gather(comparison())))
    assert "524K of the 2.14M tokens" in told["Test"]
    assert (
        "whole test part"
        in dict(method(gather(changed(comparison(), "result", "rnn", test_tokens=2_140_000))))["Test"]
    )
    assert "4.92M tokens per model" in told["Budget"]
    assert "on top: 2 min 23 s" in told["Budget"].replace("\N{NO-BREAK SPACE}", " ")
    assert dict(footer(gather(comparison())))["Versions"] == "quatrain 0.1.0, torch 2.13.0, python 3.11.7"


# --- missing and broken rows ---


def everything(rows: list[Row]) -> str:
    """Everything but the page around it: text, table and every figure."""
    found = gather(rows)
    figures = [make(found) for make in (*FIGURES, final_losses, rates)]
    assert all(figure.panels or figure.missing for figure in figures)
    parts = [
        report.summary(rows),
        report.table(rows),
        rate_table(found),
        method(found),
        footer(found),
        figures,
    ]
    return report.markdown(rows) + repr(parts)


@pytest.mark.parametrize("kind", sorted({row["kind"] for row in comparison(("s6",))}))
def test_without_the_rows_of_a_kind_the_rest_is_shown(kind):
    everything([row for row in comparison(("s6", "rnn")) if row["kind"] != kind])


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9])
def test_an_interrupted_comparison_is_shown_and_said_to_be(share):
    rows = comparison(("s6", "rnn"))
    rows = rows[: 1 + int(share * len(rows))]
    everything(rows)
    assert "not finished" in report.summary(rows).warnings[0]


def test_null_fields_are_as_good_as_missing():
    keep = ("kind", "mixer", "name")
    everything(
        [{key: value if key in keep else None for key, value in row.items()} for row in comparison(("s6",))]
    )
    everything([])


def test_a_diverged_model_is_named_and_not_ranked():
    gone = {"test_loss": None, "test_bits_per_byte": None, "valid_loss": None}
    rows = changed(comparison(), "result", "s6", status="diverged", reason="loss is NaN at step 412", **gone)
    summary = report.summary(rows)
    assert summary.headline.startswith("Of the models that finished, LSTM")
    assert "Mamba (S6) diverged: loss is NaN at step 412." in summary.warnings
    assert report.table(rows).rows[3][0] == "Mamba (S6) (diverged)"


def test_rows_written_twice_count_once():
    rows = comparison(("rnn",))
    assert report.table(rows + rows) == report.table(rows)


def test_mixers_that_the_table_of_styles_does_not_know_get_their_own_look():
    looks = styles(["s6", "mega", "s6 s6 attention", "mega"])
    assert [look.name for look in looks.values()] == ["Mamba (S6)", "mega", "s6 s6 attention"]
    assert len({look.colour for look in looks.values()}) == 3


# --- colours ---

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
CONES = {
    "protanopia": (
        (0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritanopia": (
        (1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
    "none": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
}  # fmt: skip


def linear(colour: str) -> list[float]:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]


def luminance(colour: str) -> float:
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear(colour), strict=True))


def oklab(rgb: list[float]) -> tuple[float, ...]:
    to_lms = ((0.41222, 0.53633, 0.05145), (0.21190, 0.68070, 0.10740), (0.08830, 0.28172, 0.62998))
    lms = [math.cbrt(max(0.0, sum(w * c for w, c in zip(row, rgb, strict=True)))) for row in to_lms]
    to_lab = ((0.21045, 0.79362, -0.00407), (1.97800, -2.42859, 0.45059), (0.02590, 0.78277, -0.80868))
    return tuple(sum(w * c for w, c in zip(row, lms, strict=True)) for row in to_lab)


@pytest.mark.parametrize("style", [*STYLES.values(), BASELINE], ids=lambda style: style.name)
def test_a_colour_is_visible_on_light_and_dark(style):
    for paper in (LIGHT, DARK):
        low, high = sorted((luminance(style.colour), luminance(paper)))
        assert (high + 0.05) / (low + 0.05) >= 3


@pytest.mark.parametrize("eyes", CONES)
def test_architectures_differ_to_every_eye_and_in_print(eyes):
    for one, other in itertools.combinations(STYLES.values(), 2):
        seen = [
            oklab([sum(w * c for w, c in zip(row, linear(s.colour), strict=True)) for row in CONES[eyes]])
            for s in (one, other)
        ]
        assert math.dist(*seen) >= 0.1, (one.name, other.name)
        assert one.dash != other.dash
        assert one.shape != other.shape
    assert {style.shape for style in STYLES.values()} <= set(OUTLINES)


def test_thinning_keeps_both_ends_and_the_limit():
    assert thin(list(range(1000)), 7) == [0, 166, 333, 500, 666, 832, 999]
    assert thin([1, 2, 3], 7) == [1, 2, 3]


# --- files and the page ---


def write_records(path: Any, rows: list[Row]) -> None:
    with Writer(path / "records.jsonl") as writer:
        for row in rows:
            writer.write(**row)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    write_records(folder, comparison(ALL))
    return report.write(folder)


def test_write_leaves_both_files_and_nothing_else(page):
    assert page.name == "report.html"
    assert sorted(path.name for path in page.parent.iterdir()) == ["records.jsonl", "report.html", "table.md"]
    assert page.with_name("table.md").read_text().count("| Mamba (S6) |") == 1


def test_page_holds_everything_it_needs(page):
    text = page.read_text("utf-8")
    assert page.stat().st_size < 2_000_000
    outside_scripts = re.sub(r"<script[^>]*>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"https?:|url\((?!#)|@import|<link|<img|<iframe|\bsrc=", outside_scripts)
    assert all(href.startswith("#") for href in re.findall(r'href="([^"]*)"', outside_scripts))
    assert "default-src 'none'" in text
    captions = re.findall(r"<figcaption>.*?</figcaption>", text)
    assert len(captions) == 8
    for caption in captions:
        assert all(origin in caption for origin in ("Intel Xeon", "9f2c4d11ab07", "2026-03-14"))
    for style in STYLES.values():
        assert text.count(style.colour) > 8


def test_page_reads_without_scripts(page):
    bare = re.sub(r"<script[^>]*>.*?</script>", "", page.read_text("utf-8"), flags=re.DOTALL)
    assert "Mamba (S6) predicts Python 3.11 library best" in bare
    assert len(re.findall(r'<div class="chart"[^>]*><svg', bare)) == 9  # a still picture of each chart
    ids = re.findall(r'\bid="([^"]+)"', bare)
    assert len(ids) == len(set(ids))


def test_texts_cannot_become_markup():
    evil = "</script><script>alert(1)</script>\x00<b>"
    rows = [
        row | {"prompt": evil, "text": evil} if row["kind"] == "sample" else row
        for row in comparison(("s6",))
    ]
    rows[0]["data"]["name"] = rows[0]["machine"]["cpu"] = rows[0]["mixers"][0] = evil
    rows = [row | {"mixer": evil} if row.get("mixer") == "s6" else row for row in rows]
    text = html(gather(rows))
    assert "alert(1)</script>" not in text
    assert "<b>" not in text
    assert "\x00" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_page_stays_small_however_much_was_trained():
    rows = comparison(ALL, seeds=8)
    assert sum(row["kind"] == "train" for row in rows) > 2 * POINTS
    assert len(html(gather(rows)).encode()) < 2_000_000


def test_write_says_what_is_wrong_with_the_records(tmp_path):
    with pytest.raises(DataError, match=r"records\.jsonl: no such file"):
        report.write(tmp_path)
    with Writer(tmp_path / "records.jsonl") as writer:
        writer.write("step", step=1, loss=2.0)
    with pytest.raises(DataError, match=r"records\.jsonl: holds no comparison"):
        report.write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["records.jsonl"]


@pytest.mark.parametrize("package", ["altair", "vl_convert"])
def test_without_the_extra_the_table_is_written_and_the_command_is_named(package, tmp_path, monkeypatch):
    write_records(tmp_path, comparison(("s6",)))
    for name in ("page", "_document", "figures", "losses", "costs", "_figure", "far", "charts"):
        monkeypatch.delitem(sys.modules, f"quatrain.report.{name}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'quatrain[report]'")):
        report.write(tmp_path)
    assert (tmp_path / "table.md").is_file()
    assert not (tmp_path / "report.html").exists()


# --- the page in a browser ---

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--virtual-time-budget=15000",
    "--dump-dom",
)  # fmt: skip
PROBE = """<script>(async () => {
  const root = document.documentElement;
  while (!root.dataset.charts) await new Promise((f) => setTimeout(f, 20));
  const head = [...document.querySelectorAll("#table th button")].find((b) => b.textContent === "Training");
  head.click();
  const order = () => [...document.querySelectorAll("#table tbody th")].map((th) => th.textContent).join(",");
  root.dataset.up = order();
  head.click();
  root.dataset.down = order();
  const box = document.querySelector("#state-0 svg").getBoundingClientRect();
  window.scrollTo({ top: box.top - 100, behavior: "instant" });
  const moved = document.querySelector("#state-0 svg").getBoundingClientRect();
  const at = { bubbles: true, clientX: moved.left + moved.width * .7, clientY: moved.top + 40 };
  const target = document.elementFromPoint(at.clientX, at.clientY);
  for (const name of ["pointerover", "pointermove"]) target.dispatchEvent(new PointerEvent(name, at));
  await new Promise((f) => setTimeout(f, 100));
  root.dataset.tip = document.querySelector("#vg-tooltip-element.visible")?.textContent;
  console.error("the probe was here");
})();</script>"""


@pytest.fixture
def browse(tmp_path):
    """Opens a file in headless Chromium, every host name unknown; gives <html>'s data, the page, the log."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no Chromium on this machine")

    def run(path: Any, width: int, *flags: str) -> tuple[dict[str, str], str, list[str]]:
        command = [
            chromium,
            *FLAGS,
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={tmp_path / 'profile'}",
        ]
        command += [f"--window-size={width},900", *flags, path.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        root = re.search(r"<html[^>]*>", done.stdout)
        data = dict(re.findall(r'data-(\w+)="([^"]*)"', root.group() if root else ""))
        return (
            data,
            done.stdout,
            [line for line in done.stderr.splitlines() if re.search(r"CONSOLE[:(]", line)],
        )

    return run


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, 1), (390, 0)], ids=["1280-light", "390-dark"])
def test_browser_draws_every_chart_and_asks_nobody(page, browse, width, scheme):
    data, dom, log = browse(page, width, f"--blink-settings=preferredColorScheme={scheme}")
    assert log == []
    assert data == {"charts": "9", "failed": "0", "requests": "0", "overflow": "no"}
    charts = re.findall(r'<div class="chart vega-embed[^"]*".*?(?=<script)', dom, flags=re.DOTALL)
    assert len(charts) == 9
    for chart in charts:
        assert re.search(r'<svg[^>]*class="marks"', chart)
        assert len(re.findall(r'<path[^>]* d="', chart)) > 5


@pytest.mark.browser
def test_browser_sorts_and_hovers(page, browse, tmp_path):
    text = page.read_text("utf-8")
    at = text.rindex("</body>")
    probed = tmp_path / "probed.html"
    probed.write_text(text[:at] + PROBE + text[at:], "utf-8")
    data, _, log = browse(probed, 1280)
    assert len(log) == 1, log  # the probe's own line: an error would be seen
    assert "the probe was here" in log[0]
    assert data["up"].startswith("Mamba (S6),Transformer,S4D,LSTM,GRU,RNN,order-")
    assert data["down"].startswith("RNN,GRU,LSTM,S4D,Transformer,Mamba (S6),order-")
    assert re.fullmatch(r"ModelTransformercontext[\d,]+state[\d.]+&nbsp;[KM]iB", data["tip"])


@pytest.mark.browser
def test_browser_shows_an_interrupted_comparison(browse, tmp_path):
    gone = ("end", "prefill", "prefill_fit", "gradient", "sample")
    write_records(tmp_path, [row for row in comparison() if row["kind"] not in gone])
    data, dom, log = browse(report.write(tmp_path), 390)
    assert log == []
    assert data == {"charts": "6", "failed": "0", "requests": "0", "overflow": "no"}
    assert "Reading a prompt was not timed." in dom
