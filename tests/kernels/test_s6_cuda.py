"""What only a GPU shows of the S6 scan's kernels: 64-bit indices, graphs, compilation, repeated runs."""

import pytest
import torch
from tests.test_kernels import WIDE_PARAMETERS, check_budget, example, strided

from quatrain.kernels import OPS, Case, s6_scan
from quatrain.kernels.s6_scan import cuda

OP = OPS["s6_scan"]
ALL = ("skip", "gate", "delta_bias", "h0")
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]


def arguments(dims, optional=ALL, dtype=torch.bfloat16):
    drawn = example(OP, Case(dims, optional, {"softplus": True}))
    return {
        name: (x.to("cuda", dtype if x.is_floating_point() else None) if isinstance(x, torch.Tensor) else x)
        for name, x in drawn.items()
    }


def results_and_gradients(run, given):
    leaves = [
        x.requires_grad_()
        for x in given.values()
        if isinstance(x, torch.Tensor) and x.dtype.is_floating_point
    ]
    y, h = run(**given)
    return y, h, *torch.autograd.grad(y.float().sin().sum() + h.sin().sum(), leaves)


@pytest.mark.parametrize("dims", [{"N": 1}, {"N": 8}, {"N": 20}, {"N": 64}, {"N": 128}, {"N": 250}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_state_sizes(dims, dtype):
    case = Case({"B": 2, "T": 70, "E": 9, **dims}, ALL, {"softplus": True})
    check_budget(OP, cuda.scan, example(OP, case), dtype, "cuda")


@pytest.mark.parametrize("case", [OP.cases[9], OP.cases[11], OP.cases[-1]], ids=lambda case: case.name)
def test_strides_and_wide_parameters(case):
    check_budget(OP, cuda.scan, example(OP, case), torch.float32, "cuda", layout=strided)
    check_budget(OP, cuda.scan, example(OP, case), torch.bfloat16, "cuda", keep=WIDE_PARAMETERS["s6_scan"])


@pytest.mark.parametrize("form", ["lengths", "cu_seqlens"])
def test_long_sequences_in_chunks(form):
    dims = {"B": 1 if form == "cu_seqlens" else 2, "T": 3000, "E": 6, "N": 4}
    check_budget(
        OP, cuda.scan, example(OP, Case(dims, (*ALL, form), {"softplus": True})), torch.float32, "cuda"
    )


def test_runs_are_equal_compiled_and_not():
    given = arguments({"B": 1, "T": 3000, "E": 64, "N": 16})
    once, again = (results_and_gradients(s6_scan, given) for _ in range(2))
    compiled = results_and_gradients(torch.compile(lambda **kw: s6_scan(**kw), fullgraph=True), given)
    for a, b, c in zip(once, again, compiled, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_a_captured_graph_follows_its_inputs():
    given = arguments({"B": 2, "T": 100, "E": 64, "N": 16})
    s6_scan(**given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, h = s6_scan(**given)
    given["u"].copy_(torch.randn_like(given["u"]))
    graph.replay()
    want_y, want_h = s6_scan(**given)
    assert torch.equal(y, want_y)
    assert torch.equal(h, want_h)


def test_indices_past_32_bits():
    """More than 2^31 numbers in a tensor: the last steps must be those of the sequence cut in two."""
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB")
    time, width, cut = (1 << 20) + 640, 2048, 1 << 19
    u = torch.randn(1, time, width, device="cuda", dtype=torch.bfloat16)
    delta = torch.rand(1, time, width, device="cuda", dtype=torch.bfloat16) / 8
    b, c = torch.randn(2, 1, time, 4, device="cuda", dtype=torch.bfloat16)
    a = -0.5 - torch.rand(width, 4, device="cuda")  # forgets soon: no long sum of roundings to compare
    y, h = s6_scan(u, delta, a, b, c)
    _, between = s6_scan(u[:, :cut], delta[:, :cut], a, b[:, :cut], c[:, :cut])
    rest = [x[:, cut:] for x in (u, delta, b, c)]
    y_rest, h_rest = s6_scan(rest[0], rest[1], a, rest[2], rest[3], h0=between)
    assert (h - h_rest).abs().max() <= 1e-5 * h.abs().max()
    torch.testing.assert_close(y[:, -1000:], y_rest[:, -1000:], rtol=2e-2, atol=2e-2)
