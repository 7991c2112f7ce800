"""What torch may do with the ops of a GPU: trace, compile, capture, recompute, run under autocast."""

import pytest
import torch
from tests.test_kernels import WIDE_PARAMETERS, check_budget, example, is_float
from torch.utils.checkpoint import checkpoint

from quatrain.kernels import OPS, Case
from quatrain.kernels.s6_scan import cuda as s6
from quatrain.mixers.s6 import S6
from quatrain.model.config import ModelConfig
from quatrain.model.lm import LanguageModel
from quatrain.model.loss import chunked_cross_entropy

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]
OPTIONAL = {
    "s6_scan": ("skip", "gate", "delta_bias", "h0"),
    "causal_conv": ("bias", "h0"),
    "cross_entropy": (),
}
FLAGS = {"s6_scan": {"softplus": True}, "causal_conv": {"silu": True}, "cross_entropy": {"ignored": True}}
NAMES = tuple(OPTIONAL)


def nvrtc(name):
    (impl,) = [impl for impl in OPS[name].impls if impl.name == "nvrtc"]
    return impl.fn


def arguments(name, dtype=torch.bfloat16, **dims):
    sizes = {"B": 2, "T": 50, "E": 32, "N": 16, "W": 4, "R": 9, "V": 104, **dims}
    drawn = example(OPS[name], Case(sizes, OPTIONAL[name], FLAGS[name]))
    keep = WIDE_PARAMETERS.get(name, ())
    given = {}
    for key, x in drawn.items():
        wide = key in keep and not (name == "causal_conv" and key == "h0")
        given[key] = x
        if isinstance(x, torch.Tensor):
            given[key] = x.cuda()
        if is_float(x):
            given[key] = x.to("cuda", torch.float32 if wide else dtype).requires_grad_()
    return given


def train(run, given):
    results = run(**given)
    total = sum(r.float().sin().sum() for r in results)
    leaves = [x for x in given.values() if is_float(x)]
    return [*results, *torch.autograd.grad(total, leaves, allow_unused=True)]


def assert_equal(got, want):
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_runs_are_equal_compiled_and_recomputed_too(name):
    given, run = arguments(name), nvrtc(name)
    want = train(run, given)
    assert_equal(train(run, given), want)
    assert_equal(train(torch.compile(lambda **kw: run(**kw), fullgraph=True), given), want)
    keys = list(given)
    recomputed = lambda **kw: checkpoint(  # noqa: E731
        lambda *xs: run(**dict(zip(keys, xs, strict=True))), *kw.values(), use_reentrant=False
    )
    assert_equal(train(recomputed, given), want)


@pytest.mark.parametrize("name", NAMES)
def test_op_keeps_torchs_rules(name):
    given = arguments(name)
    order = list(given.values())
    op = getattr(torch.ops.quatrain, f"{name}_cuda")
    args = (*order, True) if name == "s6_scan" else tuple(order)
    torch.library.opcheck(op, args)


@pytest.mark.parametrize("name", NAMES)
def test_training_in_a_captured_graph_follows_its_inputs(name):
    given, run = arguments(name), nvrtc(name)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        train(run, given)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = train(run, given)
    first = next(iter(given))
    with torch.no_grad():
        given[first].copy_(torch.randn_like(given[first]))
    graph.replay()
    assert_equal(found, train(run, given))


def test_inside_of_a_block_is_its_ops_one_after_the_other():
    torch.manual_seed(0)
    layer = S6(width=64).cuda()
    x = torch.randn(2, 700, 64, device="cuda", requires_grad=True)
    leaves = [x, *layer.parameters()]
    for lengths in (None, torch.tensor([700, 123], device="cuda")):
        for half in (True, False):
            with torch.autocast("cuda", torch.bfloat16, enabled=half):
                fused, _ = layer(x, None, lengths, keep_state=False)
                plain, _ = layer(x, None, lengths, keep_state=True)
            assert torch.equal(fused, plain)
            cotangent = torch.randn_like(plain)
            got, want = (torch.autograd.grad(y, leaves, cotangent) for y in (fused, plain))
            for a, b in zip(got, want, strict=True):
                error = float((a - b).norm() / b.norm())
                assert error < (2e-2 if half else 1e-5)


def test_op_of_a_block_keeps_torchs_rules():
    layer = S6(width=16).cuda()
    both = torch.randn(2, 40, 64, device="cuda", requires_grad=True)
    weights = (layer.conv_weight, layer.conv_bias, layer.x_proj.weight, layer.dt_proj.weight)
    a = -layer.a_log.exp().detach()
    rest = (a, layer.skip, layer.dt_proj.bias, layer.out_proj.weight, False, None, None)
    torch.library.opcheck(torch.ops.quatrain.s6_inner, (both, *weights, *rest), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("pattern", ["s6", "attention"])
def test_a_compiled_model_trains_as_the_plain_one(pattern):
    config = ModelConfig(vocab=264, width=64, layers=2, pattern=pattern, mixer={})
    torch.manual_seed(0)
    model = LanguageModel(config).cuda()
    tokens = torch.randint(0, 264, (2, 129), device="cuda")

    def gradients():
        with torch.autocast("cuda", torch.bfloat16):
            loss, _ = model.loss(tokens[:, :-1], tokens[:, 1:], keep_state=False)
        return loss, torch.autograd.grad(loss, list(model.parameters()))

    plain, want = gradients()
    for layer in model.backbone.layers:
        layer.compile(fullgraph=True)
    compiled, got = gradients()
    torch.testing.assert_close(compiled, plain, rtol=1e-3, atol=1e-3)
    for a, b in zip(got, want, strict=True):
        assert float((a - b).norm() / b.norm()) < 5e-2


@pytest.mark.parametrize("rate", [0.03, 0.1, 0.3])
@pytest.mark.parametrize("time", [600, 1500])
def test_slow_states_keep_their_budget(rate, time):
    """One-sided errors of the exponential would add up over all the steps that a slow state remembers."""
    optional = OPTIONAL["s6_scan"]
    case = Case({"B": 1, "T": time, "E": 8, "N": 4}, optional, {"softplus": True})
    for seed in range(3):
        given = example(OPS["s6_scan"], case, seed)
        given["a"] = -rate * (0.5 + torch.rand(8, 4, dtype=torch.float64))
        check_budget(OPS["s6_scan"], s6.scan, given, torch.bfloat16, "cuda", keep=WIDE_PARAMETERS["s6_scan"])


def test_cross_entropy_in_chunks_matches_one_that_has_all_logits():
    torch.manual_seed(0)
    hidden = torch.randn(700, 64, device="cuda", requires_grad=True)
    weight = torch.randn(1000, 64, device="cuda", requires_grad=True)
    targets = torch.randint(0, 1000, (700,), device="cuda")
    targets[::5] = -100
    want = torch.nn.functional.cross_entropy((hidden @ weight.T).double(), targets)
    for chunk in (None, 100):
        got = chunked_cross_entropy(hidden, weight, targets, chunk=chunk)
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
        grads = torch.autograd.grad(got, (hidden, weight))
        for a, b in zip(grads, torch.autograd.grad(want, (hidden, weight), retain_graph=True), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
