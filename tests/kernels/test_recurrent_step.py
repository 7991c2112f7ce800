"""One step of a recurrent layer: the CUDA kernel on a CPU, its machine code, what a GPU shows."""

import pytest
import torch
from tests.kernels import stepping
from tests.kernels.emulation import Together, emulating
from tests.kernels.emulation import needed as emulated
from tests.test_kernels import check_budget, example, strided

from quatrain.errors import NoKernelError, ShapeError, StateError
from quatrain.kernels import OPS, Case, _nvrtc, recurrent_step
from quatrain.kernels.recurrent_step import _plan, cuda
from quatrain.model.config import ModelConfig
from quatrain.model.lm import LanguageModel

OP = OPS["recurrent_step"]
KINDS = ("rnn_tanh", "rnn_relu", "lstm", "gru")
H100 = (132, 66, 42, 32, 24, 20, 16, 16)  # clusters of 1, 2, .. blocks at once


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    ops = {"recurrent_step_cuda": cuda._run}
    with emulating(tmp_path_factory.mktemp("e"), Together, ops, residents=lambda device: H100):
        yield


CASES = [case for case in OP.cases if case.flags.get("kind") != "gru_before"]


@emulated
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_matches_the_definition(emulator, case, dtype):
    check_budget(OP, cuda.step, example(OP, case), dtype)


SIZES = [  # B, I, D: one block, clusters of 2 and 4, several parts of the batch, odd widths
    (1, 72, 264),
    (9, 40, 136),
    (31, 136, 72),
    (70, 64, 24),
    (17, 33, 19),
]


@emulated
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["rnn_tanh", "lstm", "gru"])
def test_batches_and_widths(emulator, kind, size):
    case = Case(dict(zip("BID", size, strict=True)), ("in_bias", "bias"), {"kind": kind})
    check_budget(OP, cuda.step, example(OP, case), torch.bfloat16, keep=("h0", "c0"))
    if kind == "lstm" and size[0] > 8:
        check_budget(OP, cuda.step, example(OP, case), torch.float32)


@emulated
@pytest.mark.parametrize("units", [2, 4, 8])
@pytest.mark.parametrize("cluster", [1, 2, 8])
def test_every_way_to_share_out_the_work(emulator, units, cluster, monkeypatch):
    def plan(number, batch, in_width, width, size, residents):
        return _plan._with(number, batch, in_width, width, size, 1, cluster, units)

    monkeypatch.setattr(cuda, "plan", plan)
    for kind in ("lstm", "gru", "rnn_tanh"):
        case = Case({"B": 3, "I": 264, "D": 72}, ("in_bias", "bias"), {"kind": kind})
        check_budget(OP, cuda.step, example(OP, case), torch.bfloat16)


@emulated
def test_a_layer_of_1024_units_as_it_is_planned(emulator):
    case = Case({"B": 1, "I": 1024, "D": 1024}, ("in_bias",))
    with torch.no_grad():
        given = {
            name: x.bfloat16() if isinstance(x, torch.Tensor) else x for name, x in example(OP, case).items()
        }
        got = cuda.step(**given)
        wide = {name: x.double() if isinstance(x, torch.Tensor) else x for name, x in given.items()}
        want = OP.reference(**wide)
    for a, b in zip(got[1:], want[1:], strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-6, atol=2e-6)


@emulated
def test_strides(emulator):
    for index in (1, 4, 7):
        check_budget(OP, cuda.step, example(OP, OP.cases[index]), torch.float32, layout=strided)


@emulated
def test_saturated_gates(emulator):
    for kind in KINDS:
        given = example(OP, Case({"B": 2, "I": 16, "D": 24}, ("in_bias", "bias"), {"kind": kind}))
        given["x"] *= 12
        check_budget(OP, cuda.step, given, torch.float32)


@emulated
def test_op_keeps_torchs_rules(emulator):
    given = example(OP, Case({"B": 2, "I": 8, "D": 16}, ("in_bias",)))
    tensors = [x.float() for x in given.values() if isinstance(x, torch.Tensor)]
    args = ("lstm", *tensors, None)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.quatrain.recurrent_step_cuda.default, args, test_utils=tests)


TABLE = [(1, 1024), (64, 1024), (8, 512), (16, 2048), (1, 256), (64, 4096), (1, 64), (3, 1000)]


@pytest.mark.parametrize(("batch", "width"), TABLE)
@pytest.mark.parametrize("size", [2, 4])
def test_every_plan_fits(batch, width, size):
    for number in range(4):
        made = _plan.plan(number, batch, width, width, size, H100)
        assert made is not None
        assert made.clusters * made.cluster * made.units >= width
        assert 8 * made.tiles * made.parts >= batch
        assert made.shared_bytes <= _plan.SHARED_BYTES
        assert _plan.WARPS % made.across == 0
        assert made.across * made.each * 16 >= made.cluster * made.units * (4 if number >= 2 else 1)


def test_the_layer_of_the_target_is_spread_over_the_whole_chip():
    for batch in (1, 64):
        made = _plan.plan(cuda.NUMBERS["lstm"], batch, 1024, 1024, 2, H100)
        assert (made.blocks, made.parts, made.cluster) == (128, 1, 1 if batch == 1 else 4)
    fewer = _plan.plan(cuda.NUMBERS["lstm"], 64, 1024, 1024, 2, (132, 66, 42, 31))
    assert fewer.cluster == 2  # or the last cluster would run alone


def test_a_width_that_does_not_fit_is_none():
    assert _plan.plan(2, 1, 1 << 20, 64, 4, H100) is None


def right(kind):
    given = example(OP, Case({"B": 2, "I": 3, "D": 4}, ("in_bias", "bias"), {"kind": kind}))
    return {name: x.float() if isinstance(x, torch.Tensor) else x for name, x in given.items()}


WRONG = [
    ("lstm", {"kind": "elman"}, ShapeError, "kind = 'elman': must be one of rnn_tanh, rnn_relu, lstm"),
    ("lstm", {"x": torch.zeros(2, 5)}, ShapeError, "in_weight: shape (16, 3): must be (4D = 16, I = 5)"),
    ("lstm", {"weight": torch.zeros(12, 4)}, ShapeError, "weight: shape (12, 4): must be (4D = 16, D = 4)"),
    ("lstm", {"weight": torch.zeros(4)}, ShapeError, "weight: shape (4,): must be (GD, D)"),
    ("lstm", {"weight": None}, ShapeError, "weight: a NoneType: must be a tensor"),
    ("lstm", {"weight": torch.zeros(16, 4).half()}, ShapeError, "weight: dtype torch.float16: must"),
    ("lstm", {"c0": None}, ShapeError, "c0: absent with kind = 'lstm': an LSTM has a cell"),
    ("gru", {"c0": torch.zeros(2, 4)}, ShapeError, "c0: given with kind = 'gru'"),
    ("lstm", {"bias": torch.zeros(4)}, ShapeError, "bias: given with kind = 'lstm': must be part of in_bias"),
    ("gru", {"bias": torch.zeros(5)}, ShapeError, "bias: shape (5,): must be (D = 4)"),
    ("gru", {"h0": torch.zeros(3, 4)}, StateError, "h0: shape (3, 4): must be (B = 2, D = 4)"),
    ("gru", {"h0": None}, StateError, "h0: a NoneType: must be a tensor"),
    ("gru", {"impl": "cuda"}, NoKernelError, "cuda: runs on CUDA devices, not on cpu"),
]


@pytest.mark.parametrize(("kind", "change", "error", "message"), WRONG)
def test_wrong_arguments(kind, change, error, message):
    with pytest.raises(error) as caught:
        recurrent_step(**right(kind) | change)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_it_compiles_for_hopper_without_a_device(kind):
    try:
        _nvrtc._nvrtc()
    except OSError:
        pytest.skip("NVRTC is not here")
    for dtype, batch in ((torch.bfloat16, 1), (torch.float16, 64), (torch.float32, 64)):
        made = _plan.plan(cuda.NUMBERS[kind], batch, 1024, 1024, dtype.itemsize, H100)
        for aligned in (0, 1):
            named = (("DATA", _nvrtc.DATA[dtype]), ("KIND", cuda.NUMBERS[kind]), ("VEC", aligned))
            macros = [f"-D{key}={value}" for key, value in (*named, *made.defines())]
            options = ["--std=c++17", *macros, "--gpu-architecture=sm_90"]
            assert _nvrtc.compile_source(cuda._source(), options)


on_a_gpu = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def gpu(test):
    for mark in on_a_gpu:
        test = mark(test)
    return test


@gpu
@pytest.mark.parametrize("size", [*SIZES, (1, 1024, 1024), (64, 1024, 1024), (5, 512, 512), (33, 256, 2048)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_sizes_on_a_gpu(kind, dtype, size):
    case = Case(dict(zip("BID", size, strict=True)), ("in_bias", "bias"), {"kind": kind})
    check_budget(OP, cuda.step, example(OP, case), dtype, "cuda", keep=("h0", "c0"))


@gpu
def test_strides_on_a_gpu():
    for index in (1, 4, 7):
        check_budget(OP, cuda.step, example(OP, OP.cases[index]), torch.float32, "cuda", layout=strided)


def on_gpu(batch, width, dtype=torch.bfloat16):
    drawn = example(OP, Case({"B": batch, "D": width}, ("in_bias",)))
    return {name: x.to("cuda", dtype) if isinstance(x, torch.Tensor) else x for name, x in drawn.items()}


@gpu
@pytest.mark.parametrize("batch", [1, 64])
def test_a_captured_graph_follows_its_inputs_and_compiled_runs_are_equal(batch):
    given = on_gpu(batch, 1024)
    recurrent_step(**given, impl="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = recurrent_step(**given, impl="cuda")
    given["x"].copy_(torch.randn_like(given["x"]))
    given["h0"].copy_(torch.randn_like(given["h0"]))
    graph.replay()
    want = recurrent_step(**given, impl="cuda")
    compiled = torch.compile(lambda **kw: recurrent_step(**kw, impl="cuda"), fullgraph=True)(**given)
    for a, b, c in zip(found, want, compiled, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(c, b)


@gpu
@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
def test_a_mixer_steps_with_it_as_it_runs_forward(kind):
    stepping.check_mixer(kind, "recurrent_step", 1e-5)


@gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_decoder_reads_what_the_model_says(dtype):
    config = ModelConfig(vocab=50, width=64, layers=2, pattern="lstm")
    torch.manual_seed(0)
    stepping.check_model(LanguageModel(config).to("cuda", dtype).eval(), 2)
