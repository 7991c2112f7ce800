"""Decoding with private memory: the numbers of `LanguageModel.step`, for every mixer, dtype and batch."""

from typing import Any

import pytest
import torch
from tests import needs
from torch import Tensor

from quatrain.errors import ShapeError
from quatrain.infer._decoder import Decoder
from quatrain.infer.generate import Continuation
from quatrain.infer.sample import Sampling
from quatrain.kernels import _core
from quatrain.mixers import MIXERS
from quatrain.model.config import ModelConfig
from quatrain.model.init import initialise
from quatrain.model.lm import LanguageModel

VARIANTS: dict[str, dict[str, Any]] = {
    "rnn": {"pattern": "rnn"},
    "rnn relu": {"pattern": "rnn", "mixer": {"rnn": {"nonlinearity": "relu"}}},
    "lstm": {"pattern": "lstm"},
    "lstm stack": {"pattern": "lstm", "form": "stack"},
    "gru": {"pattern": "gru"},
    "gru before": {"pattern": "gru", "mixer": {"gru": {"reset": "before"}}},
    "attention": {"pattern": "attention"},
    "attention grouped learned": {
        "pattern": "attention",
        "mixer": {"attention": {"kv_heads": 2, "positions": "learned", "max_positions": 40}},
        "tied": False,
    },
    "attention sinusoidal": {"pattern": "attention", "mixer": {"attention": {"positions": "sinusoidal"}}},
    "attention window": {"pattern": "attention", "mixer": {"attention": {"window": 5, "positions": "none"}}},
    "attention window 1": {"pattern": "attention", "mixer": {"attention": {"window": 1}}},
    "s6": {"pattern": "s6", "mlp": "gated"},
    "s6 odd": {"pattern": "s6", "mixer": {"s6": {"state": 5, "conv": 2, "dt_rank": 3}}},
    "s6 zoh": {"pattern": "s6", "mixer": {"s6": {"zoh": True}}},
    "s4d": {"pattern": "s4d"},
    "hybrid": {"pattern": "s6 attention lstm", "layers": 3},
}
RECORDED = [name for name in VARIANTS if name not in ("attention sinusoidal", "s6 zoh", "s4d")]
EVERY = pytest.mark.parametrize("variant", VARIANTS)
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
ULPS = {torch.float64: 1e4, torch.float32: 100.0, torch.bfloat16: 8.0}  # of the largest value


def make(variant: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    model = LanguageModel(ModelConfig(**{"vocab": 61, "width": 40, "layers": 2, **VARIANTS[variant]}))
    initialise(model, 3)
    return model.to(dtype).eval()


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, 61, shape, generator=torch.Generator().manual_seed(0))


def close(got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    if want.numel():
        allowed = ULPS[dtype] * torch.finfo(dtype).eps * max(1e-3, want.double().abs().max().item())
        assert (got.double() - want.double()).abs().max().item() <= allowed


def same_state(got: Any, want: Any, dtype: torch.dtype) -> None:
    for a, b in zip(got, want, strict=True):
        assert type(a) is type(b)
        for one, other in zip(a, b, strict=True):
            close(one, other, dtype)


def test_every_mixer_is_decoded() -> None:
    assert {kind for fields in VARIANTS.values() for kind in fields["pattern"].split()} == set(MIXERS)


@EVERY
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [1, 3, 9])
def test_decoding_is_stepping(variant: str, dtype: torch.dtype, batch: int) -> None:
    model, x = make(variant, dtype), tokens(batch, 21)
    with torch.no_grad():
        lengths = torch.arange(batch) * 3 % 8 if batch > 1 else None  # rows at their own positions
        _, state = model(x[:, :7], None, lengths)
        kept = [[t.clone() for t in layer] for layer in state]
        decoder, expected = Decoder(model, state), state
        for t in range(7, 21):
            logits, expected = model.step(x[:, t], expected)
            close(decoder(x[:, t]), logits, dtype)
            if t in (9, 20):
                same_state(decoder.state(), expected, dtype)
        for layer, before in zip(state, kept, strict=True):
            for now, then in zip(layer, before, strict=True):
                assert torch.equal(now, then), "the state given was changed"


@needs.core
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_the_core_can_do_is_one_call(variant: str, dtype: torch.dtype) -> None:
    model = make(variant, dtype)
    decoder = Decoder(model, model.initial_state(2))
    assert (decoder._record is not None) == (variant in RECORDED)
    assert Decoder(model, model.initial_state(9))._record is None
    assert Decoder(model.double(), model.initial_state(2))._record is None


@needs.core
@pytest.mark.parametrize("variant", RECORDED)
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("isa", _core.available())
def test_threads_and_instruction_sets(variant: str, threads: int, isa: str) -> None:
    model, x = make(variant), tokens(2, 4)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad(), _core.forced(isa):
            decoder, state = Decoder(model, model.initial_state(2)), model.initial_state(2)
            for t in range(4):
                logits, state = model.step(x[:, t], state)
                close(decoder(x[:, t]), logits, torch.float32)
            same_state(decoder.state(), state, torch.float32)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("variant", ["attention", "attention window", "s6", "lstm"])
def test_a_state_taken_out_is_a_value(variant: str) -> None:
    model, x = make(variant), tokens(1, 9)
    with torch.no_grad():
        decoder = Decoder(model, model.initial_state(1))
        for t in range(4):
            decoder(x[:, t])
        taken = decoder.state()
        kept = [[t.clone() for t in layer] for layer in taken]
        first = [decoder(x[:, t]).clone() for t in range(4, 9)]
        for layer, before in zip(taken, kept, strict=True):
            for now, then in zip(layer, before, strict=True):
                assert torch.equal(now, then)
        branch = Decoder(model, taken)
        for t, logits in zip(range(4, 9), first, strict=True):
            assert torch.equal(branch(x[:, t]), logits)


@needs.core
@pytest.mark.parametrize("variant", ["attention", "hybrid"])
def test_a_full_cache_grows(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from quatrain.mixers import _attention_run

    monkeypatch.setattr(_attention_run, "_ROOM", 2)
    model, x = make(variant), tokens(2, 30)
    with torch.no_grad():
        decoder, state = Decoder(model, model.initial_state(2)), model.initial_state(2)
        for t in range(30):
            logits, state = model.step(x[:, t], state)
            close(decoder(x[:, t]), logits, torch.float32)
        same_state(decoder.state(), state, torch.float32)


def test_learned_positions_end() -> None:
    model = make("attention grouped learned")
    decoder = Decoder(model, model.initial_state(1))
    for _ in range(40):
        decoder(torch.tensor([1]))
    with pytest.raises(ShapeError, match="position 41: learned positions end at max_positions = 40"):
        decoder(torch.tensor([1]))


def test_a_model_that_is_training_is_decoded_without_dropout() -> None:
    model = make("lstm")
    model.backbone.dropout.p = model.backbone.blocks[0].dropout.p = 0.5
    token = torch.tensor([3])
    want = model.step(token, model.initial_state(1))[0]
    assert torch.allclose(Decoder(model.train(), model.initial_state(1))(token), want, atol=1e-6)


def test_a_subclass_with_its_own_step_is_asked() -> None:
    class Constant(LanguageModel):
        def step(self, token: Tensor, state: Any) -> tuple[Tensor, Any]:
            return torch.full((1, 61), 7.0), state

    model = Constant(make("rnn").config)
    assert Decoder(model, model.initial_state(1))(torch.tensor([0])).eq(7).all()


@pytest.mark.parametrize("variant", ["attention", "s6", "gru"])
def test_a_continuation_is_what_steps_give(variant: str) -> None:
    model, prompt = make(variant).double(), tokens(5).tolist()
    continuation = Continuation(model, prompt, Sampling(temperature=0))
    got = [next(continuation) for _ in range(8)]
    with torch.no_grad():
        logits, state = model(torch.tensor([prompt]))
        logits = logits[:, -1]
        for token in got:
            assert int(logits.argmax()) == token
            before = state
            logits, state = model.step(torch.tensor([token]), state)
    same_state(continuation.state, before, torch.float64)
