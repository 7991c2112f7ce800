"""RNN, LSTM and GRU that read both ways, against torch.nn's bidirectional modules."""

from typing import Any

import pytest
import torch
from tests.budget import check_errors
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from quatrain.errors import ConfigError, StateError
from quatrain.kernels._batch import reversal, reverse
from quatrain.lab.leak import leaks
from quatrain.lab.look import inside
from quatrain.mixers import mixer_class
from quatrain.model import LanguageModel, ModelConfig
from quatrain.model.fit import fit_size
from quatrain.model.sequence import SequenceModel, build

WIDTH = 12
VARIANTS: dict[str, tuple[type[nn.RNNBase], dict[str, Any], dict[str, Any]]] = {
    "rnn": (nn.RNN, {}, {}),
    "rnn relu": (nn.RNN, {"nonlinearity": "relu"}, {"nonlinearity": "relu"}),
    "lstm": (nn.LSTM, {}, {}),
    "gru": (nn.GRU, {}, {}),
}
EVERY = pytest.mark.parametrize("variant", VARIANTS)
KINDS = pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
LENGTHS = torch.tensor([4, 7, 1, 6])


def make(kind: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    layer = mixer_class(kind)(width=WIDTH, causal=False, **settings)
    for bias in (p for p in layer.parameters() if p.ndim == 1):
        nn.init.normal_(bias)
    return layer


def copied(variant: str, dtype: torch.dtype) -> tuple[Any, nn.RNNBase]:
    """One of ours and one of torch's with the same weights."""
    cls, theirs_settings, settings = VARIANTS[variant]
    ours = make(variant.split(maxsplit=1)[0], **settings).to(dtype)
    hidden = WIDTH // 2
    theirs = cls(WIDTH, hidden, batch_first=True, bidirectional=True, dtype=dtype, **theirs_settings)
    with torch.no_grad():
        for weights, end in ((ours, ""), (ours.reverse, "_reverse")):
            getattr(theirs, f"weight_ih_l0{end}").copy_(weights.in_proj.weight)
            getattr(theirs, f"bias_ih_l0{end}").copy_(weights.in_proj.bias)
            getattr(theirs, f"weight_hh_l0{end}").copy_(weights.recurrent)
            inner = getattr(theirs, f"bias_hh_l0{end}").zero_()
            if weights.recurrent_bias is not None:
                inner[2 * hidden :] = weights.recurrent_bias
    return ours, theirs


def both(ours: Any, theirs: nn.RNNBase, lengths: Tensor | None, dtype: torch.dtype) -> list[list[Tensor]]:
    """Outputs, final states and gradients of x, initial states and all weights: ours, then torch's."""
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(4, 7, WIDTH, generator=rng).to(dtype)
    fields = ours.State._fields
    starts = [torch.randn(2, 4, WIDTH // 2, generator=rng).to(dtype) for _ in fields]
    results = []
    for mine in (True, False):
        leaf = x.clone().requires_grad_()
        first = [s.clone().requires_grad_() for s in starts]
        if mine:
            y, state = ours(leaf, ours.State(*(torch.cat(tuple(s), -1) for s in first)), lengths)
            last = [torch.stack(s.chunk(2, -1)) for s in state]
        else:
            given = leaf if lengths is None else pack_padded_sequence(leaf, lengths, True, False)
            y, state = theirs(given, tuple(first) if len(first) == 2 else first[0])
            if lengths is not None:
                y, _ = pad_packed_sequence(y, batch_first=True)
            last = list(state) if isinstance(state, tuple) else [state]
        total = sum(
            (r * torch.linspace(-1, 1, r.numel(), dtype=dtype).view(r.shape)).sum() for r in [y, *last]
        )
        leaves = [leaf, *first, *(weights_of(ours) if mine else of_torch(theirs))]
        grads = list(torch.autograd.grad(total, leaves))
        if not mine and isinstance(theirs, nn.GRU):
            for at in (-1, -5):  # torch has the second bias for all gates, we for the third
                grads[at] = grads[at][WIDTH:]
        results.append([y.detach(), *(s.detach() for s in last), *grads])
    return results


def weights_of(ours: Any) -> list[Tensor]:
    found = []
    for weights in (ours, ours.reverse):
        found += [weights.in_proj.weight, weights.recurrent, weights.in_proj.bias]
        found += [] if weights.recurrent_bias is None else [weights.recurrent_bias]
    return found


def of_torch(theirs: nn.RNNBase) -> list[Tensor]:
    names = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0"] + ["bias_hh_l0"] * isinstance(theirs, nn.GRU)
    return [getattr(theirs, name + end) for end in ("", "_reverse") for name in names]


@EVERY
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
def test_it_errs_no_more_than_torchs_own(variant: str, lengths: Tensor | None) -> None:
    """In float32, beside torch.nn's module in float64: as close as torch.nn's in float32 is."""
    _, exact = both(*copied(variant, torch.float64), lengths, torch.float64)
    got, plain = both(*copied(variant, torch.float32), lengths, torch.float32)
    assert len(got) == len(plain) == len(exact)
    for g, p, e in zip(got, plain, exact, strict=True):
        check_errors(g, p, e)


@KINDS
@pytest.mark.parametrize("lengths", [[4, 7, 1, 6], [0, 3], [2, 0, 0, 5, 0]], ids=str)
def test_padding_equals_packing_equals_separate(kind: str, lengths: list[int]) -> None:
    layer, sizes = make(kind).double(), torch.tensor(lengths)
    x = torch.randn(len(lengths), 7, WIDTH, dtype=torch.float64)
    valid = torch.arange(7) < sizes[:, None]
    x = x.masked_fill(~valid[..., None], torch.nan).requires_grad_()
    start = layer.State(*(torch.randn(len(lengths), WIDTH, dtype=torch.float64) for _ in layer.State._fields))
    bounds = torch.cat((sizes.new_zeros(1), sizes.cumsum(0)))
    y, last = layer(x, start, sizes)
    packed, last_packed = layer(x[valid][None], start, cu_seqlens=bounds)
    torch.testing.assert_close(packed[0], y[valid])
    torch.testing.assert_close(last_packed, last)
    assert not y[~valid].any()
    alone = []
    for row, n in enumerate(lengths):
        own = layer.State(*(s[row : row + 1] for s in start))
        if n:
            one, own = layer(x[row : row + 1, :n], own)
            alone.append(one[0])
        for a, b in zip(own, last, strict=True):
            torch.testing.assert_close(a[0], b[row])
    torch.testing.assert_close(torch.cat(alone), y[valid])
    weight = torch.randn_like(y[valid])
    leaves = [x, *layer.parameters()]
    known = torch.autograd.grad((torch.cat(alone) * weight).sum(), leaves)
    torch.testing.assert_close(torch.autograd.grad((y[valid] * weight).sum(), leaves), known)
    torch.testing.assert_close(torch.autograd.grad((packed[0] * weight).sum(), leaves), known)


def test_reversing_twice_changes_nothing_and_reads_nothing_outside() -> None:
    x = torch.arange(12.0).view(2, 6, 1)
    order = reversal(x, torch.tensor([4, 0]), None)
    assert reverse(x, order).flatten().tolist() == [3, 2, 1, 0, 4, 5, 6, 7, 8, 9, 10, 11]
    packed = x.view(1, 12, 1)
    order = reversal(packed, None, torch.tensor([0, 0, 5, 5, 12, 12], dtype=torch.int32))
    assert reverse(packed, order).flatten().tolist() == [4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 6, 5]
    assert torch.equal(reverse(reverse(packed, order), order), packed)
    assert torch.equal(reverse(x, reversal(x, None, None)), x.flip(1))
    small = torch.tensor([4, 2], dtype=torch.uint8)
    assert torch.equal(reversal(x, small, None), reversal(x, small.long(), None))
    for lengths in ([99, -3], [7, 6]):  # a GPU's contents are not checked
        reverse(x, reversal(x, torch.tensor(lengths), None))
    for bounds in ([0, 3], [5, 2, 90], [-4, 12]):
        reverse(packed, reversal(packed, None, torch.tensor(bounds)))


def test_the_gradient_of_reversing_can_be_differentiated() -> None:
    x, order = torch.randn(1, 5, 2, dtype=torch.float64, requires_grad=True), torch.tensor([2, 1, 0, 4, 3])
    assert torch.autograd.gradcheck(lambda x: reverse(x, order), x)
    assert torch.autograd.gradgradcheck(lambda x: reverse(x, order).sin(), x)


@KINDS
@pytest.mark.parametrize("form", ["whole", "lengths", "packed"])
@pytest.mark.filterwarnings("ignore")  # torch's own, about how it compiles
def test_it_compiles_whole_and_reads_nothing_back(kind: str, form: str) -> None:
    """On the meta device there is nothing to read: an attempt raises."""
    layer, x, more = make(kind), torch.randn(2, 7, WIDTH), {}
    if form == "lengths":
        more = {"lengths": torch.tensor([7, 3])}
    elif form == "packed":
        x, more = x.view(1, 14, WIDTH), {"cu_seqlens": torch.tensor([0, 5, 14])}
    lengths, bounds = (more[name].to("meta") if name in more else None for name in ("lengths", "cu_seqlens"))
    assert reverse(x.to("meta"), reversal(x.to("meta"), lengths, bounds)).shape == x.shape

    def whole(x: Tensor, lengths: Tensor | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        y = reverse(x, reversal(x, lengths, cu_seqlens))
        if form == "whole":  # a CPU's index tensors are checked by what they hold, which breaks the graph
            y = y + layer(x)[0]
        return y

    compiled = torch.compile(whole, backend="aot_eager", fullgraph=True)
    found = []
    for run in (whole, compiled):
        leaf = x.clone().requires_grad_()
        y = run(leaf, **more)
        leaves = [leaf, *layer.parameters()] if form == "whole" else [leaf]
        found.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    torch.testing.assert_close(found[1], found[0])


@KINDS
def test_its_parameters_and_work_are_counted(kind: str) -> None:
    layer = make(kind)
    half, gates = WIDTH // 2, layer.gates
    bias = 2 * half if kind == "gru" else 0
    assert sum(p.numel() for p in layer.parameters()) == 2 * gates * half * (WIDTH + half + 1) + bias
    matrices = sum(p.numel() for p in layer.parameters() if p.ndim == 2)
    assert layer.flops_per_token(1) == 2 * matrices
    assert layer.state_bytes(3, 5) == sum(s.nbytes for s in layer.initial_state(3))
    assert not torch.equal(layer.recurrent, layer.reverse.recurrent)


@KINDS
def test_what_has_no_steps_refuses_them(kind: str) -> None:
    layer, x = make(kind), torch.randn(2, WIDTH)
    state = layer.initial_state(2)
    for grad in (True, False):
        with torch.set_grad_enabled(grad), pytest.raises(StateError, match=f"{kind}: with causal = false"):
            layer.step(x, state)
    with pytest.raises(StateError, match="it has no steps"):
        layer.run(state)
    model = build(config_of(kind, "tag"))
    start = model.initial_state(2)
    with torch.no_grad(), pytest.raises(StateError, match="it has no steps"):
        model.step(torch.tensor([1, 2]), start)


@KINDS
def test_wrong_settings_are_named(kind: str) -> None:
    cls = mixer_class(kind)
    with pytest.raises(ConfigError, match="causal = False: needs an even width, not 7: half for each"):
        cls(width=7, causal=False)
    with pytest.raises(ConfigError, match=r"causal = 0: must be true or false"):
        cls.Config(causal=0)
    for p in (1.0, -0.1, float("nan"), "0.5", True):
        with pytest.raises(ConfigError, match=r"recurrent_dropout = .*: is a probability in \[0, 1\)"):
            cls.Config(recurrent_dropout=p)


def config_of(kind: str, task: str, **more: Any) -> ModelConfig:
    settings: dict[str, Any] = {"width": 8, "layers": 2, "pattern": kind, "mixer": {kind: {"causal": False}}}
    if task == "forecast":
        settings |= {"channels": 2, "outputs": 6 * 2 * 3, "horizon": 3}
    elif task != "lm":
        settings |= {"outputs": 5}
    return ModelConfig(task=task, vocab=11, **{**settings, **more})  # type: ignore[arg-type]


@KINDS
@pytest.mark.parametrize("task", ["lm", "forecast"])
def test_models_that_predict_refuse_it(kind: str, task: str) -> None:
    what = "a language model" if task == "lm" else "a forecast"
    message = rf"model\.mixer\.{kind}\.causal = False: must be true in {what}"
    with pytest.raises(ConfigError, match=message):
        (LanguageModel if task == "lm" else SequenceModel)(config_of(kind, task))


@KINDS
@pytest.mark.parametrize("task", ["classify", "tag", "transcribe"])
@pytest.mark.parametrize("form", ["residual", "stack"])
def test_labelled_models_take_it_and_padding_does_not_reach_them(kind: str, task: str, form: str) -> None:
    model = build(config_of(kind, task, form=form)).eval()
    assert leaks(model, 9) == ""
    x = torch.randint(11, (1, 9))
    before = model.hidden(x)[0]
    after = model.hidden(torch.cat((x[:, :-1], (x[:, -1:] + 1) % 11), 1))[0]
    assert (before - after)[:, 0].abs().max() > 0  # the first step sees the last


def test_a_model_of_both_that_look_ahead_is_asked_about_padding_only() -> None:
    mixer = {"lstm": {"causal": False}, "attention": {"causal": False, "heads": 2}}
    model = build(config_of("lstm attention", "classify", mixer=mixer)).eval()
    assert leaks(model, 8) == ""


@KINDS
def test_a_size_is_fitted_with_even_widths(kind: str) -> None:
    config = fit_size(kind, 200_000, base=config_of(kind, "tag"))
    assert config.width % 2 == 0
    assert config.mixer_config(kind).causal is False


@KINDS
def test_what_happens_inside_is_not_shown(kind: str) -> None:
    found = inside(make(kind), torch.randn(1, 5, WIDTH))
    assert (found.kind, found.gates, found.state) == (kind, {}, None)
