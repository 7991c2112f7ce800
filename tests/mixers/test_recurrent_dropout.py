"""Variational dropout of the recurrent input: one mask for all steps, which is another recurrent matrix."""

from typing import Any

import pytest
import torch
from torch import Tensor

from quatrain.errors import ConfigError
from quatrain.mixers import mixer_class
from quatrain.model import LanguageModel, ModelConfig
from quatrain.model.mode import evaluating

WIDTH, P = 16, 0.25
SETTINGS = ["rnn", "lstm", "gru", "gru before"]
PLACES = [("cpu", "auto"), ("cpu", "reference"), pytest.param(("cuda", "cuda"), marks=pytest.mark.gpu)]
EVERY = pytest.mark.parametrize("name", SETTINGS)
ON = pytest.mark.parametrize("place", PLACES, ids="-".join)
WAYS = pytest.mark.parametrize("causal", [True, False], ids=["causal", "both ways"])


def make(name: str, p: float = P, place: tuple[str, str] = ("cpu", "auto"), **settings: Any) -> Any:
    torch.manual_seed(0)
    kind, *reset = name.split()
    settings |= {"reset": reset[0]} if reset else {}
    layer = mixer_class(kind)(width=WIDTH, recurrent_dropout=p, impl=place[1], **settings)
    return layer.to(place[0])


def noise(*shape: int, device: str = "cpu") -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(device)


def parts(layer: Any) -> list[Any]:
    return [layer] if layer.reverse is None else [layer, layer.reverse]


def drawn(layer: Any, seed: int) -> list[Tensor]:
    """The masks of a call under this seed, one for each direction, and the seed set again."""
    torch.manual_seed(seed)
    ones = [weights.recurrent.new_ones(weights.recurrent.shape[1]) for weights in parts(layer)]
    masks = [torch.nn.functional.dropout(one, P) for one in ones]
    torch.manual_seed(seed)
    return masks


@ON
@EVERY
@WAYS
@pytest.mark.parametrize("form", ["whole", "lengths", "packed"])
def test_it_is_one_mask_of_the_matrix_and_so_is_its_gradient(
    name: str, causal: bool, form: str, place: tuple[str, str]
) -> None:
    layer, x, more = make(name, place=place, causal=causal), noise(3, 8, WIDTH, device=place[0]), {}
    if form == "lengths":
        more = {"lengths": torch.tensor([8, 3, 5], device=place[0])}
    elif form == "packed":
        x, more = x.view(1, 24, WIDTH), {"cu_seqlens": torch.tensor([0, 5, 24], device=place[0])}
    masks = drawn(layer, 7)
    y, state = layer(x, **more)
    grads = torch.autograd.grad(y.square().sum(), list(layer.parameters()))
    plain = make(name, 0.0, place=place, causal=causal)
    with torch.no_grad():
        for weights, mask in zip(parts(plain), masks, strict=True):
            assert 0 < int((mask == 0).sum()) < len(mask)
            weights.recurrent.mul_(mask)
    wanted, last = plain(x, **more)
    known = torch.autograd.grad(wanted.square().sum(), list(plain.parameters()))
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(state, last)
    masked = {id(weights.recurrent): mask for weights, mask in zip(parts(plain), masks, strict=True)}
    for parameter, got, want in zip(plain.parameters(), grads, known, strict=True):
        torch.testing.assert_close(got, want * masked.get(id(parameter), 1))


@EVERY
def test_it_drops_h_in_front_of_the_product_at_every_step(name: str) -> None:
    """By the equations, step by step, with m * h in the place of h."""
    layer, x = make(name).double(), noise(2, 6, WIDTH).double()
    (m,) = drawn(layer, 3)
    y, _ = layer(x)
    h = c = x.new_zeros(2, WIDTH)
    for t in range(6):
        drive, matrix = layer.in_proj(x[:, t]), layer.recurrent.T
        if name == "rnn":
            h = (drive + (m * h) @ matrix).tanh()
        elif name == "lstm":
            i, f, g, o = (drive + (m * h) @ matrix).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        else:
            both, new = drive.split((2 * WIDTH, WIDTH), -1)
            of_gates, of_new = matrix.split((2 * WIDTH, WIDTH), -1)
            r, z = (both + (m * h) @ of_gates).sigmoid().chunk(2, -1)
            inner = (r * h * m) @ of_new if name == "gru before" else r * ((m * h) @ of_new)
            h = (1 - z) * (new + inner).tanh() + z * h
        torch.testing.assert_close(y[:, t], h)


def test_the_masked_matrix_is_the_matrix_on_average() -> None:
    layer, x = make("rnn", 0.4), torch.zeros(1, 1, WIDTH)
    with torch.no_grad():  # one step from h: relu and tanh are near linear there
        layer.in_proj.bias.zero_()
        start = layer.State(1e-3 * noise(1, WIDTH))
        torch.manual_seed(0)
        seen = torch.cat([layer(x, start)[0] for _ in range(4000)])[:, 0]
        wanted = (start.h @ layer.recurrent.T)[0]
    deviation = seen.std(0) / 4000**0.5
    assert ((seen.mean(0) - wanted).abs() < 5 * deviation).all()
    assert seen.std(0).min() > 0


@ON
@EVERY
@WAYS
def test_without_training_there_is_none(name: str, causal: bool, place: tuple[str, str]) -> None:
    x = noise(2, 6, WIDTH, device=place[0])
    wanted = make(name, 0.0, place=place, causal=causal)(x)[0]
    layer = make(name, place=place, causal=causal)
    assert not torch.equal(layer(x)[0], wanted)
    layer.eval()
    before = torch.get_rng_state()
    assert torch.equal(layer(x)[0], wanted)
    assert torch.equal(torch.get_rng_state(), before)


@EVERY
def test_a_seed_decides_it_and_calls_differ(name: str) -> None:
    layer, x = make(name), noise(2, 6, WIDTH)
    torch.manual_seed(5)
    first, second = layer(x)[0], layer(x)[0]
    torch.manual_seed(5)
    assert torch.equal(layer(x)[0], first)
    assert not torch.equal(first, second)


@EVERY
def test_nothing_is_drawn_at_probability_0(name: str) -> None:
    layer, before = make(name, 0.0), torch.get_rng_state()
    layer(noise(1, 3, WIDTH))
    assert torch.equal(torch.get_rng_state(), before)


@EVERY
@pytest.mark.filterwarnings("ignore")  # torch's own, about how it compiles
def test_compiled_it_trains_and_draws_anew(name: str) -> None:
    layer, x = make(name), noise(2, 6, WIDTH)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.manual_seed(5)
    first, second = compiled(x)[0], compiled(x)[0]
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    wanted, _ = layer(x)
    torch.testing.assert_close(first, wanted)
    got = torch.autograd.grad(first.square().sum(), list(layer.parameters()))
    known = torch.autograd.grad(wanted.square().sum(), list(layer.parameters()))
    torch.testing.assert_close(got, known)


@EVERY
def test_a_step_in_training_is_refused(name: str) -> None:
    layer, x = make(name), noise(2, WIDTH)
    state = layer.initial_state(2)
    rule = r"recurrent_dropout = 0\.25: a step in training would draw a mask of its own: call eval\(\)"
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            layer.eval()
            wanted, _ = make(name, 0.0).step(x, state)
            torch.testing.assert_close(layer.step(x, state)[0], wanted)
            layer.train()
            with pytest.raises(ConfigError, match=rule):
                layer.step(x, state)
    with pytest.raises(ConfigError, match=rule):
        layer.run(state)


def model_of(name: str, **more: Any) -> LanguageModel:
    torch.manual_seed(0)
    kind = name.split(maxsplit=1)[0]
    mixer = {kind: {"recurrent_dropout": 0.3}}
    return LanguageModel(ModelConfig(vocab=11, width=8, layers=2, pattern=kind, mixer=mixer, **more))


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_a_model_steps_in_evaluation_and_says_so_in_training(name: str) -> None:
    """Also after a step in evaluation, which recorded how it is made."""
    model = model_of(name)
    tokens, state = torch.tensor([1, 2]), model.initial_state(2)
    with torch.no_grad():
        with evaluating(model):
            first, _ = model.step(tokens, state)
            torch.testing.assert_close(first, model(tokens[:, None])[0][:, 0])
            model.step(tokens, state)
        with pytest.raises(ConfigError, match=r"recurrent_dropout = 0\.3: a step in training"):
            model.step(tokens, state)
        block = model.backbone.blocks[0]
        with pytest.raises(ConfigError, match=r"recurrent_dropout = 0\.3: a step in training"):
            block.step(noise(2, 8), state[0])


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_a_model_that_recomputes_draws_the_same_masks(name: str) -> None:
    tokens, results = torch.randint(11, (2, 7)), []
    for recompute in (False, True):
        model = model_of(name, checkpoint_layers=recompute).train()
        assert model.config.draws
        torch.manual_seed(4)
        loss, _ = model.loss(tokens, tokens, keep_state=False)
        loss.backward()
        results.append([loss, *(parameter.grad for parameter in model.parameters())])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
