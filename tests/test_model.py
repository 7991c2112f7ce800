"""The model room: backbone, language model, initialisation, counting."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.errors import ConfigError, ShapeError, StateError
from quatrain.mixers import MIXERS
from quatrain.model.backbone import RMSNorm
from quatrain.model.config import ModelConfig
from quatrain.model.count import parameters
from quatrain.model.init import initialise
from quatrain.model.lm import LanguageModel

SMALL: dict[str, dict[str, object]] = {"attention": {"heads": 2}, "s6": {"state": 3}, "s4d": {"state": 3}}
SHAPES: dict[str, dict[str, Any]] = {
    **{kind: {"pattern": kind} for kind in MIXERS},
    "hybrid": {"pattern": "s6 s6 attention", "layers": 4},
    "hybrid of all": {"pattern": " ".join(MIXERS), "layers": len(MIXERS), "mlp": "gated"},
    "stack of lstm": {"pattern": "lstm", "form": "stack"},
    "stack of rnn and attention": {"pattern": "rnn attention", "form": "stack", "tied": False},
    "windowed attention": {"pattern": "attention", "mixer": {"attention": {"heads": 2, "window": 3}}},
    "untied, no MLP": {"pattern": "attention rnn", "tied": False, "mlp": "none"},
}
EVERY = pytest.mark.parametrize("shape", SHAPES)
VOCAB, WIDTH = 17, 16


def config(shape: str = "hybrid", **changes: Any) -> ModelConfig:
    fields: dict[str, Any] = {"vocab": VOCAB, "width": WIDTH, "layers": 2, **SHAPES[shape], **changes}
    kinds = fields["pattern"].split()
    return ModelConfig(**{"mixer": {kind: SMALL[kind] for kind in kinds if kind in SMALL}, **fields})


def make(shape: str = "hybrid", dtype: torch.dtype = torch.float64, **changes: Any) -> LanguageModel:
    model = LanguageModel(config(shape, **changes))
    initialise(model, 1)
    with torch.no_grad():  # norms that are not 1, so that a forgotten one shows
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    return model.to(dtype).eval()


def tokens(*shape: int, vocab: int = VOCAB, seed: int = 2) -> Tensor:
    return torch.randint(0, vocab, shape, generator=torch.Generator().manual_seed(seed))


def close(got: Tensor, wanted: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(got, wanted, rtol=0, atol=tolerance)


def close_states(got: Any, wanted: Any) -> None:
    assert [type(layer) for layer in got] == [type(layer) for layer in wanted]
    for one, other in zip(got, wanted, strict=True):
        for a, b in zip(one, other, strict=True):
            close(a, b)


# -- one function, whichever way it is run


@EVERY
def test_parallel_is_chunked_is_stepwise_at_every_split(shape: str) -> None:
    model, x = make(shape), tokens(2, 7)
    whole, final = model(x)
    state = model.initial_state(2)
    for t in range(7):
        head, state = model.step(x[:, t], state)
        close(head, whole[:, t])
        if t < 6:
            tail, after = model(x[:, t + 1 :], state)
            close(tail, whole[:, t + 1 :])
            close_states(after, final)
    close_states(state, final)
    left, middle = model(x[:, :3])
    right, after = model(x[:, 3:], middle)
    close(torch.cat((left, right), 1), whole)
    close_states(after, final)


@EVERY
def test_nothing_before_a_token_depends_on_it(shape: str) -> None:
    model, x = make(shape), tokens(1, 6)
    before = model(x)[0]
    for t in range(6):
        other = x.clone()
        other[0, t] = (x[0, t] + 1) % VOCAB
        after = model(other)[0]
        close(after[:, :t], before[:, :t], 1e-12)  # equal, but for the rounding of s4d's Fourier transform
        assert (after[:, t] - before[:, t]).abs().max() > 1e-6


@EVERY
def test_the_gradient_of_a_loss_reaches_no_later_embedding(shape: str) -> None:
    model = make(shape)
    x = torch.randn(1, 6, WIDTH, dtype=torch.float64, requires_grad=True)
    model.backbone(x)[0][0, 3].sum().backward()
    assert x.grad is not None
    assert x.grad[0, 3].abs().sum() > 0
    assert x.grad[0, 4:].abs().max() < 1e-12  # 0, but for the rounding of s4d's Fourier transform


@EVERY
def test_padded_is_packed_is_separate(shape: str) -> None:
    model = make(shape)
    lengths = torch.tensor([5, 1, 0, 3])
    rows = [tokens(1, n, seed=n) for n in lengths.tolist() if n]
    padded = torch.zeros(4, 5, dtype=torch.int64)
    for row, one in zip((0, 1, 3), rows, strict=True):
        padded[row, : one.shape[1]] = one
    start = model(tokens(4, 2, seed=9))[1]  # a state that something has gone into
    for state in (None, start):
        got, after = model(padded, state, lengths=lengths)
        cu_seqlens = F.pad(lengths.cumsum(0), (1, 0))
        packed, packed_after = model(torch.cat(rows, 1), state, cu_seqlens=cu_seqlens)
        assert len(packed_after) == len(model.config.kinds)
        for row, one in zip((0, 1, 3), rows, strict=True):
            mine = None if state is None else pick(state, row)
            wanted, alone = model(one, mine)
            close(got[row : row + 1, : one.shape[1]], wanted)
            assert got[row, one.shape[1] :].abs().sum() == 0
            close(packed[:, cu_seqlens[row] : cu_seqlens[row + 1]], wanted)
            follow = tokens(1)
            close(model.step(follow, pick(after, row))[0], model.step(follow, alone)[0])
            close(model.step(follow, pick(packed_after, row))[0], model.step(follow, alone)[0])


def pick(state: Any, row: int) -> Any:
    return tuple(type(layer)(*(tensor[row : row + 1] for tensor in layer)) for layer in state)


@EVERY
def test_rows_of_a_batch_do_not_know_each_other(shape: str) -> None:
    model, x = make(shape), tokens(3, 5)
    whole = model(x)[0]
    for row in range(3):
        close(model(x[row : row + 1])[0][0], whole[row])


@EVERY
def test_states_have_the_bytes_that_are_announced(shape: str) -> None:
    model = make(shape)
    for time in (1, 2, 6):
        state = model(tokens(3, time))[1]
        held = sum(tensor.numel() * tensor.element_size() for layer in state for tensor in layer)
        assert held == model.state_bytes(3, time)


def test_without_keep_state_there_is_none() -> None:
    model = make()
    assert model(tokens(2, 3), keep_state=False)[1] is None
    close(model(tokens(2, 3), keep_state=False)[0], model(tokens(2, 3))[0])


# -- what a block is


def test_residual_blocks_are_pre_norm() -> None:
    model, x = make("attention", layers=1), tokens(2, 5)
    (block,) = model.backbone.blocks
    assert block.mlp is not None
    assert model.backbone.norm is not None

    def norm(layer: nn.Module | None, x: Tensor) -> Tensor:
        assert isinstance(layer, RMSNorm)
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight

    h = model.embedding.weight[x]
    h = h + block.mixer(norm(block.norm, h))[0]
    m = norm(block.mlp_norm, h)
    h = h + (F.silu(m @ block.mlp.gate.weight.T) * (m @ block.mlp.up.weight.T)) @ block.mlp.down.weight.T
    close(model(x)[0], norm(model.backbone.norm, h) @ model.embedding.weight.T)


def test_a_stack_of_lstms_is_that_of_torch() -> None:
    model, x = make("stack of lstm", layers=3), tokens(2, 6)
    theirs = nn.LSTM(WIDTH, WIDTH, 3, batch_first=True, dtype=torch.float64)
    for index, block in enumerate(model.backbone.blocks):
        mixer: Any = block.mixer
        for name, value in {
            "weight_ih": mixer.in_proj.weight,
            "bias_ih": mixer.in_proj.bias,
            "weight_hh": mixer.recurrent,
            "bias_hh": torch.zeros_like(mixer.in_proj.bias),
        }.items():
            getattr(theirs, f"{name}_l{index}").data.copy_(value)
    close(model(x)[0], theirs(model.embedding(x))[0] @ model.embedding.weight.T)


def test_auto_puts_an_mlp_after_attention_only() -> None:
    blocks = make("hybrid of all", mlp="auto").backbone.blocks
    assert [block.kind for block in blocks if block.mlp is not None] == ["attention"]
    assert all(block.mlp is not None for block in make("hybrid of all", mlp="gated").backbone.blocks)
    assert all(block.mlp is None for block in make("hybrid of all", mlp="none").backbone.blocks)


def test_a_pattern_is_repeated() -> None:
    assert ModelConfig(pattern="s6 s6 attention", layers=5).kinds == ("s6", "s6", "attention", "s6", "s6")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_norm_sums_in_float32_or_wider(dtype: torch.dtype) -> None:
    x = torch.full((1, 300), 3.0, dtype=dtype)
    got = RMSNorm(300, 1e-5).to(dtype)(x)
    assert got.dtype == dtype
    assert abs(got.mean().item() - 1) < 1e-5


# -- dropout and recomputation


@pytest.mark.parametrize("shape", ["hybrid", "stack of lstm"])
def test_dropout_acts_in_training_only(shape: str) -> None:
    model, x = make(shape, dropout=0.5), tokens(2, 5)
    plain = make(shape)(x)[0]
    assert torch.equal(model(x)[0], plain)
    model.train()
    torch.manual_seed(0)
    first, again = model(x)[0], model(x)[0]
    torch.manual_seed(0)
    assert torch.equal(model(x)[0], first)
    assert not torch.equal(first, again)


def test_a_stack_drops_between_layers_only() -> None:
    model, x = make("stack of lstm", layers=1, dropout=0.9).train(), tokens(1, 5)
    assert torch.equal(model(x)[0], model.eval()(x)[0])


@pytest.mark.parametrize("shape", ["hybrid of all", "stack of lstm"])
@pytest.mark.parametrize("carried", [False, True])
def test_recomputing_layers_changes_no_number(shape: str, carried: bool) -> None:
    x, y = tokens(2, 6), tokens(2, 6, seed=3)
    results = []
    for recompute in (False, True):
        model = make(shape, dropout=0.3, checkpoint_layers=recompute).train()
        torch.manual_seed(4)
        state = model(tokens(2, 3))[1] if carried else None  # its graph is part of the loss
        loss, after = model.loss(x, y, state)
        assert after is not None
        (loss + sum(tensor.float().sum() for layer in after for tensor in layer)).backward()
        results.append([loss, *(parameter.grad for parameter in model.parameters())])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_recomputing_keeps_fewer_numbers() -> None:
    def kept(recompute: bool) -> int:
        model = make("attention", layers=4, checkpoint_layers=recompute).train()
        sizes = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.hidden(tokens(2, 32), keep_state=False)
        return sum(sizes)

    assert kept(True) < 0.3 * kept(False)


# -- head and loss


def test_a_tied_head_is_stored_once() -> None:
    tied, untied = make("lstm"), make("lstm", tied=False)
    assert tied.head_weight is tied.embedding.weight
    assert set(untied.state_dict()) - set(tied.state_dict()) == {"head.weight"}
    storages = [tensor.data_ptr() for tensor in tied.state_dict().values()]
    assert len(set(storages)) == len(storages)


def test_the_loss_is_the_cross_entropy_of_the_logits() -> None:
    model, x, y = make("hybrid"), tokens(3, 5), tokens(3, 5, seed=7)
    y[0, 2] = -100
    wanted = F.cross_entropy(model(x)[0].flatten(0, 1), y.flatten())
    for chunk in (1, 4, 15, 100):
        got, state = model.loss(x, y, chunk=chunk)
        close(got, wanted)
        assert state is not None
    lengths = torch.tensor([5, 2, 0])
    masked = y.masked_fill(torch.arange(5) >= lengths[:, None], -100)
    close(model.loss(x, y, lengths=lengths)[0], F.cross_entropy(model(x)[0].flatten(0, 1), masked.flatten()))


# -- dtypes


@pytest.mark.parametrize("shape", ["rnn", "lstm", "gru", "attention", "s6", "hybrid"])
def test_autocast_trains_float32_weights(shape: str) -> None:
    model, x, y = make(shape, torch.float32).train(), tokens(2, 6), tokens(2, 6, seed=3)
    wanted, _ = model.loss(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        loss, state = model.loss(x, y)
    loss.backward()
    assert loss.dtype == torch.float32
    assert abs(loss.item() - wanted.item()) < 0.05
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters()
    )
    with torch.autocast("cpu", torch.bfloat16):
        model.loss(x, y, state)


def test_a_bfloat16_model_runs_both_ways() -> None:
    model, x = make("hybrid of all", torch.bfloat16), tokens(2, 4)
    whole, _ = model(x)
    state = model.initial_state(2)
    for t in range(4):
        one, state = model.step(x[:, t], state)
    assert one.dtype == whole.dtype == torch.bfloat16
    torch.testing.assert_close(one.float(), whole[:, -1].float(), rtol=0, atol=0.05)


# -- initialisation


@EVERY
def test_weights_are_a_function_of_the_seed(shape: str) -> None:
    one, other = LanguageModel(config(shape)), LanguageModel(config(shape))
    before = torch.get_rng_state()
    initialise(one, 5)
    assert torch.equal(torch.get_rng_state(), before)
    initialise(other, 5)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    initialise(other, 6)
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_layers_of_a_model_differ_and_do_not_depend_on_each_other() -> None:
    model, longer = LanguageModel(config("lstm")), LanguageModel(config("lstm", layers=3))
    initialise(model, 5)
    initialise(longer, 5)
    first, second = (block.mixer.recurrent for block in model.backbone.blocks)
    assert isinstance(first, Tensor)
    assert isinstance(second, Tensor)
    assert not torch.equal(first, second)
    assert torch.equal(second, longer.backbone.blocks[1].mixer.recurrent)


@pytest.mark.parametrize("pattern", ["attention", "s6"])
def test_outputs_are_scaled_by_depth(pattern: str) -> None:
    def spread(layers: int) -> list[float]:
        model = LanguageModel(ModelConfig(width=64, layers=layers, pattern=pattern))
        initialise(model, 0)
        (*_, block) = model.backbone.blocks
        names = ("mixer.out_proj.weight", "mlp.down.weight")
        return [p.std().item() for name, p in block.named_parameters() if name in names]

    for shallow, deep in zip(spread(1), spread(4), strict=True):
        assert shallow / deep == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("kind", MIXERS)
@pytest.mark.parametrize("form", ["residual", "stack"])
def test_a_new_model_guesses_uniformly(kind: str, form: str) -> None:
    model = make(kind, torch.float32, vocab=256, width=64, layers=4, form=form, mixer={})
    initialise(model, 0)
    loss, _ = model.loss(tokens(4, 32, vocab=256), tokens(4, 32, vocab=256, seed=3))
    assert abs(loss.item() - math.log(256)) < 0.2


# -- counting


@EVERY
def test_counts_are_those_of_the_model(shape: str) -> None:
    model = make(shape)
    counts = parameters(model)
    assert counts.total == sum(p.numel() for p in model.parameters())
    assert counts.embedding == VOCAB * WIDTH * (1 if model.config.tied else 2)
    assert parameters(model.config) == counts


def test_flops_are_the_matrix_products_of_a_layer() -> None:
    model = make("lstm", layers=1)
    assert model.flops_per_token(100) == 2 * 8 * WIDTH**2 + 2 * WIDTH * VOCAB
    model = make("attention", layers=1)
    inner = model.config.inner
    products = 2 * 4 * WIDTH**2 + 6 * WIDTH * inner + 2 * WIDTH * VOCAB
    assert model.flops_per_token(100) == products + 4 * WIDTH * 100


# -- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab": 0}, r"model\.vocab = 0: must be at least 1"),
        ({"width": 0}, r"model\.width = 0: must be at least 1"),
        ({"layers": 0}, r"model\.layers = 0: must be at least 1"),
        ({"pattern": ""}, r"model\.pattern = '': must name at least one of rnn"),
        ({"pattern": "s6 mega"}, r"model\.pattern = 's6 mega': 'mega' is none of rnn"),
        ({"pattern": "s6 s6 lstm", "layers": 2}, r"model\.layers = 2: must be at least 3, the length of"),
        ({"mlp": "wide"}, r"model\.mlp = 'wide': must be one of auto, gated, none"),
        ({"mlp": "gated", "form": "stack"}, r"model\.mlp = 'gated': contradicts model\.form = 'stack'"),
        ({"mlp_ratio": 0.0}, r"model\.mlp_ratio = 0\.0: must be positive"),
        ({"mlp_ratio": math.inf}, r"model\.mlp_ratio = inf: must be positive and finite"),
        ({"form": "ring"}, r"model\.form = 'ring': must be one of residual, stack"),
        ({"dropout": 1.0}, r"model\.dropout = 1\.0: is a probability in \[0, 1\)"),
        ({"norm_eps": 0.0}, r"model\.norm_eps = 0\.0: must be positive"),
        ({"mixer": {"lstm": {}}}, r"model\.mixer\.lstm = \{\}: is not part of model\.pattern = 's6'"),
        ({"mixer": {"s6": {"width": 8}}}, r"model\.mixer\.s6\.width = 8: is set by model\.width"),
        ({"mixer": {"s6": {"sate": 8}}}, r"model\.mixer\.s6\.sate = 8: unknown key .*state"),
        ({"mixer": {"s6": {"state": 0}}}, r"model\.mixer\.s6\.state = 0"),
        (
            {"pattern": "attention", "width": 30, "mixer": {"attention": {"heads": 4}}},
            r"model\.mixer\.attention\.heads = 4: must divide width = 30",
        ),
    ],
)
def test_a_wrong_config_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**changes)


def test_a_language_model_is_causal() -> None:
    mixer = {"attention": {"heads": 2, "causal": False}}
    with pytest.raises(ConfigError, match=r"model\.mixer\.attention\.causal = False: must be true"):
        make("attention", mixer=mixer)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (tokens(2, 0), r"tokens: shape \(2, 0\): must be \(B, T\) with B and T at least 1"),
        (tokens(0, 2), r"tokens: shape \(0, 2\)"),
        (tokens(5), r"tokens: shape \(5,\)"),
        (tokens(2, 2).float(), r"tokens: dtype torch\.float32: must be torch\.int64"),
        (torch.tensor([[0, VOCAB]]), rf"tokens: {VOCAB}: must lie in \[0, {VOCAB}\)"),
        (torch.tensor([[-1, 0]]), r"tokens: -1: must lie in"),
    ],
)
def test_wrong_tokens_are_named(x: Tensor, message: str) -> None:
    model = make("lstm")
    with pytest.raises(ShapeError, match=message):
        model(x)
    if x.ndim == 2 and 0 not in x.shape:
        with pytest.raises(ShapeError, match=message):
            model.step(x.flatten(), model.initial_state(x.numel()))


def test_a_wrong_token_of_a_step_is_named() -> None:
    model = make("lstm")
    for x in (tokens(2, 1), tokens(0)):
        with pytest.raises(ShapeError, match=r"token: shape .*: must be \(B,\) with B at least 1"):
            model.step(x, model.initial_state(2))


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (tokens(2, 4), r"targets: shape \(2, 4\): must be \(2, 3\)"),
        (tokens(2, 3).int(), r"targets: dtype torch\.int32: must be torch\.int64"),
        (torch.full((2, 3), VOCAB), rf"targets: {VOCAB}: must lie in \[0, {VOCAB}\) or be -100"),
        (torch.full((2, 3), -1), r"targets: -1: must lie in"),
    ],
)
def test_wrong_targets_are_named(y: Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        make("lstm").loss(tokens(2, 3), y)


@EVERY
def test_a_state_of_another_batch_or_model_is_refused(shape: str) -> None:
    model, other = make(shape), make("lstm", layers=7)
    state = model.initial_state(3)
    with pytest.raises(StateError, match=r"state: layer 0 holds a batch of 3; the input has 2 sequences"):
        model(tokens(2, 4), state)
    with pytest.raises(StateError, match=r"batch of 2"):
        model.step(tokens(2), state)
    with pytest.raises(StateError, match=r"layer 0 holds a batch of 3; the input has 1 seq"):
        model(tokens(1, 4), state, cu_seqlens=torch.tensor([0, 4]))
    for run in (lambda s: model(tokens(3, 4), s), lambda s: model.step(tokens(3), s)):
        with pytest.raises(StateError, match=rf"7 layers: must be .* {len(model.config.kinds)} layers"):
            run(other.initial_state(3))
    with pytest.raises(StateError, match=r"state: a list"):
        model(tokens(3, 4), list(state))
    with pytest.raises(ShapeError, match=r"batch = 0: must be at least 1"):
        model.initial_state(0)


def test_a_state_of_another_kind_is_refused() -> None:
    with pytest.raises(StateError, match=r"LSTMState"):
        make("rnn")(tokens(2, 3), make("lstm").initial_state(2))


def test_the_backbone_refuses_other_widths() -> None:
    with pytest.raises(ShapeError, match=rf"x: shape \(2, 3, 4\): must be \(B, T, {WIDTH}\)"):
        make("lstm").backbone(torch.zeros(2, 3, 4, dtype=torch.float64))


def test_a_config_loads_no_torch() -> None:
    import subprocess
    import sys

    code = "import quatrain.model.config as c, sys; c.ModelConfig(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
