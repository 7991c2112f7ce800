"""RNN, LSTM and GRU in training, as layers and stacks: the same tests on a CPU and with a GPU's kernel."""

import subprocess
import sys

import pytest
import torch
from tests.budget import check_errors
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from quatrain.errors import NoKernelError
from quatrain.interop.torch_rnn import from_torch
from quatrain.kernels import OPS
from quatrain.mixers import mixer_class
from quatrain.mixers.gru import GRU
from quatrain.mixers.lstm import LSTM
from quatrain.model.backbone import Backbone
from quatrain.model.config import ModelConfig

pytestmark = pytest.mark.filterwarnings("ignore")
KINDS = ("rnn", "lstm", "gru")
PLACES = [("cpu", "auto"), pytest.param(("cuda", "cuda"), marks=pytest.mark.gpu)]
on = pytest.mark.parametrize("place", PLACES, ids=lambda place: place[0])
every = pytest.mark.parametrize("kind", KINDS)
MODULES = {
    "rnn": (nn.RNN, {"num_layers": 2}),
    "rnn relu": (nn.RNN, {"nonlinearity": "relu"}),
    "rnn plain": (nn.RNN, {"bias": False}),
    "lstm": (nn.LSTM, {"num_layers": 3}),
    "lstm plain": (nn.LSTM, {"bias": False, "num_layers": 2}),
    "gru": (nn.GRU, {"num_layers": 2}),
    "gru plain": (nn.GRU, {"bias": False}),
    "rnn both ways": (nn.RNN, {"bidirectional": True, "num_layers": 2}),
    "lstm both ways": (nn.LSTM, {"bidirectional": True}),
    "gru both ways": (nn.GRU, {"bidirectional": True, "num_layers": 2}),
}


def layer(kind, place, width=24, **settings):
    device, impl = place
    torch.manual_seed(0)
    return mixer_class(kind)(width=width, impl=impl, **settings).to(device)


def random(place, *shape):
    rng = torch.Generator().manual_seed(1)
    return torch.randn(*shape, generator=rng).to(place[0])


def train(run, x, parameters):
    """Outputs and gradients of a layer that gives (y, state)."""
    x = x.detach().requires_grad_()
    y, state = run(x)
    results = [y, *state]
    total = sum(
        (r.float() * torch.linspace(-1, 1, r.numel(), device=r.device).view_as(r)).sum() for r in results
    )
    return [r.detach() for r in results] + list(torch.autograd.grad(total, [x, *parameters]))


@on
@pytest.mark.parametrize("form", ["whole", "lengths", "one step"])
@pytest.mark.parametrize("name", MODULES)
def test_it_errs_no_more_than_torchs_own(place, name, form):
    """In float32, beside torch.nn's module in float64: as close as torch.nn's in float32 is."""
    kind, settings = MODULES[name]
    torch.manual_seed(0)
    module = kind(20, 33, batch_first=True, **settings)
    batch, time = 5, 1 if form == "one step" else 23
    x = random(("cpu", ""), batch, time, 20)
    lengths = torch.tensor([23, 1, 7, 22, 16]) if form == "lengths" else None

    def theirs(module, x):
        given = x if lengths is None else pack_padded_sequence(x, lengths, True, enforce_sorted=False)
        y, state = module(given)
        if lengths is not None:
            y = nn.utils.rnn.pad_packed_sequence(y, batch_first=True)[0]
        return y, state if isinstance(state, tuple) else (state,)

    plain = train(lambda x: theirs(module, x), x, module.parameters())
    exact_module = kind(20, 33, batch_first=True, **settings).double()
    exact_module.load_state_dict(module.state_dict())
    exact = train(lambda x: theirs(exact_module, x), x.double(), exact_module.parameters())
    stack = from_torch(module, impl=place[1]).to(place[0])

    def ours(x):
        y, states = stack(x, lengths=None if lengths is None else lengths.to(place[0]))
        return y, [torch.stack(parts) for parts in zip(*states, strict=True)]

    got = train(ours, x.to(place[0]), stack.parameters())
    assert len(got) == len(plain)
    for g, p, e in zip(got, plain, exact, strict=True):
        check_errors(g.cpu(), p, e)


@on
@every
def test_padded_packed_and_separate_agree(place, kind):
    mixer, lengths = layer(kind, place), [9, 0, 1, 12, 5]
    x = random(place, 5, 12, 24)
    index = torch.tensor(lengths, device=place[0])
    bounds = torch.cat((index.new_zeros(1), index.cumsum(0)))
    with torch.no_grad():
        padded, last = mixer(x, lengths=index)
        packed, last_packed = mixer(
            torch.cat([row[:n] for row, n in zip(x, lengths, strict=True)])[None], cu_seqlens=bounds
        )
        for row, n in enumerate(lengths):
            assert not padded[row, n:].any()
            torch.testing.assert_close(packed[0, bounds[row] : bounds[row + 1]], padded[row, :n])
            if n:
                alone, state = mixer(x[row : row + 1, :n])
                torch.testing.assert_close(alone[0], padded[row, :n])
                for a, b, c in zip(state, last, last_packed, strict=True):
                    torch.testing.assert_close(a[0], b[row])
                    torch.testing.assert_close(a[0], c[row])


@on
@every
def test_training_with_lengths_is_training_without_padding(place, kind):
    """What padding holds, NaN included, is in no gradient."""
    mixer, lengths = layer(kind, place), torch.tensor([7, 3], device=place[0])
    x = random(place, 2, 7, 24)
    x[1, 3:] = torch.nan
    y, _ = mixer(x, lengths=lengths)
    got = torch.autograd.grad(y.square().sum(), list(mixer.parameters()))
    alone = [mixer(x[i : i + 1, :n])[0].square().sum() for i, n in enumerate((7, 3))]
    want = torch.autograd.grad(alone[0] + alone[1], list(mixer.parameters()))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@on
@every
def test_autocast_keeps_parameters_and_gradients_in_float32(place, kind):
    mixer, x = layer(kind, place, width=64), random(place, 4, 30, 64)
    want = train(mixer, x, mixer.parameters())
    with torch.autocast(place[0], torch.bfloat16):
        got = train(mixer, x, mixer.parameters())
    assert got[0].dtype == torch.bfloat16
    assert all(state.dtype == torch.float32 for state in mixer(x)[1])
    for a, b in zip(got[-len(list(mixer.parameters())) :], mixer.parameters(), strict=True):
        assert a.dtype == b.dtype == torch.float32
    for a, b in zip(got, want, strict=True):
        assert (a.float() - b).norm() < 0.03 * b.norm()


@on
@every
@pytest.mark.parametrize("form", ["residual", "stack"])
def test_stacks_with_dropout_and_recomputation(place, kind, form):
    """Masks come from torch's generator: equal seeds, equal numbers, recomputed layers included."""
    settings = {"pattern": kind, "width": 24, "layers": 3, "form": form, "mixer": {kind: {"impl": place[1]}}}

    def run(seed=3, **more):
        torch.manual_seed(0)
        net = Backbone(ModelConfig(**settings, **more)).to(place[0])
        torch.manual_seed(seed)
        return train(lambda x: (net(x, keep_state=False)[0], ()), random(place, 2, 9, 24), net.parameters())

    once = run(dropout=0.4)
    for a, b in zip(once, run(dropout=0.4), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(once, run(dropout=0.4, checkpoint_layers=True), strict=True):
        torch.testing.assert_close(a, b)
    assert not torch.equal(once[0], run(seed=4, dropout=0.4)[0])
    assert not torch.equal(once[0], run()[0])


@on
def test_a_second_derivative_says_that_there_is_none(place):
    mixer, x = layer("lstm", place), random(place, 1, 3, 24).requires_grad_()
    y, _ = mixer(x)
    with pytest.raises(RuntimeError, match="create_graph = True"):
        torch.autograd.grad(y.square().sum(), x, create_graph=True)


def test_a_width_that_no_kernel_takes_is_told_with_every_reason():
    with pytest.raises(
        NoKernelError, match=r"lstm_scan: impl = 'cuda'.*cuda: runs on CUDA devices, not on cpu"
    ):
        LSTM(width=8, impl="cuda")(torch.zeros(1, 2, 8))


# -- on a GPU alone


@pytest.mark.gpu
def test_a_gru_that_resets_before_the_product_is_refused_and_runs_by_itself():
    x = random(("cuda", ""), 2, 5, 24)
    refused = GRU(width=24, reset="before", impl="cuda").cuda()
    with pytest.raises(NoKernelError, match="cuda: reset = 'before'"):
        refused(x)
    mixer = GRU(width=24, reset="before").cuda()
    with torch.no_grad():
        y, _ = mixer(x)
        out, _ = mixer.step(x[:, 0], mixer.initial_state(2))
    torch.testing.assert_close(out, y[:, 0])


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["whole", "lengths", "cu_seqlens"])
@pytest.mark.parametrize("causal", [True, False])
@every
def test_compiled_whole_it_gives_the_same(kind, causal, form):
    place = ("cuda", "cuda")
    mixer = layer(kind, place, width=64, causal=causal).bfloat16()
    x = random(place, 1 if form == "cu_seqlens" else 3, 20, 64).bfloat16()
    index = {"lengths": [20, 0, 7], "cu_seqlens": [0, 5, 5, 20]}.get(form)
    more = {} if index is None else {form: torch.tensor(index, device="cuda")}
    want = train(lambda x: mixer(x, **more), x, mixer.parameters())
    compiled = torch.compile(mixer, fullgraph=True)
    got = train(lambda x: compiled(x, **more), x, mixer.parameters())
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02 * float(b.abs().max()))


@pytest.mark.gpu
@pytest.mark.parametrize("width", [64, 512, 1024])
@every
def test_training_in_a_captured_graph_follows_its_inputs(kind, width):
    place = ("cuda", "cuda")
    mixer, x = layer(kind, place, width=width).bfloat16(), random(place, 8, 30, width).bfloat16()
    x.requires_grad_()

    def run():
        y, _ = mixer(x)
        return y.detach(), *torch.autograd.grad(y.float().square().sum(), [x, *mixer.parameters()])

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    for a, b in zip(found, run(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.gpu
@every
def test_gradients_through_65536_steps(kind):
    """In two halves, the state's cotangent handed on: the same gradients of the input."""
    place = ("cuda", "cuda")
    mixer, x = layer(kind, place, width=32), random(place, 2, 1 << 16, 32)
    half, y_grad = 1 << 15, random(place, 2, 1 << 16, 32)
    whole = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(mixer(whole)[0], whole, y_grad)
    first, second = (part.clone().requires_grad_() for part in x.split(half, 1))
    y1, state = mixer(first)
    y2, _ = mixer(second, state)
    got = torch.autograd.grad([y1, y2], [first, second], list(y_grad.split(half, 1)))
    assert want.isfinite().all()
    torch.testing.assert_close(torch.cat(got, 1), want)


@pytest.mark.gpu
@every
def test_saturated_gates(kind):
    """Pre-activations of 50: gradients are those of the float64 definition, not 0 / 0."""
    op = OPS[f"{kind}_scan"]
    mixer = layer(kind, ("cuda", "cuda"), width=16)
    x = 50 * random(("cuda", ""), 2, 11, 16)
    got = train(mixer, x, mixer.parameters())
    exact = mixer_class(kind)(width=16, impl="reference").double().cuda()
    exact.load_state_dict(mixer.state_dict())
    want = train(exact, x.double(), exact.parameters())
    assert op.choose(op.example(op.cases[0], torch.Generator()), "reference").name == "reference"
    for a, b in zip(got, want, strict=True):
        assert a.isfinite().all()
        assert (a.double() - b).norm() <= 1e-4 * b.norm() + 1e-12


SHARED = """
import sys, torch
from quatrain.kernels import lstm_scan
from quatrain.kernels._recurrent_cuda import _launch, _plan, check

_launch.plan = lambda problem: _plan.fit(problem, 16, 1, True, 8, 2)  # a barrier of 64 blocks, twice
torch.manual_seed(0)
x = torch.randn(16, 300, 4096, device="cuda", dtype=torch.bfloat16)
weight = torch.randn(4096, 1024, device="cuda", dtype=torch.bfloat16) / 32
try:
    want = lstm_scan(x, weight, impl="cuda")[0]
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(100):
        y = lstm_scan(x, weight, impl="cuda")[0]
        torch.cuda.synchronize()
        check(x.device)
        assert torch.equal(y, want)
    print("right")
except RuntimeError as error:
    assert "waited too long" in str(error), error
    print("told")
"""


@pytest.mark.gpu
def test_two_processes_that_share_a_gpu_both_end():
    """Each is right, or says that its blocks could not run at once; neither hangs."""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", SHARED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    try:
        first = [child.stdout.readline() for child in children]
        ends = [child.communicate("go\n", timeout=120)[0] for child in children]
    finally:
        for child in children:
            child.kill()
    for begun, end, child in zip(first, ends, children, strict=True):
        assert child.returncode == 0
        assert (begun + end).strip().splitlines()[-1] in ("right", "told")


@on
@every
def test_a_first_row_without_steps_puts_nothing_into_a_gradient(place, kind):
    """No sum may read memory that nobody has written: torch fills it with NaN here."""
    mixer, x = layer(kind, place), random(place, 2, 4, 24)
    torch.use_deterministic_algorithms(True)
    try:
        y, _ = mixer(x, lengths=torch.tensor([0, 3], device=place[0]))
        got = torch.autograd.grad(y.square().sum(), list(mixer.parameters()))
    finally:
        torch.use_deterministic_algorithms(False)
    want = torch.autograd.grad(mixer(x[1:, :3])[0].square().sum(), list(mixer.parameters()))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["whole", "lengths", "cu_seqlens"])
@every
def test_both_ways_and_with_dropout_nothing_is_read_back(kind, form):
    place = ("cuda", "cuda")
    mixer = layer(kind, place, width=64, causal=False, recurrent_dropout=0.2).bfloat16()
    x = random(place, 1 if form == "cu_seqlens" else 3, 20, 64).bfloat16().requires_grad_()
    index = {"lengths": [20, 0, 7], "cu_seqlens": [0, 5, 5, 20]}.get(form)
    more = {} if index is None else {form: torch.tensor(index, device="cuda")}

    def run():
        y, _ = mixer(x, **more)
        torch.autograd.grad(y.float().square().sum(), [x, *mixer.parameters()])

    run()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
