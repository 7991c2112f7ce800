"""One test for every implementation of every op: results and gradients against the float64 definition."""

from importlib import import_module

import pytest
import torch
from tests.budget import check_errors
from torch import Tensor

from quatrain.kernels import OPS

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))
CASES = [
    pytest.param(op, impl, case, dtype, id=f"{op.name}-{impl.name}-{case.name}-{str(dtype)[6:]}")
    for op in OPS.values()
    for impl in op.impls
    for case in op.cases
    for dtype in DTYPES
]


def is_float(x):
    return isinstance(x, Tensor) and x.is_floating_point()


def cast(arguments, convert):
    return {name: convert(x) if is_float(x) else x for name, x in arguments.items()}


def strided(x: Tensor) -> Tensor:
    """The same values, not contiguous in any dimension."""
    return torch.stack((x, x), dim=-1).transpose(0, -1).contiguous().transpose(0, -1)[..., 0]


def results_and_grads(fn, arguments, cotangent_dtype) -> dict[str, Tensor]:
    leaves = cast(arguments, lambda x: x.detach().clone().requires_grad_())
    named = {name: x for name, x in leaves.items() if is_float(x)}
    results = fn(**leaves)
    rng = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(r.shape, generator=rng).to(cotangent_dtype).to(r) for r in results]
    grads = torch.autograd.grad(results, list(named.values()), cotangents, allow_unused=True)
    out = {f"result {i}": r.detach().cpu() for i, r in enumerate(results)}
    for name, grad in zip(named, grads, strict=True):
        out[f"d {name}"] = (torch.zeros_like(named[name]) if grad is None else grad).cpu()
    return out


def check_budget(op, got_fn, arguments, dtype, device="cpu", layout=lambda x: x, keep=()):
    """The error budget. ``arguments`` are float64; those in ``keep`` are float32 where dtype is narrower."""
    wide = torch.promote_types(dtype, torch.float32)
    rounded = cast(arguments, lambda x: x.to(dtype))
    given = {
        name: layout(x.to(wide) if name in keep else x) if is_float(x) else x for name, x in rounded.items()
    }
    given = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in given.items()}
    narrow = {"operand_dtype": dtype} if op.operand_rounding and dtype is not wide else {}

    exact = results_and_grads(op.reference, cast(rounded, lambda x: x.to(torch.float64)), dtype)
    plain = results_and_grads(
        lambda **kw: op.reference(**kw, **narrow), cast(rounded, lambda x: x.to(wide)), dtype
    )
    got = results_and_grads(got_fn, given, dtype)

    ulps = 128 if dtype is torch.float64 else 8  # float64 has no wider truth
    floor = ulps * torch.finfo(wide).eps
    for name, e in exact.items():
        check_errors(got[name], plain[name], e, name, op.slack, floor)


def example(op, case, seed=0):
    return op.example(case, torch.Generator().manual_seed(seed))


@pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS")  # the first backward pass on a GPU says it
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("op", "impl", "case", "dtype"), CASES)
def test_matches_float64_reference(op, impl, case, dtype, device):
    arguments = example(op, case)
    metadata = {
        name: (x.to(device, dtype) if is_float(x) else x.to(device)) if isinstance(x, Tensor) else x
        for name, x in arguments.items()
    }
    if (reason := impl.why_not(metadata)) is not None:
        pytest.skip(reason)
    check_budget(op, impl.fn, arguments, dtype, device)


WIDE_PARAMETERS = {
    "rnn_scan": ("weight", "h0"),
    "lstm_scan": ("weight", "h0", "c0"),
    "gru_scan": ("weight", "bias", "h0"),
    "recurrent_step": ("h0", "c0"),
    "s6_block_step": ("h0",),
    "s6_scan": ("a", "skip", "delta_bias", "h0"),
    "s6_step": ("a", "skip", "delta_bias", "h0"),
    "causal_conv": ("weight", "bias"),
    "lti_conv": ("kernel",),
}
LAST = [
    pytest.param(op, impl, op.cases[i], id=f"{op.name}-{impl.name}-{op.cases[i].name}")
    for op in OPS.values()
    for impl in op.impls
    for i in (len(op.cases) // 2, -1)
]


@pytest.mark.parametrize(("op", "impl", "case"), LAST)
def test_parameters_and_states_may_stay_float32(op, impl, case):
    names = WIDE_PARAMETERS.get(op.name, ())
    arguments = {
        name: x.to(torch.float32 if name in names else torch.bfloat16) if is_float(x) else x
        for name, x in example(op, case).items()
    }
    if (reason := impl.why_not(arguments)) is not None:
        pytest.skip(reason)
    check_budget(op, impl.fn, example(op, case), torch.bfloat16, keep=names)


@pytest.mark.parametrize(("op", "impl", "case"), LAST)
def test_strides_do_not_matter(op, impl, case):
    arguments = cast(example(op, case), lambda x: strided(x.float()))
    if (reason := impl.why_not(arguments)) is not None:
        pytest.skip(reason)
    check_budget(op, impl.fn, example(op, case), torch.float32, layout=strided)


@pytest.mark.parametrize(("op", "impl", "case"), LAST)
def test_expanded_inputs_are_read_and_never_written(op, impl, case):
    arguments = {name: (x[:1].expand(x.shape) if is_float(x) else x) for name, x in example(op, case).items()}
    if (reason := impl.why_not(arguments)) is not None:
        pytest.skip(reason)
    before = {name: x.clone() for name, x in arguments.items() if isinstance(x, Tensor)}
    got, want = impl.fn(**arguments), op.reference(**arguments)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-11, atol=1e-11)
    for name, x in before.items():
        assert torch.equal(arguments[name], x), f"{name} was changed"


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name) for case in OPS["s6_scan"].cases if case.dims["T"] > 1]
)
@pytest.mark.parametrize(("numbers", "least"), [(1, 7), (1, 16), (1, 3)])
def test_s6_scan_over_many_segments(case, numbers, least, monkeypatch):
    """The shapes of the table fit into one segment each; here they take several, with a ragged last one."""
    segments = import_module("quatrain.kernels.s6_scan._segments")
    monkeypatch.setattr(segments, "_CPU_NUMBERS", numbers)
    monkeypatch.setattr(segments, "_LEAST_STEPS", least)
    op = OPS["s6_scan"]
    (torch_impl,) = [impl for impl in op.impls if impl.name == "torch"]
    for dtype in (torch.float64, torch.float32):
        check_budget(op, torch_impl.fn, example(op, case), dtype)
