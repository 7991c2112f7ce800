"""Paired tests, the second table, the far past and the closing paragraph, from hand-made records."""

import math
import random
import re
from typing import Any

import pytest
from tests.test_report import ALL, CONES, browse, changed, comparison, linear, oklab, write_records

from quatrain import report
from quatrain.report import evidence
from quatrain.report.advice import advise
from quatrain.report.evidence import Difference, differences, level, over_seeds, over_text
from quatrain.report.far import position
from quatrain.report.figures import equal_time, final_losses
from quatrain.report.gather import Entry, gather
from quatrain.report.method import method
from quatrain.report.page import html
from quatrain.report.reach import sentence
from quatrain.report.styles import BASELINE, SPARE, STYLES, styles

Row = dict[str, Any]
__all__ = ["browse"]


def entry(losses: tuple[float, ...], pieces: tuple[float, ...] = (), name: str = "rnn") -> Entry:
    seeds = tuple(range(len(losses)))
    return Entry(
        key=name, style=STYLES[name], status="ok", seeds=seeds, values={"test_loss": losses}, pieces=pieces
    )


def result(mixer: str, loss: float, seed: int = 0, **fields: Any) -> Row:
    return {
        "kind": "result", "mixer": mixer, "seed": seed, "lr": 1e-3, "status": "ok", "test_loss": loss,
        "tokens": 4_915_200, **fields,
    }  # fmt: skip


def recorded(losses: dict[str, float], **about: Any) -> list[Row]:
    """A comparison of one seed with these test losses and baselines far behind, costs as in test_report."""
    rows = comparison(tuple(losses))
    rows[0] = rows[0] | {"epochs": 0.27} | about
    for mixer, loss in losses.items():
        rows = changed(rows, "result", mixer, test_loss=loss, test_bits_per_byte=loss / math.log(2))
    return rows


def timed(rows: list[Row], losses: dict[str, tuple[float, float]], seconds: float = 60.0) -> list[Row]:
    """With models trained anew for equal time: loss and tokens of each."""
    rows = [*rows]
    rows[0] = rows[0] | {"time_per_model": seconds, "equal": ["tokens", "time"]}
    rows += [
        result(mixer, loss, budget="time", tokens=tokens, tokens_per_second=tokens / seconds,
               train_seconds=seconds)
        for mixer, (loss, tokens) in losses.items()
    ]  # fmt: skip
    for mixer, (loss, _) in losses.items():
        same = {"mixer": mixer, "lr": 1e-3, "seed": 0, "budget": "time"}
        for step in range(1, 21):
            at = {"step": step, "tokens": 4096 * step, "seconds": 3.0 * step, "loss": loss + 2 / step}
            rows.append({"kind": "train", **same, **at})
            rows.append({"kind": "valid", **same, **at})
    return rows


def far_rows(gains: dict[str, tuple[float, float | None]]) -> list[Row]:
    rows = []
    for mixer, (gain, half) in gains.items():
        for low, high in ((0, 16), (16, 64), (64, 256), (256, 1024)):
            place = {"from": low, "to": high, "nats": 2 - gain * high / 1e3}
            rows.append({"kind": "position", "mixer": mixer, **place})
        window = {"sequence": 256, "length": 1024, "tail": 128, "windows": 400}
        rows.append({"kind": "far", "mixer": mixer, "gain": gain, "half": half, **window})
    return rows


def told(rows: list[Row]) -> str:
    return report.advice(rows).replace("\N{NO-BREAK SPACE}", " ")


# -- paired tests


def test_over_seeds_is_students_t():
    found = over_seeds(entry((1.0, 1.2, 1.1)), entry((1.1, 1.35, 1.15)))
    assert found is not None
    assert found.mean == pytest.approx(0.1)
    assert found.half == pytest.approx(4.303 * 0.05 / math.sqrt(3))
    assert over_seeds(entry((1.0,)), entry((1.1,))) is None


@pytest.mark.parametrize("freedom", [1, 5, 10, 30, 200])
def test_quantiles_fall_to_the_normal_one(freedom):
    """The density of Student's t, integrated: 95 % lie within the quantile."""
    q = evidence.quantile(freedom)
    scale = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) if freedom < 100 else None
    if scale is None:
        assert q == 1.96
        return
    scale /= math.sqrt(freedom * math.pi)
    steps = 20_000
    inside = sum(
        2 * q / steps * scale * (1 + (q * (i + 0.5) / steps) ** 2 / freedom) ** (-(freedom + 1) / 2)
        for i in range(steps)
    )
    assert inside == pytest.approx(0.95, abs=2e-4)


def test_over_text_of_independent_stretches_is_the_plain_interval():
    drawn = random.Random(0)
    a = tuple(1.2 + 0.2 * drawn.gauss(0, 1) for _ in range(400))
    b = tuple(x + 0.01 + 0.05 * drawn.gauss(0, 1) for x in a)
    found = over_text(entry((1.2,), a), entry((1.21,), b))
    assert found is not None
    assert found.n == 400
    assert found.half == pytest.approx(1.96 * 0.05 / 20, rel=0.3)


def test_over_text_widens_where_neighbours_are_alike():
    drawn = random.Random(1)
    values, now = [], 0.0
    for _ in range(300):
        now = 0.8 * now + drawn.gauss(0, 0.02)
        values.append(now)
    zeros = (0.0,) * 300
    alike = over_text(entry((0,), zeros), entry((0,), tuple(values)))
    shuffled = over_text(entry((0,), zeros), entry((0,), tuple(drawn.sample(values, 300))))
    assert alike is not None
    assert shuffled is not None
    assert alike.half > 1.6 * shuffled.half


def test_intervals_over_text_cover_what_they_promise():
    drawn = random.Random(2)
    covered = 0
    for _ in range(200):
        found = over_text(
            entry((0,), (0.0,) * 60), entry((0,), tuple(drawn.gauss(0.1, 0.3) for _ in range(60)))
        )
        assert found is not None
        covered += abs(found.mean - 0.1) <= found.half
    assert 0.88 <= covered / 200 <= 0.99


@pytest.mark.parametrize("pieces", [((), ()), ((1.0,) * 7, (1.0,) * 7), ((1.0,) * 9, (1.0,) * 10)])
def test_no_interval_where_stretches_are_few_or_differ(pieces):
    assert over_text(entry((1.0,), pieces[0]), entry((1.1,), pieces[1])) is None


def test_level_by_seeds_by_text_and_by_rule_of_thumb():
    noisy = tuple(1.0 + 0.9 * (-1) ** i for i in range(40))
    steady = tuple(1.1 + 0.9 * (-1) ** i for i in range(40))
    assert level(entry((1.0,)), entry((1.005,)))
    assert not level(entry((1.0,)), entry((1.05,)))
    assert not level(entry((1.0,), noisy), entry((1.1,), steady))
    other = tuple(1.1 + 0.9 * math.cos(3 * i * i) for i in range(40))
    assert level(entry((1.0,), noisy), entry((1.1,), other))  # 10 % apart, but not on this text
    assert level(entry((1.0,), noisy), entry((1.005,), tuple(x + 0.005 for x in noisy)))  # sure, and tiny
    assert level(entry((1.0, 1.3)), entry((1.1, 1.2)))
    assert not level(entry((1.0, 1.3)), entry((1.1, 1.4)))
    assert Difference(0.1, 0.1, 5).clear is False


def test_the_page_says_what_one_seed_can_and_cannot_show():
    rows = recorded({"s6": 1.2, "lstm": 1.3})
    drawn = random.Random(3)
    noise = [drawn.gauss(0, 0.1) for _ in range(64)]
    for mixer, loss in (("s6", 1.2), ("lstm", 1.3)):
        pieces = [loss + one + drawn.gauss(0, 0.01) for one in noise]
        rows = changed(rows, "result", mixer, test_pieces=pieces)
    sure = dict(report.summary(rows).facts)["How sure"]
    assert "Over 64 stretches of the test text LSTM is behind Mamba (S6) by 0.10" in sure
    assert "more than the choice of the text explains" in sure
    assert "noise between seeds was not measured" in sure
    table = differences(gather(rows), gather(rows).entries)
    assert table.header[0] == "Behind Mamba (S6)"
    assert table.rows[0][0] == "LSTM"
    assert table.rows[0][3:] == ("\N{EN DASH}", "behind")
    assert "covers the choice of the text, not the randomness of training" in html(gather(rows))


# -- equal time


def test_the_second_table_stands_beside_the_first():
    rows = timed(recorded({"s6": 1.2, "lstm": 1.3}), {"s6": (1.25, 3e6), "lstm": (1.22, 6e6)})
    assert [row[0] for row in report.table(rows).rows[:2]] == ["Mamba (S6)", "LSTM"]
    table = report.timed_table(rows)
    assert [row[0] for row in table.rows[:3]] == ["LSTM", "Mamba (S6)", "order-3 Markov"]
    best = dict(zip(table.header, table.rows[0], strict=True))
    assert best["Tokens (read)"] == "6.00M"
    assert best["Time (seconds)"] == "60.0"
    assert best["Against equal tokens (%)"] == "\N{MINUS SIGN}6.2"
    text = report.markdown(rows)
    first, second = (
        text.index(f"## Equal parameters and {what}") for what in ("tokens", "training time (60")
    )
    assert first < second
    assert "With equal tokens, choose Mamba (S6)" in text
    assert "LSTM is best: 1.220 nats per token." in dict(report.summary(rows).facts)["With equal time"]


def test_curves_of_the_two_parts_do_not_mix():
    rows = recorded({"s6": 1.2, "lstm": 1.3})
    both = gather(timed(rows, {"s6": (1.25, 3e6), "lstm": (1.22, 6e6)}))
    alone = gather(rows)
    assert both.rows["train"] == alone.rows["train"]
    assert len(both.again().chosen("s6", "train")["s6", 1e-3, 0]) == 20
    assert equal_time(alone) is None
    figure = equal_time(both)
    assert figure is not None
    assert figure.panels
    assert [name for name, _ in final_losses(both).panels] == ["equal tokens", "equal training time"]
    assert [name for name, _ in final_losses(alone).panels] == [""]


def test_rows_of_before_and_of_time_alone_are_shown():
    rows = recorded({"s6": 1.2, "lstm": 1.3})
    assert report.timed_table(rows).rows == ()
    assert "## " not in report.markdown(rows)
    alone = [row | {"budget": "time"} if row["kind"] == "result" else row for row in rows]
    alone[0] = alone[0] | {"equal": ["time"], "time_per_model": 60.0}
    assert report.timed_table(alone).rows == ()
    assert "With equal training time, choose Mamba (S6)" in told(alone)
    assert "Equal parameters and training time (60.0 s each)" in html(gather(alone))
    assert "Every model trains for" in dict(method(gather(alone)))["Equal training time"]


def test_times_that_did_not_come_out_equal_are_warned_about():
    rows = timed(recorded({"s6": 1.2, "lstm": 1.3}), {"s6": (1.25, 3e6), "lstm": (1.22, 6e6)})
    assert not any("Equal training time" in warning for warning in report.summary(rows).warnings)
    slower = [
        row | {"tokens_per_second": 50_000}
        if (row.get("budget"), row.get("mixer")) == ("time", "lstm")
        else row
        for row in rows
    ]
    (warning,) = [text for text in report.summary(slower).warnings if "Equal training time" in text]
    assert "LSTM 2" in warning
    assert "Mamba" not in warning


# -- who uses the far past


def test_the_sentence_about_the_far_past_has_every_case():
    rows = recorded({"s6": 1.2, "lstm": 1.3, "attention": 1.25, "rnn": 1.5})
    gains = {"s6": (0.041, 0.006), "lstm": (0.012, 0.004), "attention": (-0.52, 0.05), "rnn": (0.002, 0.004)}
    found = sentence(gather(rows + far_rows(gains))).replace("\N{NO-BREAK SPACE}", " ")
    assert found == (
        "From 129 to 256 to 897 to 1,024 tokens of context, on the same tokens, the loss falls by Mamba (S6) "
        "0.041 ± 0.006 and LSTM 0.012 ± 0.004 nats; it rises by Transformer 0.520 ± 0.050; it "
        "does not change beyond noise for RNN."
    )
    only = sentence(gather(rows + far_rows({"rnn": (0.0, 0.01)})))
    assert "the loss does not change beyond noise for RNN." in only
    assert "0.100 nats" in sentence(gather(rows + far_rows({"rnn": (-0.1, None)})))
    assert sentence(gather(rows)) == ""
    figure = position(gather(rows + far_rows(gains)))
    assert figure is not None
    assert "trained on 256" in repr(figure.panels)
    assert position(gather(rows)) is None


# -- the closing paragraph, branch by branch


def test_a_clear_winner_is_named_with_what_would_change_the_choice():
    rows = recorded({"s6": 1.2, "lstm": 1.3, "attention": 1.35})
    text = told(rows)
    assert text.startswith("With equal tokens, choose Mamba (S6): it predicts best, 7.7 % ahead of LSTM.")
    assert (
        "If latency decides, after 16K of context, LSTM takes 0.380 ms a token where Mamba (S6) takes "
        "0.550 ms a token, and has a loss 8.3 % higher."
    ) in text
    assert "If memory per open sequence decides, at 16K, LSTM keeps 5.25 KiB where Mamba (S6) keeps" in text
    assert "Each model has read 27 % of the training text once" in text
    assert "One seed was trained" in text
    assert "No model beats" not in text
    assert "training time" not in text
    assert "slows down" not in text


def test_models_within_noise_are_called_that_and_chosen_by_cost():
    text = told(recorded({"s6": 1.2, "lstm": 1.203, "rnn": 1.5}))
    assert "Mamba (S6) and LSTM predict alike: the differences are within noise. Choose LSTM" in text
    assert "If latency decides, after 16K of context, RNN takes" in text
    everyone = told(recorded({"s6": 1.2, "lstm": 1.203}))
    assert "both models predict alike" in everyone
    assert "If latency decides, after 16K of context, the choice stays: LSTM takes least" in everyone
    three = told(recorded({"s6": 1.2, "lstm": 1.203, "gru": 1.204}))
    assert "all three models predict alike" in three
    assert "If memory per open sequence decides, at 16K, the choice stays: GRU" in three
    uncosted = [row for row in recorded({"s6": 1.2, "lstm": 1.203}) if row["kind"] != "step_cost"]
    assert "Choose among them by what they cost." in told(uncosted)


def test_a_level_model_that_is_cheaper_in_memory_predicts_as_well():
    rows = recorded({"s4d": 1.2, "rnn": 1.203})
    rows = [row | {"ms_per_token": 9.0} if (row["kind"], row.get("mixer")) == ("step_cost", "rnn") else row
            for row in rows]  # fmt: skip
    assert "RNN keeps 4.78 KiB where S4D keeps 76.5 KiB, and predicts as well." in told(rows)


def test_where_counting_wins_it_is_the_choice():
    text = told(recorded({"s6": 3.2, "lstm": 3.3}))
    assert text.startswith(
        "No model beats order-3 Markov, which only counts: with this budget, that is the choice."
    )
    some = told(timed(recorded({"s6": 3.2, "lstm": 3.3}), {"s6": (1.5, 3e6), "lstm": (3.3, 6e6)}))
    assert "No model beats" not in some


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        (
            {"s6": (1.25, 3e6), "lstm": (1.22, 6e6)},
            "LSTM is best: it reads 2.0\N{MULTIPLICATION SIGN} the tokens of M",
        ),
        ({"s6": (1.25, 6e6), "lstm": (1.22, 5e6)}, "LSTM is best."),
        ({"s6": (1.15, 3e6), "lstm": (1.22, 6e6)}, "Mamba (S6) is best as well."),
        ({"s6": (1.22, 3e6), "lstm": (1.221, 6e6)}, "Mamba (S6) and LSTM lead, too close to tell apart."),
    ],
)
def test_who_wins_where_time_is_what_one_pays(losses, says):
    text = told(timed(recorded({"s6": 1.2, "lstm": 1.3}), losses))
    assert f"If training time rather than tokens is what you pay (60.0 s each), {says}" in text.replace(
        "1 min each", "60.0 s each"
    )


def test_the_same_ties_at_equal_time():
    rows = timed(recorded({"s6": 1.2, "lstm": 1.203}), {"s6": (1.22, 3e6), "lstm": (1.221, 6e6)})
    assert "the same models lead, again too close to tell apart." in told(rows)
    assert "With equal time" in dict(report.summary(rows).facts)


def test_a_winner_that_grows_says_from_which_context_on_it_costs_more():
    text = told(recorded({"attention": 1.1, "s6": 1.2}))
    assert "Transformer slows down as the context grows" in text
    at = re.search(r"from (\d+K?) tokens on, Mamba \(S6\) makes a token faster", text)
    assert at
    dear = recorded({"attention": 1.1, "s6": 1.2})
    dear = [row | {"ms_per_token": 99.0} if (row["kind"], row.get("mixer")) == ("step_cost", "s6") else row
            for row in dear]  # fmt: skip
    assert "slows down" not in told(dear)


@pytest.mark.parametrize(
    ("gains", "says"),
    [
        ({"s6": (0.04, 0.01), "lstm": (0.0, 0.01)}, "matter, Mamba (S6) uses them as trained (0.040 nats)."),
        (
            {"s6": (0.04, 0.01), "lstm": (0.02, 0.01)},
            "matter, Mamba (S6) and LSTM use them as trained (Mamba (S6) most, 0.040 nats).",
        ),
        (
            {"s6": (0.0, 0.01), "lstm": (0.02, 0.01)},
            "(0.020 nats), and Mamba (S6) gains nothing there unless",
        ),
        ({"s6": (-0.3, 0.01), "lstm": (0.02, 0.01)}, "(0.020 nats), and Mamba (S6) gets worse there unless"),
        ({"s6": (-0.3, 0.01), "lstm": (0.02, 0.05)}, "none uses what lies further back"),
    ],
)
def test_who_uses_contexts_beyond_those_of_training(gains, says):
    assert says in told(recorded({"s6": 1.2, "lstm": 1.3}) + far_rows(gains))


@pytest.mark.parametrize(
    ("epochs", "says"),
    [
        (0.5, "50 % of the training text once"),
        (1.2, "the training text about once: more text"),
        (7.0, "the training text about 7.0 times: more text may help more"),
    ],
)
def test_how_often_the_text_was_read(epochs, says):
    assert says in told(recorded({"s6": 1.2, "lstm": 1.3}, epochs=epochs))


def test_with_seeds_and_with_one_model_less_is_said():
    rows = recorded({"s6": 1.2, "lstm": 1.3}, seeds=[0, 1, 2])
    assert "One seed" not in told(rows)
    assert "nothing to choose from" in told(recorded({"s6": 1.2}))
    assert advise(gather([])) == []
    unfinished = [row for row in rows if row["kind"] != "result"]
    assert told(unfinished) == ""


# -- seven models on one page


@pytest.fixture(scope="module")
def seven(tmp_path_factory):
    """Six mixers and a hybrid, equal tokens, equal time, long contexts."""
    rows = recorded({mixer: 1.2 + 0.03 * at for at, mixer in enumerate(ALL)})
    rows += [row | {"mixer": "s6 s6 attention"} for row in rows if row.get("mixer") == "s6"]
    rows[0] = rows[0] | {"mixers": [*ALL, "s6 s6 attention"]}
    rows = timed(rows, {mixer: (1.3 - 0.02 * at, 3e6) for at, mixer in enumerate(rows[0]["mixers"])})
    rows += far_rows({mixer: (0.01 * at, 0.005) for at, mixer in enumerate(rows[0]["mixers"])})
    folder = tmp_path_factory.mktemp("seven")
    write_records(folder, rows)
    return report.write(folder)


def test_the_page_of_seven_models_is_whole(seven):
    text = seven.read_text("utf-8")
    assert seven.stat().st_size < 2_000_000
    bare = re.sub(r"<script[^>]*>.*?</script>", "", text, flags=re.DOTALL)
    ids = re.findall(r'\bid="([^"]+)"', bare)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', bare)) <= set(ids)  # links lead somewhere
    for key in ("time", "differences", "choice", "position", "equal-time"):
        assert f'id="{key}"' in bare
        assert key in ("position", "equal-time") or f'href="#{key}"' in bare
    for table in re.findall(r"<thead>.*?</thead>", bare, flags=re.DOTALL):
        assert table.count("<th ") == table.count("<button")  # every column sorts
    assert bare.count("s6 s6 attention") > 10
    assert bare.count(SPARE[0].colour) > 8


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_browser_draws_seven_models(seven, browse, width):
    data, _, log = browse(seven, width)
    assert log == []
    assert data == {"charts": "12", "failed": "0", "requests": "0", "overflow": "no"}


def test_looks_of_hybrids_stay_apart():
    looks = styles([*STYLES, *(f"s6 rnn {at * 's6 '}" for at in range(9))])
    assert len({(look.colour, look.dash) for look in looks.values()}) == len(looks)
    first = [*STYLES.values(), BASELINE, *SPARE]
    for eyes in CONES.values():
        seen = [
            oklab([sum(w * c for w, c in zip(row, linear(s.colour), strict=True)) for row in eyes])
            for s in first
        ]
        for at in range(len(first) - len(SPARE), len(first)):
            assert min(math.dist(seen[at], other) for other in seen[:at]) > 0.07
    assert len({style.dash for style in first}) == len(first)
