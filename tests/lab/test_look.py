"""What `quatrain.lab.look` says must be what the layers do: their outputs, computed again from it."""

from dataclasses import fields

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from quatrain.errors import ConfigError, ShapeError
from quatrain.lab.look import Inside, inside, look
from quatrain.mixers import MIXERS, mixer_class
from quatrain.model.config import ModelConfig
from quatrain.model.init import initialise
from quatrain.model.sequence import build

WIDTH, TIME = 16, 21
VARIANTS = {
    "rnn": {},
    "rnn relu": {"nonlinearity": "relu", "recurrent_init": "identity"},
    "lstm": {},
    "gru": {},
    "gru before": {"reset": "before"},
    "attention": {},
    "attention grouped": {"kv_heads": 2},
    "attention window": {"window": 4, "kv_heads": 1},
    "attention none": {"positions": "none"},
    "attention sinusoidal": {"positions": "sinusoidal"},
    "attention learned": {"positions": "learned", "max_positions": 32},
    "attention encoder": {"causal": False},
    "s6": {"state": 5},
    "s6 zoh": {"state": 3, "zoh": True, "conv": 2, "dt_rank": 3},
    "s4d": {"state": 5},
    "s4d complex": {"state": 6, "complex": True, "conv": 3},
}
TASKS = {
    "lm": {"vocab": 11},
    "classify": {"channels": 3, "outputs": 4},
    "forecast": {"channels": 4, "anchors": 2, "horizon": 2, "outputs": 2 * 2 * 6},
    "tag": {"vocab": 11, "outputs": 5},
    "transcribe": {"channels": 3, "outputs": 4},
}


def make(variant: str):
    torch.manual_seed(0)
    mixer = mixer_class(variant.split(maxsplit=1)[0])(width=WIDTH, **VARIANTS[variant]).double()
    with torch.no_grad():  # no bias and no gate where it starts: what would be left out must show
        for parameter in mixer.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, dtype=torch.float64) * WIDTH**-0.5
    return mixer


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def assert_equal(got: Tensor, wanted: Tensor) -> None:
    error = (got - wanted).abs().max().item()
    assert error <= 1e-13 * max(1.0, wanted.abs().max().item()), error


# -- the layer's output from what was found


def of_rnn(mixer, x, found):
    h, y = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        a = mixer.in_proj(x[:, t]) + F.linear(h, mixer.recurrent)
        h = a.tanh() if mixer.config.nonlinearity == "tanh" else a.relu()
        y.append(h)
    assert_equal(found.state, torch.stack(y, 1))
    return found.state


def of_lstm(mixer, x, found):
    i, f, o = (found.gates[name] for name in ("input", "forget", "output"))
    c, y = torch.zeros_like(i[:, 0]), []
    for t in range(x.shape[1]):
        c = f[:, t] * c + i[:, t] * found.parts["candidate"][:, t]
        y.append(o[:, t] * c.tanh())
    assert_equal(found.state[:, -1], c)
    return torch.stack(y, 1)


def of_gru(mixer, x, found):
    r, z, n = found.gates["reset"], found.gates["update"], found.parts["candidate"]
    h, y = torch.zeros_like(z[:, 0]), []
    drive = mixer.in_proj(x)[..., 2 * WIDTH :]
    matrix, bias = mixer.recurrent[2 * WIDTH :], mixer.recurrent_bias
    for t in range(x.shape[1]):
        if mixer.config.reset == "before":
            new = drive[:, t] + F.linear(r[:, t] * h, matrix)
        else:
            new = drive[:, t] + r[:, t] * F.linear(h, matrix, bias)
        assert_equal(n[:, t], new.tanh())  # the reset gate is the one that acts
        h = (1 - z[:, t]) * n[:, t] + z[:, t] * h
        y.append(h)
    assert_equal(found.state[:, -1], h)
    return torch.stack(y, 1)


def of_attention(mixer, x, found):
    v = found.parts["value"].repeat_interleave(mixer.config.heads // mixer.config.groups, 2)
    return mixer.out_proj((found.attention @ v.transpose(1, 2)).transpose(1, 2).flatten(2))


def of_s6(mixer, x, found):
    u, b, c, a = (*(found.parts[name] for name in ("input", "b", "c")), -mixer.a_log.exp())
    h, y = 0, []
    for t in range(x.shape[1]):
        rate = found.step[:, t, :, None] * a
        drive = torch.expm1(rate) / a if mixer.config.zoh else found.step[:, t, :, None]
        h = rate.exp() * h + drive * u[:, t, :, None] * b[:, t, None]
        y.append((h * c[:, t, None]).sum(-1) + mixer.skip * u[:, t])
    return mixer.out_proj(torch.stack(y, 1) * found.gates["output"])


def of_s4d(mixer, x, found):
    u = found.parts["input"]
    a, c = -mixer.a_log.exp(), mixer.c
    if mixer.config.complex:
        a, c = torch.complex(a, mixer.a_imag), 2 * torch.view_as_complex(c)
    h, y = 0, []
    for t in range(x.shape[1]):
        rate = found.step[:, t, :, None] * a
        h = rate.exp() * h + torch.expm1(rate) / a * u[:, t, :, None]
        y.append((h * c).sum(-1).real + mixer.skip * u[:, t])
    return mixer.out_proj(torch.stack(y, 1) * found.gates["output"])


OUTPUTS = {
    "rnn": of_rnn,
    "lstm": of_lstm,
    "gru": of_gru,
    "attention": of_attention,
    "s6": of_s6,
    "s4d": of_s4d,
}


def test_every_mixer_is_known():
    assert OUTPUTS.keys() == MIXERS.keys() == {variant.split()[0] for variant in VARIANTS}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_layer_follows_from_what_was_found_in_it(variant):
    mixer, x = make(variant), noise(2, TIME, WIDTH)
    found = inside(mixer, x)
    with torch.no_grad():
        assert_equal(OUTPUTS[mixer.kind](mixer, x, found), mixer(x)[0])
    assert found.kind == mixer.kind
    assert found.memory is not None
    assert len(found.memory) == 2
    assert (found.memory > 0).all() or mixer.kind == "attention"
    for gate in found.gates.values():
        assert gate.shape[:2] == (2, TIME)
    if found.attention is not None:
        assert_equal(found.attention.sum(-1), torch.ones_like(found.attention[..., 0]))
        if mixer.config.causal:
            assert (found.attention.triu(1) == 0).all()


def test_memory_of_gates_that_stand_still():
    lstm = mixer_class("lstm")(width=4, forget_bias=2.0).double()
    with torch.no_grad():
        lstm.in_proj.weight.zero_()
        lstm.recurrent.zero_()
    memory = inside(lstm, noise(1, 9, 4)).memory
    forget = torch.tensor(2.0, dtype=torch.float64).sigmoid()
    assert_equal(memory, (1 / (1 - forget)).expand(1, 4))


def test_memory_of_s6_is_the_time_to_fall_to_1_over_e():
    mixer, x = make("s6"), noise(1, TIME, WIDTH)
    found = inside(mixer, x)
    decay = (found.step[..., None] * -mixer.a_log.exp()).sum(1).exp()  # of the state, over the whole input
    assert_equal(decay, (-TIME / found.memory).exp())


def test_memory_of_an_rnn_is_measured():
    """h_t = scale Q h_{t-1} with Q orthogonal shrinks by scale a step: e-fold after -1 / log(scale)."""
    rnn = mixer_class("rnn")(width=6, nonlinearity="relu").double()
    with torch.no_grad():
        rnn.recurrent.copy_(0.8 * torch.eye(6, dtype=torch.float64))
        rnn.in_proj.weight.zero_()
        rnn.in_proj.bias.fill_(1.0)
    memory = inside(rnn, noise(1, 40, 6)).memory
    assert_equal(memory, (-1 / torch.tensor(0.8, dtype=torch.float64).log()).expand(1, 6))
    with torch.no_grad():
        rnn.recurrent.copy_(torch.eye(6))
    assert inside(rnn, noise(1, 40, 6)).memory.isinf().all()
    alone = inside(rnn, noise(1, 1, 6))
    assert alone.memory is None
    assert "too short" in alone.memory_by


def test_a_kind_that_nobody_knows_gives_nothing(monkeypatch):
    mixer = make("rnn")
    monkeypatch.setattr(type(mixer), "kind", "other")
    found = inside(mixer, noise(1, 3, WIDTH))
    values = [getattr(found, field.name) for field in fields(Inside)]
    assert values == ["other", {}, None, None, None, None, "", {}]


def test_a_window_is_a_band():
    weights = inside(make("attention window"), noise(1, TIME, WIDTH)).attention
    assert (weights.tril(-4) == 0).all()


# -- whole models


def model_of(task: str = "lm", form: str = "residual", pattern: str = "s6 attention lstm", layers: int = 3):
    config = ModelConfig(
        task=task, width=WIDTH, layers=layers, pattern=pattern, form=form, dropout=0.3, **TASKS[task]
    )
    model = build(config)
    initialise(model, seed=3)
    return model.double()


def inputs_of(task: str, time: int = TIME) -> Tensor:
    channels = TASKS[task].get("channels", 0)
    return noise(time, channels) if channels else torch.arange(time) % 11


@pytest.mark.parametrize("form", ["residual", "stack"])
@pytest.mark.parametrize("task", TASKS)
def test_the_layers_are_those_of_the_model(task, form):
    model, inputs = model_of(task, form), inputs_of(task)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layers = look(model, inputs)
    assert [layer.kind for layer in layers] == ["s6", "attention", "lstm"]
    assert [layer.index for layer in layers] == [0, 1, 2]
    with torch.no_grad():
        model.eval()
        hidden, x = [], model.embed(inputs[None])
        hidden.append(x)
        for block in model.backbone.blocks:
            x, _ = block(x, None, None, None, False)
            hidden.append(x)
        last = x if model.backbone.norm is None else model.backbone.norm(x)
        assert_equal(last, model.hidden(inputs[None])[0])
    for layer, enters, leaves in zip(layers, hidden, hidden[1:], strict=False):
        assert_equal(layer.before, enters[0].norm(dim=-1))
        assert_equal(layer.hidden, leaves[0].norm(dim=-1))
        assert (layer.mlp is not None) == (form == "residual" and layer.kind == "attention")
    if form == "stack":
        assert_equal(layers[0].added, layers[0].hidden)
    assert layers[1].attention.shape == (4, TIME, TIME)
    assert layers[2].gates["forget"].shape == (TIME, WIDTH)
    assert layers[0].step.shape == (TIME, 2 * WIDTH)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", MIXERS)
def test_every_kind_in_a_model_leaves_nothing_behind(kind):
    model = model_of(pattern=kind, layers=2).train()
    modules = {name: set(vars(module)) for name, module in model.named_modules()}
    first = look(model, inputs_of("lm"))
    again = look(model, inputs_of("lm"))
    assert model.training
    assert modules == {name: set(vars(module)) for name, module in model.named_modules()}
    assert not any(module._forward_hooks for module in model.modules())
    for one, two in zip(first, again, strict=True):  # dropout is off
        assert torch.equal(one.hidden, two.hidden)
        assert not one.hidden.requires_grad


def test_limit_takes_the_first_steps():
    model = model_of()
    whole, part = look(model, inputs_of("lm")), look(model, inputs_of("lm"), limit=5)
    assert all(len(layer.hidden) == 5 for layer in part)
    assert_equal(part[2].hidden, whole[2].hidden[:5])
    assert len(look(model, inputs_of("lm", 1))[0].hidden) == 1


def test_half_precision_is_looked_at_in_single():
    layers = look(model_of().to(torch.bfloat16), inputs_of("lm"))
    for layer in layers:
        assert layer.hidden.dtype == torch.float32
        assert all(gate.dtype == torch.float32 and gate.isfinite().all() for gate in layer.gates.values())


def test_what_is_refused():
    model = model_of()
    with pytest.raises(ShapeError, match=r"inputs: shape \(1, 3\): must be \(T,\)"):
        look(model, torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(ShapeError, match="at least 1"):
        look(model, torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ShapeError, match="tokens: 99"):
        look(model, torch.tensor([99]))
    with pytest.raises(ShapeError, match=r"must be \(T, 3\)"):
        look(model_of("classify"), torch.zeros(5))
    with pytest.raises(ConfigError, match="limit = 0"):
        look(model, torch.tensor([1]), limit=0)
    with pytest.raises(ShapeError, match="x: shape"):
        inside(make("lstm"), noise(2, 3))
    with pytest.raises(ShapeError, match="x"):
        inside(make("lstm"), noise(2, 0, WIDTH))
