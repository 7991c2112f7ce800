"""The CUDA kernels' logic on a CPU, block after block: the same sources, compiled by the C++ compiler."""

import pytest
import torch
from tests.kernels.emulation import Alone, emulating, needed
from tests.test_kernels import check_budget, example, strided

from quatrain.kernels import OPS, Case, _nvrtc
from quatrain.kernels.causal_conv import cuda as conv
from quatrain.kernels.cross_entropy import cuda as losses
from quatrain.kernels.s6_scan import _launch, cuda
from quatrain.kernels.s6_step import cuda as one_step
from quatrain.mixers import _s6_train
from quatrain.mixers.s6 import S6

pytestmark = needed
OP = OPS["s6_scan"]


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    _launch.plan.cache_clear()
    ops = {
        "s6_scan_cuda": cuda.forward,
        "s6_scan_cuda_backward": cuda.backward,
        "causal_conv_cuda": conv.forward,
        "causal_conv_cuda_backward": conv.backward,
        "s6_inner": _s6_train._forward,
        "s6_inner_backward": _s6_train._backward,
    }
    with emulating(tmp_path_factory.mktemp("e"), Alone, ops, processors=lambda device: 64):
        yield


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in OP.cases])
@pytest.mark.parametrize(
    ("dtype", "cut"), [(torch.bfloat16, False), (torch.float32, True)], ids=["whole", "chunks"]
)
def test_matches_the_definition(emulator, case, dtype, cut, monkeypatch):
    cut_time(monkeypatch, 1 if cut else 512)
    check_budget(OP, cuda.scan, example(OP, case), dtype)


def cut_time(monkeypatch, least, processors=64):
    monkeypatch.setattr(_launch, "_LEAST_CHUNK", least)
    monkeypatch.setattr(_launch, "_LEAST_LINK", least)
    monkeypatch.setattr(_nvrtc, "processors", lambda device: processors)
    _launch.plan.cache_clear()


def test_strides(emulator):
    check_budget(OP, cuda.scan, example(OP, OP.cases[11]), torch.float32, layout=strided)


_SIZES = [
    ({"B": 2, "T": 70, "E": 9, "N": 250}, ("skip", "gate", "delta_bias", "h0"), {"softplus": True}),
    ({"B": 1, "T": 37, "E": 10, "N": 20}, ("gate", "h0"), {}),
    ({"B": 1, "T": 40, "E": 7, "G": 1, "N": 64}, ("skip", "h0", "cu_seqlens"), {}),
    ({"B": 2, "T": 21, "E": 9, "N": 128}, ("skip", "lengths"), {"softplus": True}),
    ({"B": 1, "T": 34, "E": 5, "N": 250}, ("gate", "h0"), {"zoh": True}),
    ({"B": 1, "T": 70, "E": 132, "G": 2, "N": 16}, ("skip", "gate", "delta_bias", "h0", "cu_seqlens"), {}),
    ({"B": 2, "T": 65, "E": 130, "N": 16}, ("skip", "gate", "delta_bias", "h0", "lengths"), {}),
]


@pytest.mark.parametrize("case", [pytest.param(c := Case(*size), id=c.name) for size in _SIZES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_sizes(emulator, case, dtype, monkeypatch):
    cut_time(monkeypatch, 1)
    check_budget(OP, cuda.scan, example(OP, case), dtype)


_CHAINS = [
    ({"B": 3, "T": 150, "E": 130, "N": 16}, ("skip", "gate", "delta_bias", "h0", "lengths"), {}),
    ({"B": 1, "T": 200, "E": 330, "N": 16}, ("skip", "gate", "h0", "cu_seqlens"), {"softplus": True}),
    ({"B": 5, "T": 70, "E": 4, "N": 20}, ("delta_bias", "h0"), {"softplus": True}),
]


@pytest.mark.parametrize("case", [pytest.param(c := Case(*size), id=c.name) for size in _CHAINS])
def test_chained_chunks(emulator, case, monkeypatch):
    """More blocks than fit at once: chunks that wait for each other even out the last turn."""
    cut_time(monkeypatch, 1, processors=1)
    launched = _launch.plan(64, 5, 2, 16)
    assert launched.chained
    assert launched.chunks > 1
    check_budget(OP, cuda.scan, example(OP, case), torch.float32)


CONV = OPS["causal_conv"]
_CONV_SIZES = [
    ({"B": 2, "T": 45, "E": 8, "W": 4}, ("bias", "h0", "lengths"), {"silu": True}),
    ({"B": 1, "T": 77, "E": 12, "W": 5}, ("bias", "h0", "cu_seqlens"), {"silu": True}),
    ({"B": 3, "T": 19, "E": 4, "W": 8}, ("h0",), {}),
    ({"B": 1, "T": 23, "E": 4, "W": 8}, ("h0", "cu_seqlens"), {"silu": True}),
    ({"B": 6, "T": 9, "E": 4, "W": 8}, ("h0", "lengths"), {"silu": True}),
]


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name) for c in (*CONV.cases, *(Case(*size) for size in _CONV_SIZES))]
)
@pytest.mark.parametrize(("dtype", "least"), [(torch.bfloat16, 16), (torch.float32, 1)])
def test_convolution_matches_the_definition(emulator, case, dtype, least, monkeypatch):
    monkeypatch.setattr(conv, "_LEAST_CHUNK", least)
    conv._plan.cache_clear()
    check_budget(CONV, conv.convolve, example(CONV, case), dtype)


def test_convolution_strides_and_wide_parameters(emulator):
    for case in (CONV.cases[6], CONV.cases[-1]):
        check_budget(CONV, conv.convolve, example(CONV, case), torch.float32, layout=strided)
        for keep in (("weight",), ("weight", "bias"), ()):
            check_budget(CONV, conv.convolve, example(CONV, case), torch.bfloat16, keep=keep)


ROWS = OPS["cross_entropy"]


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in ROWS.cases])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_cross_entropy_matches_the_definition(emulator, case, dtype):
    check_budget(ROWS, losses.run, example(ROWS, case), dtype)


def test_cross_entropy_of_odd_logits(emulator):
    logits = torch.tensor([[0.0, -torch.inf, 1.0], [torch.nan, 0.0, 0.0], [0.0, 0.0, 0.0]])
    loss = losses.losses(logits, torch.tensor([2, 1, 3]))
    assert loss[0].item() == pytest.approx(0.31326169)
    assert loss[1:].isnan().all()


@pytest.mark.parametrize("form", ["plain", "lengths", "cu_seqlens"])
def test_the_inside_of_a_block_is_its_ops_one_after_the_other(emulator, form):
    torch.manual_seed(0)
    layer = S6(width=6, state=4)
    torch.nn.init.normal_(layer.skip)
    batch = 1 if form == "cu_seqlens" else 3
    given = {"lengths": None, "cu_seqlens": None}
    if form != "plain":
        given[form] = torch.tensor([9, 0, 21] if form == "lengths" else [0, 5, 5, 21])
    both = torch.randn(batch, 21, 24, requires_grad=True)
    wanted = [both, *(p for name, p in layer.named_parameters() if name != "in_proj.weight")]
    u, gate = both.chunk(2, dim=-1)
    u, _ = layer._convolve(u, None, **given)
    y, _ = layer._ssm(u, gate, None, **given, keep_state=False)
    plain = layer.out_proj(y)
    inner = _s6_train.run(layer, both, **given)
    cotangent = torch.randn_like(plain)
    torch.testing.assert_close(inner, plain)
    got, want = (torch.autograd.grad(y, wanted, cotangent) for y in (inner, plain))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


STEP = OPS["s6_step"]
_STEP_SIZES = [
    ({"B": 3, "E": 37, "N": 20}, ("skip", "gate", "delta_bias"), {"softplus": True}),
    ({"B": 2, "E": 9, "N": 250}, ("gate",), {}),
]


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name) for c in (*STEP.cases, *(Case(*size) for size in _STEP_SIZES))]
)
def test_a_step_matches_the_definition(emulator, case):
    check_budget(STEP, one_step.step, example(STEP, case), torch.float32)
    check_budget(STEP, one_step.step, example(STEP, case), torch.bfloat16, keep=("a", "skip", "h0"))
    check_budget(STEP, one_step.step, example(STEP, case), torch.float32, layout=strided)
