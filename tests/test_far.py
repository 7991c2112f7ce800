"""Losses token by token, stretches of a test text, and the loss by position in long contexts."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quatrain.lab import far, losses
from quatrain.lab.calibrate import Speed
from quatrain.lab.config import CompareConfig
from quatrain.lab.plan import make
from quatrain.lab.windows import cut
from quatrain.model.config import ModelConfig
from quatrain.model.init import initialise
from quatrain.model.lm import LanguageModel

SPEED = Speed(step_seconds=0.1, forward_seconds=1e-5, peak_memory_bytes=10**8, empty_memory_bytes=10**7)
TOKENS = np.random.default_rng(0).integers(0, 50, 3000).astype(np.uint8)


def tiny(pattern="s6", vocab=50):
    model = LanguageModel(ModelConfig(pattern=pattern, width=16, layers=2, vocab=vocab))
    initialise(model, 0)
    return model.eval()


# -- token by token


@pytest.mark.parametrize("vocab", [50, 2**19])  # the second: logits of two tokens at a time
def test_losses_of_tokens_are_the_cross_entropy(vocab):
    model = tiny("lstm", vocab)
    window = torch.from_numpy(TOKENS[:22].astype(np.int64)).view(2, 11)
    logits, _ = model(window[:, :-1])
    exact = torch.nn.functional.cross_entropy(logits.transpose(1, 2), window[:, 1:], reduction="none")
    found = losses.token_losses(model, window)
    assert found.shape == (2, 10)
    assert torch.allclose(found, exact, atol=1e-5)
    assert found.mean().item() == pytest.approx(model.loss(window[:, :-1], window[:, 1:])[0].item(), rel=1e-5)


def test_pieces_keep_the_order_of_the_text():
    model = tiny()
    pieces = cut(TOKENS[:333], 32, math.inf, part="test part")
    found = losses.piece_losses(model, TOKENS[:333], pieces, 4)
    for at in (0, 5, len(found) - 1):
        start, length = pieces.starts[at], int(pieces.lengths[at])
        alone = losses.token_losses(model, losses.load(TOKENS, [start], length)).mean().item()
        assert found[at] == pytest.approx(alone, rel=1e-5)
    total = sum(loss * length for loss, length in zip(found, pieces.lengths, strict=True))
    assert losses.mean(found, pieces) == pytest.approx(total / 332)


@given(st.integers(1, 3000))
def test_stretches_cover_all_whole_pieces_in_order(count):
    tokens = np.zeros(count * 8 + 4)
    pieces = cut(tokens, 8, math.inf, part="test part")
    found = losses.stretches(np.arange(len(pieces.starts), dtype=float), pieces)
    assert len(found) == min(count, losses.STRETCHES)
    assert found == sorted(found)
    assert np.mean(found) == pytest.approx((count - 1) / 2, rel=0.02, abs=0.5)


def test_a_single_piece_is_a_stretch():
    pieces = cut(np.zeros(5), 8, math.inf, part="test part")
    assert losses.stretches(np.array([1.5]), pieces) == [1.5]


# -- by position


@given(st.integers(2, 300), st.integers(2, 64))
def test_buckets_begin_at_nothing_and_end_at_both_lengths(sequence, times):
    found = far.edges(sequence * times, sequence)
    assert found == sorted(set(found))
    assert found[0] == 0
    assert {sequence, sequence * times} <= set(found)
    assert all(high > 1.05 * low for low, high in pairwise(found[1:]))


def test_losses_are_those_of_their_positions(monkeypatch):
    def by_position(model, tokens):
        length = tokens.shape[1] - 1
        return torch.arange(1, length + 1, dtype=torch.float32).expand(len(tokens), length)

    monkeypatch.setattr(far, "token_losses", by_position)
    rows = far.sweep(None, TOKENS, 64, 16, 9)
    places = [row for kind, row in rows if kind == "position"]
    assert [(row["from"], row["to"]) for row in places] == [(0, 16), (16, 32), (32, 64)]
    assert [row["nats"] for row in places] == [8.5, 24.5, 48.5]
    assert [row["tokens"] for row in places] == [16 * 9, 16 * 9, 32 * 9]
    (found,) = [row for kind, row in rows if kind == "far"]
    assert (found["short_nats"], found["long_nats"]) == (12.5, 60.5)  # the last 8 of 16, and of 64
    assert found["gain"] == -48
    assert found["half"] == 0
    assert (found["sequence"], found["length"], found["tail"], found["windows"]) == (16, 64, 8, 9)


def test_the_second_reading_is_of_the_same_tokens():
    """A model that sees 3 tokens back cannot tell a long window from a short one."""
    model = LanguageModel(
        ModelConfig(
            pattern="attention", width=16, layers=2, vocab=50,
            mixer={"attention": {"window": 3, "heads": 2}},
        )
    )  # fmt: skip
    initialise(model, 0)
    rows = far.sweep(model.eval(), TOKENS, 64, 16, 5)
    (found,) = [row for kind, row in rows if kind == "far"]
    assert found["gain"] == pytest.approx(0, abs=1e-5)
    assert found["short_nats"] == pytest.approx(found["long_nats"], abs=1e-5)


def test_one_window_has_no_interval():
    rows = far.sweep(tiny(), TOKENS[:65], 64, 16, 4)
    (found,) = [row for kind, row in rows if kind == "far"]
    assert found["windows"] == 1
    assert found["half"] is None


def planned(config):
    about = {"data_digest": "d", "threads": 1, "models": {}, "calibration_seconds": 1.0, "test_total": 10**6}
    return make(config, speeds=dict.fromkeys(config.mixers, SPEED), **about)


def test_the_windows_fit_their_share_of_the_evaluation():
    config = CompareConfig(mixers=("rnn", "attention"), evaluation_seconds=50.0)
    models = {mixer: ModelConfig(pattern=mixer, width=16, layers=2, vocab=50) for mixer in config.mixers}
    text = np.zeros(10**6, dtype=np.uint8)
    count = far.count(config, planned(config), models, text)
    assert 2 * count * 1280 * SPEED.forward_seconds <= 0.2 * 50
    assert count > 100
    longer = replace(config, context=16_384)
    assert far.count(longer, planned(longer), models, text) < count / 12  # attention's work grows
    short = replace(config, evaluation_seconds=0.001)
    assert far.count(short, planned(short), models, text) == 2


@pytest.mark.parametrize(
    ("context", "text", "length", "says"),
    [
        (0, 5000, 1024, ""),
        (2048, 5000, 2048, ""),
        (0, 800, 799, ""),
        (8000, 5000, 4999, "contexts end at 4999 tokens, not 8000: the test part has no more"),
        (0, 400, 399, "it needs 513 tokens of test text, not 400"),
    ],
)
def test_a_short_text_cuts_the_context_and_says_so(context, text, length, says):
    config = CompareConfig(context=context)
    assert far.window(config, np.zeros(text)) == length
    found = far.missing(config, np.zeros(text))
    assert says in found
    assert bool(says) == bool(found)
