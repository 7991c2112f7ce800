"""The infer room: sampling, streaming text, generation, scoring."""

import codecs
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from quatrain.errors import ConfigError, DataError, DivergedError, ShapeError
from quatrain.infer._text import StopStrings, Utf8Stream
from quatrain.infer.evaluate import evaluate, evaluate_windows
from quatrain.infer.generate import Continuation, Piece, Stats, generate
from quatrain.infer.sample import Sampler, Sampling, probabilities
from quatrain.model.config import ModelConfig
from quatrain.model.init import initialise
from quatrain.model.lm import LanguageModel

PATTERNS: dict[str, dict[str, Any]] = {
    "rnn": {"pattern": "rnn"},
    "lstm": {"pattern": "lstm"},
    "gru": {"pattern": "gru"},
    "attention": {"pattern": "attention", "mixer": {"attention": {"heads": 2}}},
    "s6": {"pattern": "s6", "mixer": {"s6": {"state": 3}}},
    "s4d": {"pattern": "s4d", "mixer": {"s4d": {"state": 3}}},
    "hybrid": {"pattern": "s6 attention", "mixer": {"s6": {"state": 3}, "attention": {"heads": 2}}},
    "window": {"pattern": "attention", "mixer": {"attention": {"heads": 2, "window": 3}}},
}
RECURRENT = ("rnn", "lstm", "gru", "s6", "s4d", "window")
EVERY = pytest.mark.parametrize("name", PATTERNS)
GREEDY = Sampling(temperature=0)


def make(name: str = "lstm", **changes: Any) -> LanguageModel:
    fields: dict[str, Any] = {"vocab": 256, "width": 16, "layers": 2, **PATTERNS[name], **changes}
    model = LanguageModel(ModelConfig(**fields))
    initialise(model, 3)
    with torch.no_grad():  # sharper than a new model, so that the choice of token means something
        model.embedding.weight.mul_(30)
    return model.double().eval()


def text_tokens(count: int, vocab: int = 256, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab, count).astype(np.uint8)


# -- sampling


def spread(logits: Sequence[float], **fields: Any) -> list[float]:
    p = probabilities(torch.tensor([logits], dtype=torch.float64), Sampling(**fields))
    return [round(one, 6) for one in p[0].tolist()]


LOGITS = [math.log(p) for p in (0.1, 0.5, 0.15, 0.25)]


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, [0.1, 0.5, 0.15, 0.25]),
        ({"temperature": 0}, [0, 1, 0, 0]),
        ({"temperature": 0.5}, [0.028986, 0.724638, 0.065217, 0.181159]),
        ({"temperature": 1e-300}, [0, 1, 0, 0]),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 2}, [0, 0.666667, 0, 0.333333]),
        ({"top_k": 99}, [0.1, 0.5, 0.15, 0.25]),
        ({"top_p": 0.5}, [0, 1, 0, 0]),
        ({"top_p": 0.51}, [0, 0.666667, 0, 0.333333]),
        ({"top_p": 1e-9}, [0, 1, 0, 0]),
        ({"min_p": 0.3}, [0, 0.555556, 0.166667, 0.277778]),
        ({"min_p": 1}, [0, 1, 0, 0]),
        # top_k first, then top_p of what is left: 2/3 alone reaches 0.6
        ({"top_k": 2, "top_p": 0.6}, [0, 1, 0, 0]),
        # temperature first: at 0.5 the two likeliest hold 0.9 of everything
        ({"temperature": 0.5, "top_p": 0.9}, [0, 0.8, 0, 0.2]),
        ({"temperature": 2, "min_p": 0.6}, [0, 0.585786, 0, 0.414214]),
        ({"temperature": 0, "top_k": 3, "top_p": 0.1, "min_p": 0.5}, [0, 1, 0, 0]),
    ],
)
def test_filters_act_in_their_order(fields: dict[str, Any], wanted: list[float]) -> None:
    assert spread(LOGITS, **fields) == pytest.approx(wanted, abs=2e-6)


def test_ties_go_to_the_smaller_token() -> None:
    assert spread([0, 1, 1, 1], temperature=0) == [0, 1, 0, 0]
    assert spread([0, 1, 1, 1], top_k=2) == [0, 0.5, 0.5, 0]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=12),
    st.floats(0, 1e3),
    st.one_of(st.integers(1, 20), st.just(math.inf)),
    st.floats(0, 1, exclude_min=True),
    st.floats(0, 1),
)
def test_something_is_always_left(
    logits: list[float], temperature: float, top_k: float, top_p: float, min_p: float
) -> None:
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    p = probabilities(torch.tensor([logits], dtype=torch.float64), sampling)[0]
    assert abs(p.sum().item() - 1) < 1e-9
    assert (p >= 0).all()
    assert p[logits.index(max(logits))] > 0
    assert (p > 0).sum() <= top_k


def test_draws_follow_the_distribution_the_seed_and_nothing_else() -> None:
    logits = torch.tensor([LOGITS]).expand(20_000, -1)
    before = torch.get_rng_state()
    one, again = Sampler(Sampling(seed=5))(logits), Sampler(Sampling(seed=5))(logits)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, again)
    assert not torch.equal(one, Sampler(Sampling(seed=6))(logits))
    shares = one.bincount(minlength=4) / len(one)
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.5, 0.15, 0.25]), rtol=0, atol=0.015)


def test_infinite_logits_forbid_a_token() -> None:
    assert spread([-math.inf, 0, 0]) == [0, 0.5, 0.5]


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_diverged_logits_are_refused(wrong: float) -> None:
    for temperature in (0, 1):
        with pytest.raises(DivergedError, match="NaN or infinity"):
            probabilities(torch.tensor([[0, wrong]]), Sampling(temperature=temperature))
    with pytest.raises(DivergedError):
        probabilities(torch.full((1, 3), -math.inf), Sampling())


@pytest.mark.parametrize("shape", [(4,), (2, 0), (1, 2, 3)])
def test_logits_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"logits: shape .*: must be \(B, V\)"):
        probabilities(torch.zeros(shape), Sampling())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("temperature", value) for value in (-0.1, math.inf, math.nan)],
        *[("top_k", value) for value in (0, -1, 2.5, math.nan)],
        *[("top_p", value) for value in (0, -0.1, 1.1, math.nan)],
        *[("min_p", value) for value in (-0.1, 1.1, math.nan)],
        *[("seed", value) for value in (-1, 2**63)],
    ],
)
def test_values_out_of_range_are_named(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^{field} = "):
        Sampling(**{field: value})


# -- text that grows


def cuts(data: Any) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, len(data)), max_size=6).map(lambda at: [0, *sorted(at), len(data)])


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_utf8_is_whole_however_it_is_cut(data: st.DataObject) -> None:
    raw = data.draw(st.one_of(st.text(max_size=8).map(lambda text: text.encode()), st.binary(max_size=12)))
    at = data.draw(cuts(raw))
    stream = Utf8Stream()
    pieces = [stream.push(raw[a:b]) for a, b in pairwise(at)]
    assert "".join(pieces) + stream.finish() == raw.decode("utf-8", "replace")


def test_a_character_appears_with_its_last_byte() -> None:
    stream = Utf8Stream()
    assert [stream.push(bytes((byte,))) for byte in "a€b".encode()] == ["a", "", "", "€", "b"]
    assert [stream.push(bytes((byte,))) for byte in b"\xe2\x82a"] == ["", "", "\ufffda"]
    assert stream.push(codecs.BOM_UTF8[:2]) + stream.finish() == "\ufffd"


def first_stop(text: str, stop: tuple[str, ...]) -> str:
    """Reference: look at every prefix."""
    for end in range(len(text) + 1):
        ends = [len(one) for one in stop if text[:end].endswith(one)]
        if ends:
            return text[: end - max(ends)]
    return text


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_stop_strings_are_never_shown(data: st.DataObject) -> None:
    text = data.draw(st.text("ab", max_size=12))
    stop = tuple(data.draw(st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)))
    at = data.draw(cuts(text))
    stops, shown = StopStrings(stop), ""
    for a, b in pairwise(at):
        shown += stops.push(text[a:b])
        assert first_stop(text, stop).startswith(shown)
    found = stops.found
    shown += stops.finish()
    assert shown == first_stop(text, stop)
    assert found == any(one in text for one in stop)


def test_text_that_starts_no_stop_string_is_not_held_back() -> None:
    stops = StopStrings(("END",))
    assert [stops.push(one) for one in "aENbEND"] == ["a", "", "", "ENb", "", "", ""]
    assert stops.found
    assert stops.push("more") == ""


# -- generation


class Script(LanguageModel):
    """A model that says the given bytes, whatever the prompt is."""

    def __init__(self, script: bytes) -> None:
        super().__init__(ModelConfig(width=8, layers=1, pattern="rnn"))
        self.script = script
        self.said = 0

    def logits(self, x: Tensor) -> Tensor:
        return self._next()

    def step(self, token: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self._next(), state

    def _next(self) -> Tensor:
        self.said += 1
        return F.one_hot(torch.tensor([self.script[(self.said - 1) % len(self.script)]]), 256) * 1e4


def collect(pieces: Iterator[Piece]) -> tuple[str, Stats, list[str]]:
    got = list(pieces)
    assert all(piece.stats is None for piece in got[:-1])
    assert all(piece.text for piece in got[:-1])
    assert got[-1].stats is not None
    return "".join(piece.text for piece in got), got[-1].stats, [piece.text for piece in got]


@EVERY
@pytest.mark.parametrize("chunk", [1, 4, 512])
def test_generation_is_what_whole_passes_over_the_text_give(name: str, chunk: int) -> None:
    model, prompt = make(name), list(b"once upon")
    continuation = Continuation(model, prompt, GREEDY, chunk)
    drawn = [next(continuation) for _ in range(6)]
    known = list(prompt)
    for token in drawn:
        assert token == int(model(torch.tensor([known]))[0][0, -1].argmax())
        known.append(token)
    text, stats, _ = collect(generate(model, b"once upon", max_tokens=6, sampling=GREEDY, chunk=chunk))
    assert text == bytes(drawn).decode("utf-8", "replace")
    assert (stats.prompt_tokens, stats.new_tokens, stats.reason) == (9, 6, "length")


@pytest.mark.parametrize("name", RECURRENT)
def test_memory_does_not_grow_with_the_prompt(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(name)
    sizes: list[int] = []
    real = LanguageModel.hidden

    def hidden(self: LanguageModel, tokens: Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(tokens.shape[1])
        return real(self, tokens, *args, **kwargs)

    monkeypatch.setattr(LanguageModel, "hidden", hidden)
    held = []
    for length in (20, 61):
        state = Continuation(model, list(b"x" * length), GREEDY, 8).state
        held.append(sum(tensor.numel() for layer in state for tensor in layer))
    assert held[0] == held[1]
    assert sizes == [8, 8, 4] + [8] * 7 + [5]


def test_stats_count_what_was_done() -> None:
    model = make("hybrid")
    _, stats, _ = collect(generate(model, "four", max_tokens=5, sampling=GREEDY))
    continuation = Continuation(model, list(b"four"), GREEDY)
    for _ in range(5):
        next(continuation)
    held = sum(tensor.numel() * tensor.element_size() for layer in continuation.state for tensor in layer)
    assert stats.state_bytes == held == model.state_bytes(1, 8)
    assert stats.prefill_seconds > 0
    assert stats.tokens_per_second == 4 / stats.decode_seconds
    assert stats.prefill_tokens_per_second == 4 / stats.prefill_seconds


def test_the_caller_is_not_timed() -> None:
    from time import sleep

    pieces = generate(Script(b"ab"), "x", max_tokens=2)
    next(pieces)
    sleep(0.3)
    (last,) = pieces
    assert last.stats is not None
    assert last.stats.decode_seconds < 0.2


def test_seeds_repeat_and_differ() -> None:
    model = make()
    texts = [
        collect(generate(model, "a", max_tokens=20, sampling=Sampling(seed=seed)))[0] for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("stop", ["END", "\nEN", "€ E", "ß", "\n"])
def test_generation_ends_before_a_stop_string(stop: str) -> None:
    said = "a ß for 3 € END and more\nEND"
    text, stats, pieces = collect(generate(Script(said.encode()), "x", max_tokens=100, stop=("zzz", stop)))
    assert text == said[: said.index(stop)]
    assert stats.reason == "stop"
    assert stats.new_tokens == len(said[: said.index(stop) + len(stop)].encode())
    assert not any("\ufffd" in piece for piece in pieces)


def test_what_is_held_back_comes_at_the_end() -> None:
    text, stats, pieces = collect(generate(Script(b"abEN"), "x", max_tokens=4, stop=("END",)))
    assert (text, stats.reason, pieces) == ("abEN", "length", ["a", "b", "EN"])
    text, stats, _ = collect(generate(Script("ab€".encode()), "x", max_tokens=4))
    assert (text, stats.reason) == ("ab\ufffd", "length")


def test_one_token_is_possible() -> None:
    text, stats, _ = collect(generate(Script(b"ab"), "x", max_tokens=1))
    assert text == "a"
    assert stats.tokens_per_second == 0 or stats.decode_seconds > 0


def test_the_model_is_left_as_it_was() -> None:
    model = make(dropout=0.5).train()
    model.backbone.layers[1].eval()
    modes = [module.training for module in model.modules()]
    pieces = generate(model, "x", max_tokens=50, sampling=GREEDY)
    next(pieces)
    assert not any(module.training for module in model.modules())
    assert torch.is_grad_enabled()
    pieces.close()  # type: ignore[attr-defined]
    assert [module.training for module in model.modules()] == modes
    wanted = collect(generate(make(), "x", max_tokens=9, sampling=GREEDY))[0]
    assert collect(generate(model, "x", max_tokens=9, sampling=GREEDY))[0] == wanted


@pytest.mark.parametrize("prompt", ["", b"", []])
def test_an_empty_prompt_is_refused(prompt: Any) -> None:
    with pytest.raises(DataError, match="prompt: empty"):
        generate(make(), prompt)
    with pytest.raises(DataError, match="prompt: empty"):
        Continuation(make(), [], GREEDY)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": 0}, "max_tokens = 0: must be at least 1"),
        ({"chunk": 0}, "chunk = 0: must be at least 1"),
        ({"stop": ("a", "")}, "stop = '': must not be empty"),
    ],
)
def test_wrong_settings_of_generation_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        generate(make(), "x", **fields)


def test_wrong_tokens_and_models_are_named() -> None:
    with pytest.raises(ShapeError, match=r"tokens: 256: must lie in \[0, 256\)"):
        next(generate(make(), [1, 256]))
    with pytest.raises(ConfigError, match=r"model\.vocab = 99: must be 256"):
        generate(make(vocab=99), "x")
    assert 0 <= next(Continuation(make(vocab=99), [98], GREEDY)) < 99


# -- scoring


def nats_of(model: LanguageModel, tokens: np.ndarray) -> Tensor:
    """Reference: the nats of every token but the first, from one pass over everything."""
    x = torch.from_numpy(tokens.astype(np.int64))
    with torch.no_grad():
        return F.cross_entropy(model(x[None, :-1])[0][0], x[1:], reduction="none")


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_scoring_with_carried_state_is_one_long_pass(name: str, chunk: int) -> None:
    model, tokens = make(name), text_tokens(40)
    score = evaluate(model, tokens, chunk=chunk)
    assert score.nats == pytest.approx(nats_of(model, tokens).mean().item(), abs=1e-9)
    assert (score.tokens, score.total_tokens, score.bytes) == (39, 39, 39)
    assert score.context == "all tokens before it"


@pytest.mark.parametrize("batch", [2, 3, 5, 39, 100])
def test_streams_cover_every_token_once(batch: int) -> None:
    model, tokens = make("rnn"), text_tokens(40)
    score = evaluate(model, tokens, chunk=4, batch=batch)
    length = -(-39 // min(batch, 39))
    parts = [tokens[at : at + length + 1] for at in range(0, 39, length)]
    wanted = torch.cat([nats_of(model, part) for part in parts])
    assert score.tokens == len(wanted) == 39
    assert score.nats == pytest.approx(wanted.mean().item(), abs=1e-9)


def test_a_limit_shortens_every_stream() -> None:
    model, tokens = make("rnn"), text_tokens(41)
    score = evaluate(model, tokens, batch=4, limit=12, chunk=2)
    wanted = torch.cat([nats_of(model, tokens[at : at + 4]) for at in (0, 10, 20, 30)])
    assert (score.tokens, score.total_tokens) == (12, 40)
    assert score.nats == pytest.approx(wanted.mean().item(), abs=1e-9)


@pytest.mark.parametrize("name", ["attention", "hybrid"])
@pytest.mark.parametrize("chunk", [2, 7, 8])
@pytest.mark.parametrize("batch", [1, 3])
def test_growing_states_are_scored_in_overlapping_windows(name: str, chunk: int, batch: int) -> None:
    model, tokens = make(name), text_tokens(40)
    score = evaluate(model, tokens, chunk=chunk, batch=batch)
    wanted = [nats_of(model, tokens[: chunk + 1])]
    at = chunk  # targets scored so far
    while at < 39:
        end = min(at + chunk - chunk // 2, 39)
        wanted.append(nats_of(model, tokens[at - chunk // 2 : end + 1])[chunk // 2 :])
        at = end
    assert score.tokens == sum(map(len, wanted)) == 39
    assert score.nats == pytest.approx(torch.cat(wanted).mean().item(), abs=1e-9)
    assert score.context.startswith(f"windows of {chunk} tokens; each token sees at least {chunk // 2}")


def test_a_text_shorter_than_the_window_is_one_pass() -> None:
    model, tokens = make("attention"), text_tokens(10)
    assert evaluate(model, tokens).nats == pytest.approx(nats_of(model, tokens).mean().item(), abs=1e-9)


def test_a_limit_spreads_windows() -> None:
    score = evaluate(make("attention"), text_tokens(1000), chunk=20, limit=100)
    assert 80 <= score.tokens <= 100
    assert score.total_tokens == 999
    assert evaluate(make("attention"), text_tokens(1000), chunk=20, limit=1).tokens == 20


def test_two_tokens_are_enough() -> None:
    for name in ("lstm", "attention"):
        assert evaluate(make(name), text_tokens(2)).tokens == 1


def test_figures_follow_from_nats() -> None:
    score = evaluate(make("lstm"), text_tokens(30))
    assert score.perplexity == pytest.approx(math.exp(score.nats))
    assert score.bits_per_byte == pytest.approx(score.nats / math.log(2))
    other = evaluate(make("lstm", vocab=300), text_tokens(30))
    assert other.bytes == 0
    assert math.isnan(other.bits_per_byte)
    assert score.seconds > 0


def test_scoring_leaves_the_model_and_needs_no_memory_for_gradients() -> None:
    model, tokens = make("lstm", dropout=0.5).train(), text_tokens(30)
    assert evaluate(model, tokens).nats == evaluate(make("lstm"), tokens).nats
    assert model.training


def test_a_memory_map_is_scored(tmp_path: Any) -> None:
    tokens = text_tokens(50)
    tokens.tofile(tmp_path / "tokens.bin")
    mapped = np.memmap(tmp_path / "tokens.bin", dtype=np.uint8, mode="r")
    assert evaluate(make(), mapped, chunk=9).nats == evaluate(make(), tokens, chunk=9).nats


@EVERY
def test_sampled_windows(name: str) -> None:
    model, tokens = make(name), text_tokens(100)
    every = evaluate_windows(model, tokens, sequence=8, count=999, batch=5)
    wanted = torch.stack([nats_of(model, tokens[at : at + 9]) for at in range(0, 96, 8)])
    assert (every.tokens, every.total_tokens) == (96, 99)
    assert every.nats == pytest.approx(wanted.mean().item(), abs=1e-9)
    some, again, other = (
        evaluate_windows(model, tokens, sequence=8, count=3, seed=seed) for seed in (1, 1, 2)
    )
    assert some.tokens == 24
    assert some.nats == again.nats != other.nats


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("lstm", {"chunk": 0}, "chunk = 0: must be at least 1"),
        ("attention", {"chunk": 1}, "chunk = 1: must be at least 2 for a model whose state grows"),
        ("lstm", {"batch": 0}, "batch = 0: must be at least 1"),
        ("lstm", {"limit": 0}, "limit = 0: must be at least 1"),
        ("lstm", {"limit": math.nan}, "limit = nan: must be at least 1"),
    ],
)
def test_wrong_settings_of_scoring_are_named(name: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(make(name), text_tokens(9), **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sequence": 0, "count": 1}, "sequence = 0: must be at least 1"),
        ({"sequence": 1, "count": 0}, "count = 0: must be at least 1"),
        ({"sequence": 1, "count": 1, "seed": -1}, "seed = -1: must be 0 or more"),
        ({"sequence": 1, "count": 1, "batch": 0}, "batch = 0: must be at least 1"),
    ],
)
def test_wrong_settings_of_windows_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate_windows(make(), text_tokens(9), **fields)


def test_unusable_tokens_are_named() -> None:
    for tokens in (text_tokens(0), text_tokens(1)):
        with pytest.raises(DataError, match=f"tokens: {len(tokens)}: must be at least 2"):
            evaluate(make(), tokens)
    for wrong in (np.zeros((2, 2), np.uint8), np.zeros(9)):
        with pytest.raises(DataError, match=r"must be \(N,\) integers"):
            evaluate(make(), wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"tokens: 9: must be at least sequence \+ 1 = 10"):
        evaluate_windows(make(), text_tokens(9), sequence=9, count=1)
    with pytest.raises(ShapeError, match=r"tokens: .*must lie in \[0, 99\)"):
        evaluate(make(vocab=99), np.full(9, 120))
    with pytest.raises(ShapeError, match=r"targets: 120"):
        evaluate(make(vocab=99), np.array([1, 120]))
