"""The C++ core beyond the table of cases: instruction sets, threads, shapes at random, steps, compilation."""

import multiprocessing
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests import needs
from tests.test_kernels import check_budget, example

from quatrain.kernels import OPS, Case, _core, causal_conv, s6_scan, s6_step

pytestmark = needs.core

NAMES = ("s6_scan", "s6_step", "causal_conv")


def core_impl(name):
    return next(impl for impl in OPS[name].impls if impl.name == "cpp")


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


ISAS = _core.available()[1:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_keeps_the_budget(isa, name, dtype):
    op = OPS[name]
    with _core.forced(isa):
        for case in op.cases:
            check_budget(op, core_impl(name).fn, example(op, case), dtype)


@pytest.mark.parametrize("name", NAMES)
def test_float16(name):
    op = OPS[name]
    for case in op.cases:
        check_budget(op, core_impl(name).fn, example(op, case), torch.float16)


SCAN = st.fixed_dictionaries(
    {
        "B": st.integers(1, 3),
        "T": st.one_of(st.integers(1, 20), st.sampled_from([63, 64, 65, 127, 130])),
        "E": st.sampled_from([1, 2, 3, 15, 16, 17, 33]),
        "N": st.sampled_from([1, 2, 3, 5, 8, 13, 16, 17]),
    }
)
OPTIONAL = st.lists(st.sampled_from(["skip", "gate", "delta_bias", "h0"]), unique=True)
FORM = st.sampled_from([(), ("lengths",), ("cu_seqlens",)])
fuzz = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@fuzz
@given(SCAN, OPTIONAL, FORM, st.booleans(), st.booleans(), st.sampled_from([1, 3]))
def test_scan_of_any_shape_and_flags(dims, optional, form, softplus, zoh, groups):
    dims = dims | ({"B": 1} if form == ("cu_seqlens",) else {})
    dims = dims | ({"E": 3 * dims["E"], "G": 3} if groups == 3 else {})
    op, case = OPS["s6_scan"], Case(dims, (*optional, *form), {"softplus": softplus, "zoh": zoh})
    check_budget(op, core_impl("s6_scan").fn, example(op, case), torch.float64)


@fuzz
@given(SCAN, st.integers(2, 8), st.lists(st.sampled_from(["bias", "h0"]), unique=True), FORM, st.booleans())
def test_convolution_of_any_shape_and_flags(dims, taps, optional, form, silu):
    dims = {**dims, "W": taps} | ({"B": 1} if form == ("cu_seqlens",) else {})
    op, case = OPS["causal_conv"], Case(dims, (*optional, *form), {"silu": silu})
    check_budget(op, core_impl("causal_conv").fn, example(op, case), torch.float64)


def test_largest_state_and_more_than_one_tile_of_it():
    op = OPS["s6_scan"]
    case = Case({"B": 1, "T": 130, "E": 1, "N": 256}, ("skip", "gate", "h0"), {"softplus": True})
    check_budget(op, core_impl("s6_scan").fn, example(op, case), torch.float64)


LARGE = [
    ("s6_scan", Case({"B": 1, "T": 700, "E": 16, "N": 16}, ("gate", "skip", "h0"), {"softplus": True})),
    ("s6_scan", Case({"B": 1, "T": 700, "E": 13, "N": 16}, ("skip",), {"zoh": True})),
    ("s6_scan", Case({"B": 3, "T": 150, "E": 72, "N": 16}, ("gate", "skip", "lengths"), {"softplus": True})),
    ("s6_scan", Case({"B": 1, "T": 400, "E": 70, "N": 16}, ("h0", "cu_seqlens"))),
    ("causal_conv", Case({"B": 2, "T": 500, "E": 40, "W": 4}, ("bias", "h0", "lengths"), {"silu": True})),
    ("causal_conv", Case({"B": 1, "T": 300, "E": 40, "W": 4}, ("bias", "h0", "cu_seqlens"), {"silu": True})),
]


def results(name, case, dtype=torch.float32):
    arguments = example(OPS[name], case)
    leaves = {
        n: x.to(dtype).requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for n, x in arguments.items()
    }
    out = core_impl(name).fn(**leaves)
    wanted = [x for x in leaves.values() if isinstance(x, torch.Tensor) and x.requires_grad]
    rng = torch.Generator().manual_seed(3)
    cotangents = [torch.randn(x.shape, generator=rng).to(x) for x in out]
    return [x.detach() for x in out] + list(torch.autograd.grad(out, wanted, cotangents))


@pytest.mark.parametrize(("name", "case"), LARGE, ids=lambda x: getattr(x, "name", x))
def test_any_number_of_threads_gives_the_same_bits(name, case, threads):
    threads(1)
    want = results(name, case)
    for count in (2, 3, 8):
        threads(count)
        for _ in range(2):
            for a, b in zip(results(name, case), want, strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize(("name", "case"), LARGE, ids=lambda x: getattr(x, "name", x))
def test_work_split_over_threads_keeps_the_budget(name, case):
    check_budget(OPS[name], core_impl(name).fn, example(OPS[name], case), torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", OPS["s6_step"].cases, ids=lambda case: case.name)
def test_the_step_without_autograd_is_the_step(case, dtype):
    op = OPS["s6_step"]
    for isa in _core.available():
        with _core.forced(isa):
            arguments = example(op, case)
            rounded = {n: x.to(dtype) if isinstance(x, torch.Tensor) else x for n, x in arguments.items()}
            exact = op.reference(
                **{n: x.double() if isinstance(x, torch.Tensor) else x for n, x in rounded.items()}
            )
            for got, want in zip(core_impl("s6_step").fn(**rounded), exact, strict=True):
                tolerance = 4 * torch.finfo(got.dtype).eps if got.dtype != torch.float64 else 1e-13
                assert (got.double() - want).abs().max() <= tolerance * want.abs().max()


def test_a_slow_decay_over_many_steps_shows_no_bias():
    """Errors of the exponential that have one sign would add up over the 1 / (1 - decay) steps of memory."""
    time, width = 20_000, 16
    rng = torch.Generator().manual_seed(0)
    u = torch.randn(1, time, width, generator=rng, dtype=torch.float64) + 1
    delta = torch.rand(1, time, width, generator=rng, dtype=torch.float64) * 0.002
    b, c = (torch.rand(1, time, 2, generator=rng, dtype=torch.float64) for _ in range(2))
    a = -torch.rand(width, 2, generator=rng, dtype=torch.float64)
    arguments = [x.float() for x in (u, delta, a, b, c)]
    exact, _ = s6_scan(*(x.double() for x in arguments))
    y, _ = s6_scan(*arguments)
    assert (y.double() - exact).abs().max() <= 1.5e-5 * exact.abs().max()  # the definition in float32: 3e-5


def test_extreme_step_sizes_neither_overflow_nor_give_nan():
    u, delta = (
        torch.ones(1, 6, 3),
        torch.tensor([-1e30, -200.0, 0.0, 50.0, 1e4, 3e38])[None, :, None].expand(1, 6, 3),
    )
    a, b = -torch.ones(3, 2) * 1e-3, torch.ones(1, 6, 2)
    for isa in _core.available():
        with _core.forced(isa):
            y, h = s6_scan(u[:, :5], delta[:, :5], a, b[:, :5], b[:, :5], softplus=True)
            assert y.isfinite().all()
            assert h.isfinite().all()
            gate = torch.tensor([-1e30, -100.0, -1.0, 0.0, 100.0])[None, :, None].expand(1, 5, 3)
            y, _ = s6_scan(u[:, :5], delta[:, :5], a, b[:, :5], b[:, :5], gate=gate, softplus=True)
            assert y.isfinite().all()


def test_nan_stays_in_its_channel_and_its_future():
    u, delta = torch.randn(1, 8, 20), torch.rand(1, 8, 20)
    a, b, c = -torch.rand(20, 5), torch.randn(1, 8, 5), torch.randn(1, 8, 5)
    u[0, 4, 17] = torch.nan
    for isa in _core.available():
        with _core.forced(isa):
            y, h = s6_scan(u, delta, a, b, c)
            assert y[0, 4:, 17].isnan().all()
            assert h[0, 17].isnan().all()
            assert y.isnan().sum() == 4


def _child(queue):
    torch.set_num_threads(2)
    name, case = LARGE[2]
    queue.put([x.numpy() for x in results(name, case)])


def test_two_processes_at_once_and_a_fork_after_first_use():
    name, case = LARGE[2]
    want = results(name, case)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    children = [context.Process(target=_child, args=(queue,)) for _ in range(2)]
    for child in children:
        child.start()
    for _ in children:
        for got, w in zip(queue.get(timeout=120), want, strict=True):
            assert torch.equal(torch.from_numpy(got), w)
    for child in children:
        child.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_scan_in_a_forked_child_does_not_hang():
    code = """
import os, torch
from quatrain.kernels import s6_scan
torch.set_num_threads(2)
rng = torch.Generator().manual_seed(0)
u, d = torch.randn(2, 300, 64, generator=rng), torch.rand(2, 300, 64, generator=rng)
b = torch.randn(2, 300, 16, generator=rng)
want, _ = s6_scan(u, d, -torch.ones(64, 16), b, b, impl="cpp")
child = os.fork()
if child == 0:
    got, _ = s6_scan(u, d, -torch.ones(64, 16), b, b, impl="cpp")
    os._exit(0 if (got.numpy() == want.numpy()).all() else 1)  # torch's own kernels may hang here
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)


def test_the_choice_says_why_the_core_does_not_run(monkeypatch):
    from quatrain.kernels.s6_scan import cpu

    monkeypatch.setattr(cpu._core, "missing", lambda: "the C++ core was not built (no compiler at install)")
    op = OPS["s6_scan"]
    arguments = example(op, op.cases[0])
    assert op.choose(arguments).name == "torch"
    with pytest.raises(Exception, match="cpp: the C\\+\\+ core was not built"):
        op.choose(arguments, "cpp")


@pytest.mark.parametrize("training", [False, True])
def test_the_ops_compile_into_one_graph(training):
    rng = torch.Generator().manual_seed(0)
    x, delta = (torch.randn(2, 40, 6, generator=rng, requires_grad=training) for _ in range(2))
    weight, bias = torch.randn(6, 4, generator=rng), torch.randn(6, generator=rng)
    a, b = -torch.rand(6, 3, generator=rng), torch.randn(2, 40, 3, generator=rng)
    h0 = torch.randn(2, 6, 3, generator=rng)

    def model(x, delta):
        u, _ = causal_conv(x, weight, bias, silu=True)
        y, h = s6_scan(u, delta, a, b, b, gate=x, softplus=True)
        z, _ = s6_step(u[:, 0], delta[:, 0], a, b[:, 0], b[:, 0], None, None, None, h0)
        return y.square().sum() + h.sum() + z.sum()

    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    want, got = model(x, delta), compiled(x, delta)
    torch.testing.assert_close(got, want)
    if training:
        for g, w in zip(
            torch.autograd.grad(got, (x, delta)), torch.autograd.grad(want, (x, delta)), strict=True
        ):
            torch.testing.assert_close(g, w)


def test_registered_ops_pass_torchs_own_checks():
    case = Case({"B": 2, "T": 5, "E": 3, "N": 2}, ("skip", "h0"), {"softplus": True})
    drawn = example(OPS["s6_scan"], case)
    names = ("u", "delta", "a", "b", "c", "skip", "gate", "delta_bias", "h0")
    tensors = [None if drawn[n] is None else drawn[n].requires_grad_() for n in names]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(
        torch.ops.quatrain.s6_scan, (*tensors, True, False, None, None, True), test_utils=checks
    )
    conv = example(OPS["causal_conv"], OPS["causal_conv"].cases[1])
    inputs = [conv[n].requires_grad_() for n in ("x", "weight", "bias", "h0")]
    torch.library.opcheck(torch.ops.quatrain.causal_conv, (*inputs, True, None, None), test_utils=checks)
