"""Recorded steps: the numbers and errors of ordinary ones, weights that change, states that stay values."""

import copy
import io
import pickle
import threading
from typing import Any
from unittest.mock import patch

import pytest
import torch
from tests import needs
from torch import Tensor, nn
from torch.nn.utils import parametrize

from quatrain.errors import QuatrainError, ShapeError
from quatrain.infer._decoder import Decoder
from quatrain.kernels import _core
from quatrain.mixers import MIXERS, mixer_class
from quatrain.mixers._recorded import Recorded
from quatrain.model import LanguageModel, ModelConfig

pytestmark = needs.core
WIDTH = 24
VARIANTS: dict[str, dict[str, Any]] = {
    "rnn": {},
    "rnn relu": {"nonlinearity": "relu"},
    "lstm": {},
    "gru": {},
    "gru before": {"reset": "before"},
    "attention": {},
    "attention grouped": {"kv_heads": 2, "positions": "none"},
    "attention window": {"window": 4, "kv_heads": 1},
    "attention window 1": {"window": 1},
    "attention learned": {"positions": "learned", "max_positions": 64},
    "s6": {"state": 5},
    "s6 narrow": {"conv": 2, "dt_rank": 3},
    "s4d": {"state": 5, "conv": 3},
}
ORDINARY = {
    "attention sinusoidal": {"positions": "sinusoidal"},
    "s6 zoh": {"zoh": True},
    "s4d complex": {"complex": True},
}
EVERY = pytest.mark.parametrize("variant", VARIANTS)
ONE_OF_EACH = pytest.mark.parametrize("variant", ["rnn", "lstm", "gru", "attention", "s6", "s4d"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
ULPS = {torch.float32: 100.0, torch.bfloat16: 8.0}


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def make(variant: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    fields = {**VARIANTS, **ORDINARY}[variant]
    layer = mixer_class(variant.split(maxsplit=1)[0])(width=WIDTH, **fields)
    for name, parameter in layer.named_parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter) / 4)
        if name == "a_log":
            parameter.add_(torch.rand_like(parameter))
    return layer.to(dtype)


def noise(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def ordinary(module: Any, x: Tensor, state: Any) -> Any:
    with patch.object(Recorded, "step", lambda *_: None):
        return module.step(x, state)


def recorded(module: Any) -> int:
    return sum(len(records) for records in module._recorded._free.values())


def close(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    if not got.is_floating_point():
        assert torch.equal(got, want)
    elif want.numel():
        allowed = ULPS[want.dtype] * torch.finfo(want.dtype).eps * max(1e-3, want.abs().max().item())
        assert (got.double() - want.double()).abs().max().item() <= allowed


def same_state(got: Any, want: Any) -> None:
    assert type(got) is type(want)
    for one, other in zip(got, want, strict=True):
        close(one, other)


def clone(state: Any) -> Any:
    return type(state)(*(x.clone() for x in state))


@EVERY
@DTYPES
@pytest.mark.parametrize("batch", [1, 3])
def test_the_numbers_of_ordinary_steps(variant: str, dtype: torch.dtype, batch: int) -> None:
    layer, x = make(variant, dtype), noise(12, batch, WIDTH, dtype=dtype)
    state = want_state = layer(noise(batch, 3, WIDTH, dtype=dtype, seed=2))[1]
    for x_t in x:
        given = clone(state)
        y, after = layer.step(x_t, state)
        want, want_state = ordinary(layer, x_t, want_state)
        close(y, want)
        same_state(after, want_state)
        for now, before in zip(state, given, strict=True):
            assert torch.equal(now, before)
        state = after
    assert recorded(layer) == 1
    same_state(
        layer.step(x[0], layer.initial_state(batch))[1], ordinary(layer, x[0], layer.initial_state(batch))[1]
    )


@pytest.mark.parametrize("variant", ORDINARY)
def test_what_cannot_be_recorded_runs_all_the_same(variant: str) -> None:
    layer = make(variant)
    assert layer.step(noise(1, WIDTH), layer.initial_state(1))[0].shape == (1, WIDTH)
    assert recorded(layer) == 0


@ONE_OF_EACH
@pytest.mark.parametrize("isa", _core.available())
@pytest.mark.parametrize("threads", [1, 3])
def test_every_instruction_set(variant: str, isa: str, threads: int) -> None:
    layer, x, before = make(variant), noise(1, WIDTH), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with _core.forced(isa):
            state = layer.step(x, layer.initial_state(1))[1]
            y, after = layer.step(x, state)
            want, want_state = ordinary(layer, x, state)
    finally:
        torch.set_num_threads(before)
    close(y, want)
    same_state(after, want_state)
    assert recorded(layer) == 1


def changed_in_place(layer: Any) -> None:
    for parameter in layer.parameters():
        parameter.data.mul_(0.5)


def changed_by_optimiser(layer: Any) -> None:
    with torch.enable_grad():
        layer(noise(2, 3, WIDTH))[0].square().sum().backward()
    torch.optim.AdamW(layer.parameters(), lr=0.1).step()


def changed_through_numpy(layer: Any) -> None:
    for parameter in layer.parameters():
        parameter.detach().numpy()[:] *= 0.5


def loaded(layer: Any, assign: bool = False) -> None:
    layer.load_state_dict({n: p * 0.5 for n, p in layer.state_dict().items()}, assign=assign)


def loaded_by_assignment(layer: Any) -> None:
    loaded(layer, assign=True)


def converted_twice(layer: Any) -> None:
    layer.to(torch.bfloat16).to(torch.float32)


def replaced_data(layer: Any) -> None:
    for parameter in layer.parameters():
        parameter.data = parameter.data.flip(0)


def turned(layer: Any) -> None:
    """Square matrices as views of the same memory: same address, same shape."""
    for parameter in layer.parameters():
        if parameter.ndim == 2 and parameter.shape[0] == parameter.shape[1]:
            parameter.data = parameter.data.t()


def replaced_modules(layer: Any) -> None:
    for name, child in list(layer.named_children()):
        setattr(layer, name, nn.Linear(child.in_features, child.out_features, bias=child.bias is not None))


class Half(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def parametrized(layer: Any) -> None:
    for child in list(layer.children()):
        parametrize.register_parametrization(child, "weight", Half())


CHANGES = (
    changed_in_place, changed_by_optimiser, changed_through_numpy, loaded, loaded_by_assignment,
    converted_twice, replaced_data, turned, replaced_modules, parametrized,
)  # fmt: skip


@ONE_OF_EACH
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_of_the_weights_is_seen(variant: str, change: Any) -> None:
    layer, x = make(variant), noise(1, WIDTH)
    state = layer(noise(1, 3, WIDTH))[1]
    layer.step(x, state)
    assert recorded(layer) == 1
    change(layer)
    y, after = layer.step(x, state)
    want, want_state = ordinary(layer, x, state)
    close(y, want)
    same_state(after, want_state)


@ONE_OF_EACH
def test_other_dtypes_batches_and_layouts_of_one_layer(variant: str) -> None:
    layer = make(variant)
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.float32):
        layer = layer.to(dtype)
        for batch in (1, 8, 2, 9, 1):
            wide = noise(batch, 2 * WIDTH, dtype=dtype)
            state = layer(noise(batch, 2, WIDTH, dtype=dtype))[1]
            for x in (wide[:, :WIDTH], wide[:, ::2], wide[:, :WIDTH].contiguous()):
                y, after = layer.step(x, state)
                want, want_state = ordinary(layer, x, state)
                torch.testing.assert_close(y, want)
                for one, other in zip(after, want_state, strict=True):
                    torch.testing.assert_close(one, other)


@ONE_OF_EACH
def test_bad_input_is_refused_as_in_an_ordinary_step(variant: str) -> None:
    layer, x = make(variant), noise(2, WIDTH)
    state = layer(noise(2, 3, WIDTH))[1]
    for wrong in (x[:, :5], noise(2, 2 * WIDTH)):  # before anything is recorded
        with pytest.raises(ShapeError, match="x: shape"):
            layer.step(wrong, state)
    layer.step(x, state)
    inputs = [None, [1.0], x[0], x[:, :5], x[None], x[:0], x.double(), x.long(), x.to("meta"), x[:1]]
    states: list[Any] = [
        None,
        tuple(state),
        layer.initial_state(3),
        make("lstm" if variant == "rnn" else "rnn").initial_state(2),
    ]
    for name, tensor in state._asdict().items():
        other = tensor.long() if tensor.is_floating_point() else tensor.double()
        wrong = (other, tensor[0], tensor[..., None], None, tensor.to("meta"), tensor[:1], tensor > 0)
        states += [state._replace(**{name: bad}) for bad in wrong]
    if variant == "attention":
        states += [state._replace(position=torch.tensor(p)) for p in ([3, 4], [-1, 3], [-1, -1], [4, 4])]
        states += [state._replace(v=state.v[:, :2]), state._replace(k=state.k[:, :, :2])]
    for bad_x, bad_state in [*((bad, state) for bad in inputs), *((x, bad) for bad in states)]:
        with pytest.raises(QuatrainError) as ours:
            layer.step(bad_x, bad_state)
        with pytest.raises(QuatrainError) as plain:
            ordinary(layer, bad_x, bad_state)
        assert type(ours.value) is type(plain.value)
        assert str(ours.value) == str(plain.value)


@ONE_OF_EACH
def test_a_state_of_other_floats_is_taken(variant: str) -> None:
    layer, x = make(variant), noise(1, WIDTH)
    state = layer(noise(1, 3, WIDTH))[1]
    layer.step(x, state)
    dtypes = {"h": torch.float32 if variant == "s6" else torch.float64, "c": torch.float64}
    dtypes |= {"k": torch.bfloat16, "v": torch.bfloat16, "conv": torch.bfloat16, "position": torch.int32}
    for other in (
        state._replace(**{name: s.to(dtypes[name]) for name, s in state._asdict().items()}),
        type(state)(*(torch.stack((s, s), -1)[..., 0] for s in state)),  # not dense
    ):
        y, after = layer.step(x, other)
        want, want_state = ordinary(layer, x, other)
        close(y, want)
        same_state(after, want_state)


@ONE_OF_EACH
def test_copies_of_the_layer_record_for_themselves(variant: str) -> None:
    layer, x = make(variant), noise(1, WIDTH)
    state = layer.initial_state(1)
    want = layer.step(x, state)[0]
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.copy(layer)):
        assert torch.equal(twin.step(x, state)[0], want)
        for parameter in twin.parameters():
            parameter.data = parameter.data * 2
        close(twin.step(x, state)[0], ordinary(twin, x, state)[0])
    layer.load_state_dict(make(variant).state_dict())


@ONE_OF_EACH
def test_gradients_and_autocast_take_the_ordinary_way(variant: str) -> None:
    layer, x = make(variant), noise(1, WIDTH)
    state = layer.step(x, layer.initial_state(1))[1]
    longer = layer.step(x, state)[1]  # an attention state's buffer is written further while a graph holds it
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        starts = type(state)(*(s.clone().requires_grad_() if s.is_floating_point() else s for s in state))
        for start in (state, starts):
            y, after = layer.step(leaf, start)
            with torch.no_grad():
                layer.step(x, state)
                layer.step(x, longer)
            loss = y.square().sum() + sum(s.float().square().sum() for s in after if s.is_floating_point())
            layer.zero_grad()
            loss.backward()
            for name, parameter in layer.named_parameters():
                assert parameter.grad is not None, name
                assert parameter.grad.abs().max() > 0, name
        y, after = layer.step(x, starts)
        close(y.detach(), ordinary(layer, x, clone(state))[0])
    quiet = layer.step(x, starts)
    assert not any(s.requires_grad for s in (quiet[0], *quiet[1]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, after = layer.step(x, state)
        want, want_state = ordinary(layer, x, state)
    assert y.dtype == want.dtype
    assert [s.dtype for s in after] == [s.dtype for s in want_state]


@ONE_OF_EACH
def test_inference_mode_and_compilation(variant: str) -> None:
    layer, x = make(variant), noise(1, WIDTH)
    state = layer(noise(1, 3, WIDTH))[1]
    want, want_state = ordinary(layer, x, state)
    with torch.inference_mode():
        y, after = layer.step(x, state)
        layer.step(x, after)
    close(y, want)
    same_state(after, want_state)
    close(layer.step(x, after)[0], ordinary(layer, x, want_state)[0])
    compiled = torch.compile(lambda x, state: layer.step(x, state), backend="eager")
    y, after = compiled(x, state)
    close(y, want)
    same_state(after, want_state)


@ONE_OF_EACH
def test_threads_that_step_one_layer(variant: str) -> None:
    layer, x = make(variant), noise(40, 1, WIDTH)
    start = layer(noise(1, 3, WIDTH))[1]
    results: list[list[Tensor]] = [[], [], []]

    def run(results: list[Tensor]) -> None:
        with torch.no_grad():
            state = start
            for x_t in x:
                y, state = layer.step(x_t, state)
                results.append(y)

    workers = [threading.Thread(target=run, args=(result,)) for result in results]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    state = start
    for t, x_t in enumerate(x):
        want, state = ordinary(layer, x_t, state)
        for result in results:
            close(result[t], want)


# -- whole blocks


@pytest.mark.parametrize("pattern", ["rnn", "lstm gru", "attention", "s6 attention", "s4d"])
@pytest.mark.parametrize("form", ["residual", "stack"])
@DTYPES
def test_models_step_as_they_do_without_records(pattern: str, form: str, dtype: torch.dtype) -> None:
    if form == "stack" and pattern == "attention":
        pytest.skip("a stack is of recurrent layers")
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(vocab=31, width=WIDTH, layers=3, pattern=pattern, form=form)).to(dtype)
    state = want_state = model(torch.randint(31, (2, 4)))[1]
    for _ in range(5):
        token = torch.randint(31, (2,))
        logits, state = model.step(token, state)
        want, want_state = ordinary(model, token, want_state)
        close(logits, want)
        for one, other in zip(state, want_state, strict=True):
            same_state(
                *(type(s)(*(x.to(dtype) if x.is_floating_point() else x for x in s)) for s in (one, other))
            )
    assert recorded(model.backbone) == 1


def longer(module: torch.nn.Module, name: str) -> None:
    """Put a parameter one row longer in the place of the one called ``name``."""
    where, _, last = name.rpartition(".")
    old = module.get_parameter(name)
    new = torch.nn.Parameter(torch.zeros(len(old) + 1, *old.shape[1:]))
    setattr(module.get_submodule(where), last, new)


@pytest.mark.parametrize("kind", MIXERS)
def test_an_exchanged_weight_is_refused_before_the_core_reads_it(kind: str) -> None:
    for name, _ in mixer_class(kind)(width=WIDTH).named_parameters():
        layer = mixer_class(kind)(width=WIDTH)
        state = layer.initial_state(1)
        longer(layer, name)
        with torch.no_grad():
            if name == "out_proj.weight":  # nothing has to fit behind it: the output is longer
                assert layer.step(noise(1, WIDTH), state)[0].shape == (1, WIDTH + 1)
                continue
            with pytest.raises((ShapeError, RuntimeError)):
                layer.step(noise(1, WIDTH), state)
            with pytest.raises((ShapeError, RuntimeError)):
                layer(noise(1, 3, WIDTH))


@pytest.mark.parametrize("pattern", MIXERS)
def test_an_exchanged_weight_of_a_model_is_refused(pattern: str) -> None:
    config = ModelConfig(vocab=31, width=WIDTH, layers=1, pattern=pattern, mlp="gated")
    names = [name for name, _ in LanguageModel(config).named_parameters() if name != "embedding.weight"]
    for name in names:
        model = LanguageModel(config)
        state = model.initial_state(1)
        longer(model, name)
        with torch.no_grad():
            with pytest.raises((ShapeError, RuntimeError)):
                model.step(torch.tensor([3]), state)
            with pytest.raises((ShapeError, RuntimeError)):
                Decoder(model, state)(torch.tensor([3]))


def test_looking_up_shapes_draws_no_numbers() -> None:
    model = LanguageModel(ModelConfig(vocab=31, width=WIDTH, layers=2, pattern="s6 attention"))
    before = torch.get_rng_state()
    with torch.no_grad():
        model.step(torch.tensor([3]), model.initial_state(1))
    assert recorded(model.backbone) == 1
    assert torch.equal(torch.get_rng_state(), before)


def test_a_mixer_of_another_width_is_refused() -> None:
    model = LanguageModel(ModelConfig(vocab=31, width=WIDTH, layers=2, pattern="rnn"))
    wide = mixer_class("rnn")(width=2 * WIDTH)
    model.backbone.blocks[1].mixer = wide
    state = (model.backbone.blocks[0].mixer.initial_state(1), wide.initial_state(1))
    with pytest.raises(ShapeError, match="x: shape"):
        model.step(torch.tensor([3]), state)


def test_hooks_and_dropout_of_a_block_are_kept() -> None:
    model = LanguageModel(
        ModelConfig(vocab=31, width=WIDTH, layers=1, pattern="attention", dropout=0.5)
    ).eval()
    token, seen = torch.tensor([3]), []
    state = model.initial_state(1)
    want = model.step(token, state)[0]
    assert recorded(model.backbone) == 1
    handle = model.backbone.blocks[0].mlp_norm.register_forward_hook(lambda *_: seen.append(1))
    assert torch.allclose(model.step(token, state)[0], want, atol=1e-5)
    assert seen == [1]
    handle.remove()
    model.train()
    torch.manual_seed(1)
    assert not torch.allclose(model.step(token, state)[0], want, atol=1e-3)


# -- attention: buffers with room are shared by states that stay values

CACHES = pytest.mark.parametrize("variant", [v for v in VARIANTS if v.startswith("attention")])


def follow(layer: Any, x: Tensor, state: Any) -> list[Any]:
    """The states after each of x's steps."""
    states = [state]
    for x_t in x:
        states.append(layer.step(x_t, states[-1])[1])
    return states


@CACHES
@pytest.mark.parametrize("batch", [1, 2])
@DTYPES
def test_branches_do_not_see_each_other(variant: str, batch: int, dtype: torch.dtype) -> None:
    layer = make(variant, dtype)
    start = layer.step(
        noise(batch, WIDTH, dtype=dtype), layer(noise(batch, 3, WIDTH, dtype=dtype, seed=5))[1]
    )[1]
    trunk = follow(layer, noise(6, batch, WIDTH, dtype=dtype), start)
    kept = [clone(state) for state in trunk]
    ends = []
    for at in (6, 0, 3, 3, 6, 5):
        x = noise(4, batch, WIDTH, dtype=dtype, seed=at + 10)
        end, want = trunk[at], kept[at]
        for x_t in x:
            y, end = layer.step(x_t, end)
            want_y, want = ordinary(layer, x_t, want)
            close(y, want_y)
        same_state(end, want)
        ends.append((end, want))
    for state, before in [*zip(trunk, kept, strict=True), *ends]:
        same_state(state, before)


@CACHES
def test_the_cache_is_copied_seldom(variant: str) -> None:
    layer = make(variant)
    state, places = layer.initial_state(1), set()
    for _ in range(60):
        state = layer.step(noise(1, WIDTH), state)[1]
        places.add(state.k.untyped_storage().data_ptr())
    assert len(places) <= 2
    assert state.position.tolist() == [60]


@pytest.mark.parametrize("batch", [1, 3])
def test_saved_and_copied_states_go_on(batch: int) -> None:
    layer = make("attention")
    state = follow(layer, noise(4, batch, WIDTH), layer.initial_state(batch))[-1]
    file = io.BytesIO()
    torch.save(tuple(state), file)
    file.seek(0)
    copies = [
        type(state)(*torch.load(file, weights_only=True)),
        copy.deepcopy(state),
        pickle.loads(pickle.dumps(state)),
        clone(state),
        state._replace(k=state.k.detach(), v=state.v[:]),
        state,
        state,
    ]
    x = noise(5, batch, WIDTH, seed=3)
    wanted = state
    for x_t in x:
        wanted = ordinary(layer, x_t, wanted)[1]
    for one in copies:
        same_state(follow(layer, x, one)[-1], wanted)
        same_state(one, state)


@pytest.mark.parametrize("fields", [{}, {"window": 6}], ids=str)
def test_parts_of_a_state_are_states(fields: dict[str, Any]) -> None:
    """Rows of a batch, shorter prefixes, later columns, exchanged and doubled tensors."""
    torch.manual_seed(0)
    layer = mixer_class("attention")(width=WIDTH, **fields)
    state = follow(layer, noise(5, 3, WIDTH), layer.initial_state(3))[-1]
    kind, (k, v, position) = type(state), state
    parts = [
        kind(k[1:2], v[1:2], position[1:2]),
        kind(k[:2], v[:2], position[:2]),
        kind(k[2:], v[2:], position[2:]),
        kind(k[[2, 0, 1]], v[[2, 0, 1]], position),
        kind(k[:1].expand(3, -1, -1, -1), v, position),
        kind(k.flip(0), v, position),
        kind(v, k, position),
        kind(k, k, position),
        kind(k[:, :4], v[:, :4], position - 1),
        kind(k[:, 1:], v[:, 1:], position - 1),
        kind(k[:, ::2], v[:, ::2], position - 2),
        kind(k[..., :].transpose(1, 2).contiguous().transpose(1, 2), v, position),
        kind(k, v, torch.stack((position, position), 1)[:, 0]),
    ]
    kept = clone(state)
    for part in parts:
        x = noise(len(part.k), WIDTH, seed=4)
        frozen = clone(part)
        y, after = layer.step(x, part)
        want, want_state = ordinary(layer, x, frozen)
        close(y, want)
        same_state(after, want_state)
        same_state(state, kept)
        same_state(part, frozen)


def test_rows_at_positions_of_their_own() -> None:
    layer = make("attention")
    _, state = layer(noise(3, 5, WIDTH), None, torch.tensor([5, 2, 0]))
    for x in noise(4, 3, WIDTH, seed=2):
        kept = clone(state)
        y, after = layer.step(x, state)
        want, want_state = ordinary(layer, x, state)
        close(y, want)
        same_state(after, want_state)
        same_state(state, kept)
        state = after


def test_learned_positions_end_in_recorded_steps() -> None:
    layer = mixer_class("attention")(width=WIDTH, positions="learned", max_positions=3)
    states = follow(layer, noise(3, 1, WIDTH), layer.initial_state(1))
    with pytest.raises(ShapeError, match="position 4: learned positions end at max_positions = 3"):
        layer.step(noise(1, WIDTH), states[-1])
