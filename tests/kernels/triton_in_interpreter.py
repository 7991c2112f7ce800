"""The Triton kernels' logic on a CPU, in Triton's interpreter.

Run by test_triton.py in a process of its own: the interpreter is chosen by an environment variable when a
kernel is defined. Narrow data are float16 here: where a GPU rounds to bfloat16, the interpreter (3.7.1) cuts
the lower bits off.
"""

import pytest
import torch
from tests.test_kernels import WIDE_PARAMETERS, check_budget, example, is_float, strided

from quatrain.kernels import OPS, Case, _triton_math
from quatrain.kernels.causal_conv import triton as conv
from quatrain.kernels.s6_scan import triton as s6

triton = pytest.importorskip("triton")
tl = triton.language
SCAN, CONV = OPS["s6_scan"], OPS["causal_conv"]
SHORT = [case for case in SCAN.cases if case.dims["T"] < 100]  # the interpreter takes a millisecond a step
ALL = ("skip", "gate", "delta_bias", "h0")
MORE = (
    Case({"B": 1, "T": 70, "E": 3, "N": 20}, ALL, {"softplus": True}),  # several marks, a padded N
    Case({"B": 1, "T": 75, "E": 3, "N": 4}, ("gate", "h0", "cu_seqlens"), {"softplus": True}),
    Case({"B": 2, "T": 68, "E": 70, "N": 2}, ("skip", "delta_bias", "h0", "lengths")),  # two blocks
    Case({"B": 1, "T": 34, "E": 66, "G": 1, "N": 250}, ("gate", "h0"), {"zoh": True}),
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in (*SHORT, *MORE)])
def test_scan_matches_the_definition(case):
    check_budget(SCAN, s6.scan, example(SCAN, case), torch.float32)


@pytest.mark.parametrize("case", [SCAN.cases[11], SCAN.cases[14], SCAN.cases[17]], ids=lambda case: case.name)
def test_scan_of_narrow_data_and_any_strides(case):
    check_budget(SCAN, s6.scan, example(SCAN, case), torch.float16)
    check_budget(SCAN, s6.scan, example(SCAN, case), torch.float16, keep=WIDE_PARAMETERS["s6_scan"])
    check_budget(SCAN, s6.scan, example(SCAN, case), torch.float32, layout=strided)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CONV.cases])
def test_convolution_matches_the_definition(case):
    for dtype in (torch.float32, torch.float16):
        check_budget(CONV, conv.convolve, example(CONV, case), dtype)


def test_convolution_over_tiles_strides_and_wide_parameters():
    long = Case({"B": 1, "T": 77, "E": 70, "W": 5}, ("bias", "h0", "cu_seqlens"), {"silu": True})
    check_budget(CONV, conv.convolve, example(CONV, long), torch.float32)
    for case in (CONV.cases[6], CONV.cases[-1]):
        check_budget(CONV, conv.convolve, example(CONV, case), torch.float32, layout=strided)
        check_budget(CONV, conv.convolve, example(CONV, case), torch.float16, keep=("weight", "bias"))


def test_index_tensors_are_never_followed_out_of_bounds():
    """On a GPU their contents are not checked; what comes out is undefined, what is read is not."""
    drawn = example(SCAN, Case({"B": 1, "T": 9, "E": 3, "N": 2}, ("h0", "cu_seqlens"), {}))
    given = {key: x.float() if is_float(x) else x for key, x in drawn.items()}
    given["cu_seqlens"] = torch.full_like(given["cu_seqlens"], 10**12)
    y, h = s6.scan(**given)
    assert torch.equal(y, torch.zeros_like(y))
    assert torch.equal(h, given["h0"])
    x = torch.ones(2, 5, 3)
    y, _ = conv.convolve(x, torch.ones(3, 4), lengths=torch.tensor([99, -7]))
    assert y[0].all()
    assert not y[1].any()


@triton.jit
def _functions(x, out, rows, N: tl.constexpr):
    n = tl.arange(0, N)
    value = tl.load(x + n)
    both = _triton_math.exp_both(value)
    tl.store(out + n, both[0])
    tl.store(out + rows + n, both[1])
    tl.store(out + 2 * rows + n, _triton_math.sigmoid(value))
    tl.store(out + 3 * rows + n, _triton_math.softplus(value))
    tl.store(out + 4 * rows + n, _triton_math.ramp(value, both[0], both[1]))


def test_functions_err_by_units_in_the_last_place():
    small = torch.logspace(-7, 1.9, 2048, dtype=torch.float64)
    x = torch.cat((-small, small)).float()
    out = torch.empty(5, len(x))
    _functions[(1,)](x, out, len(x), len(x))
    wide = x.double()
    less = torch.expm1(wide)
    ramp = (wide * (less + 1) - less) / wide**2
    near = wide[wide.abs() < 1e-2]
    ramp[wide.abs() < 1e-2] = 0.5 + near / 3 + near**2 / 8 + near**3 / 30
    exact = (wide.exp(), less, wide.sigmoid(), torch.logaddexp(wide, torch.zeros_like(wide)), ramp)
    for name, got, want in zip(("exp", "expm1", "sigmoid", "softplus", "ramp"), out, exact, strict=True):
        error = ((got.double() - want) / want).abs().max() / 2**-24
        assert error < 8, f"{name}: {error:.1f} units of 2^-24"


# NumPy, which runs these, warns of what is meant here: products that overflow, a NaN cast to an integer.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_functions_at_the_edges():
    edges = torch.tensor([-200.0, 0.0, 200.0, torch.nan])
    out = torch.empty(5, 4)
    _functions[(1,)](edges, out, 4, 4)
    assert out[0, :3].tolist() == [0.0, 1.0, torch.inf]
    assert out[1, 1] == 0
    assert out[3, 2] == 200
    assert out[:4, 3].isnan().all()


def test_a_state_that_decays_slowly_gathers_no_bias():
    """Sixty remembered steps and more, as in tests/kernels/test_cuda_ops.py."""
    drawn = example(SCAN, Case({"B": 1, "T": 160, "E": 4, "N": 4}, ("h0",), {}))
    drawn["delta"] = torch.full_like(drawn["delta"], 1 / 64)
    drawn["a"] = -torch.rand(4, 4, dtype=torch.float64) / 2
    check_budget(SCAN, s6.scan, drawn, torch.float32)


def test_equal_runs_and_torchs_tracing(monkeypatch):
    library = torch.library.Library("quatrain", "IMPL")
    for name, module in (("s6_scan", s6), ("causal_conv", conv)):
        library.impl(f"{name}_triton", module.forward, "CPU")
        library.impl(f"{name}_triton_backward", module.backward, "CPU")
    try:
        for op, run, case in ((SCAN, s6.scan, SCAN.cases[17]), (CONV, conv.convolve, CONV.cases[-1])):
            drawn = example(op, case)
            given = {key: x.float().requires_grad_() if is_float(x) else x for key, x in drawn.items()}
            compiled = torch.compile(lambda run=run, **kw: run(**kw), fullgraph=True, backend="aot_eager")
            once, again, traced = (_train(call, given) for call in (run, run, compiled))
            for a, b, c in zip(once, again, traced, strict=True):
                assert torch.equal(a, b)
                assert torch.equal(a, c)
    finally:
        library._destroy()


def _train(run, given):
    results = run(**given)
    leaves = [x for x in given.values() if isinstance(x, torch.Tensor) and x.requires_grad]
    return [*results, *torch.autograd.grad(sum(r.sin().sum() for r in results), leaves)]


def test_a_second_derivative_is_refused():
    drawn = example(SCAN, Case({"B": 1, "T": 3, "E": 2, "N": 2}, (), {}))
    given = {key: x.float().requires_grad_() if is_float(x) else x for key, x in drawn.items()}
    y, _ = s6.scan(**given)
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(y.sum(), given["u"], create_graph=True)
