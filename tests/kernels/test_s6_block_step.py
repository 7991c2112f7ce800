"""One step of a Mamba block: the CUDA kernel on a CPU, its machine code, what a GPU shows."""

from itertools import pairwise

import pytest
import torch
from tests.budget import check_errors
from tests.kernels import stepping
from tests.kernels.emulation import Together, emulating
from tests.kernels.emulation import needed as emulated
from tests.test_kernels import check_budget, example, strided

from quatrain.errors import NoKernelError, ShapeError, StateError
from quatrain.infer._decoder import Decoder
from quatrain.kernels import OPS, Case, _nvrtc, s6_block_step
from quatrain.kernels.s6_block_step import _plan, _sizes, cuda
from quatrain.kernels.s6_block_step.parts import step as torch_step
from quatrain.mixers import mixer_class, s6
from quatrain.mixers._recorded import Recorded
from quatrain.model.config import ModelConfig
from quatrain.model.lm import LanguageModel

OP = OPS["s6_block_step"]
DTYPES = [torch.bfloat16, torch.float32, torch.float16]
ALL = ("norm_weight", "conv_bias", "dt_bias", "skip")
SHARED = 227 << 10


class Device:
    """What a test's device says of itself."""

    processors = 3
    graph = 0


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    device = {
        "processors": lambda device: Device.processors,
        "shared_bytes": lambda device: SHARED,
        "capture": lambda device: Device.graph,
    }
    ops = {"s6_block_step_cuda": cuda._run_traced}
    with emulating(tmp_path_factory.mktemp("e"), Together, ops, **device) as patch:
        patch.setattr(cuda, "_order", lambda device: (1, Device.graph))
        yield
        cuda._spaces.clear()


@emulated
@pytest.mark.parametrize("case", OP.cases, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_the_definition(emulator, case, dtype):
    check_budget(OP, cuda.step, example(OP, case), dtype)


SIZES = [  # B, D, E, N, R, W
    (1, 64, 128, 16, 4, 4),
    (17, 32, 24, 8, 2, 4),
    (32, 24, 16, 4, 3, 3),
    (33, 7, 10, 5, 9, 2),
    (2, 48, 96, 64, 3, 4),
    (1, 16, 8, 256, 1, 4),
]
GPU_SIZES = [(1, 768, 1536, 16, 48, 4), (32, 768, 1536, 16, 48, 4), (8, 1024, 2048, 16, 64, 4)]
GPU_SIZES += [(3, 2560, 5120, 16, 160, 4), (32, 256, 512, 64, 16, 3), (5, 100, 200, 256, 7, 2)]


@emulated
@pytest.mark.parametrize("size", SIZES)
def test_batches_and_widths(emulator, size):
    given = example(OP, Case(_sizes(*size), ALL))
    check_budget(OP, cuda.step, given, torch.bfloat16, keep=("h0",))
    if size[0] in (17, 33):
        check_budget(OP, cuda.step, given, torch.float32)


@emulated
@pytest.mark.parametrize("processors", [1, 2, 5])
def test_every_way_to_share_out_the_work(emulator, processors, monkeypatch):
    monkeypatch.setattr(Device, "processors", processors)
    for size in ((3, 72, 40, 16, 5, 4), (2, 9, 62, 3, 2, 4)):
        for zoh in (False, True):
            given = example(OP, Case(_sizes(*size), ALL, {"zoh": zoh}))
            check_budget(OP, cuda.step, given, torch.bfloat16)


@emulated
@pytest.mark.parametrize("late", [0, 1])
def test_many_steps_with_the_same_exchange(emulator, late, monkeypatch):
    """Launches of several shapes by turns, each of which clears what another one has left."""
    monkeypatch.setattr(Together, "late", late)
    cases = [
        Case(_sizes(*size), ALL) for size in ((2, 16, 24, 4, 2, 4), (9, 8, 16, 8, 3, 3), (1, 24, 8, 4, 1, 2))
    ]
    drawn = [example(OP, case, seed) for seed, case in enumerate(cases)]
    narrow = [
        {k: v.bfloat16() if isinstance(v, torch.Tensor) else v for k, v in given.items()} for given in drawn
    ]
    with torch.no_grad():
        first = [cuda.step(**given) for given in narrow]
        for turn in (0, 1, 1, 2, 0, 0, 2, 1, 0):
            for a, b in zip(cuda.step(**narrow[turn]), first[turn], strict=True):
                assert torch.equal(a, b)


@emulated
def test_memory_of_the_exchange_grows_and_graphs_have_their_own(emulator, monkeypatch):
    monkeypatch.setattr(cuda, "_LEAST_SPACE", 1)
    cuda._spaces.clear()
    for size in ((1, 8, 8, 4, 1, 2), (5, 16, 24, 4, 2, 4), (1, 8, 8, 4, 1, 2)):
        check = example(OP, Case(_sizes(*size), ALL))
        check_budget(OP, cuda.step, check, torch.float32)
    spaces = [cuda._spaces[0, 1][1]]
    given = {k: v.float() if isinstance(v, torch.Tensor) else v for k, v in check.items()}
    for graph in (0, 7, 7, 8, 0):
        monkeypatch.setattr(Device, "graph", graph)
        cuda.step(**given)
        assert cuda._spaces[0, 1][0] == graph
        spaces.append(cuda._spaces[0, 1][1])
    assert [b is a for a, b in pairwise(spaces)] == [True, False, True, False, False]
    cuda._spaces.clear()


@emulated
def test_blocks_that_wait_too_long_say_so(emulator, monkeypatch):
    """A block fewer than the others expect: NaN, a mark, an error at the next call."""
    given = {k: v.float() if isinstance(v, torch.Tensor) else v for k, v in example(OP, OP.cases[2]).items()}
    monkeypatch.setattr(cuda, "PATIENCE", 300)
    launch = Together.launch
    monkeypatch.setattr(
        Together, "launch", lambda self, name, blocks, *a, **kw: launch(self, name, blocks - 1, *a, **kw)
    )
    with torch.no_grad():
        y, _, _ = cuda.step(**given)
        assert y.isnan().any()
        monkeypatch.setattr(Together, "launch", launch)
        with pytest.raises(
            RuntimeError, match="s6_block_step: an earlier call's thread blocks waited too long"
        ):
            cuda.step(**given)
        cuda._spaces.clear()
        assert not cuda.step(**given)[0].isnan().any()


@emulated
def test_strides(emulator):
    for index in (1, 3, 5):
        check_budget(OP, cuda.step, example(OP, OP.cases[index]), torch.float32, layout=strided)


@emulated
def test_numbers_that_are_none_do_not_stop_it(emulator):
    given = {
        k: v.bfloat16() if isinstance(v, torch.Tensor) else v for k, v in example(OP, OP.cases[2]).items()
    }
    given["x"].view(torch.int16)[:] = -1
    with torch.no_grad():
        y, h, _ = cuda.step(**given)
    assert y.isnan().all()
    assert h.isnan().all()


@emulated
def test_op_keeps_torchs_rules(emulator):
    given = example(OP, OP.cases[2])
    names = (
        "x",
        "in_weight",
        "conv_weight",
        "x_weight",
        "dt_weight",
        "a_log",
        "out_weight",
        "h0",
        "conv0",
        *ALL,
    )
    args = (*(given[name].float() for name in names), 1e-5, False)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.quatrain.s6_block_step_cuda.default, args, test_utils=tests)


@pytest.mark.parametrize(
    "sizes", [(768, 1536, 16, 48, 4), (2560, 5120, 16, 160, 4), (64, 128, 256, 4, 2), (8, 3, 1, 1, 2)]
)
@pytest.mark.parametrize("batch", [1, 5, 32])
def test_every_plan_fits(sizes, batch):
    for processors, shared in ((132, SHARED), (108, 163 << 10)):
        for size in (2, 4):
            made = _plan.plan(_plan.Block(*sizes, size), batch, processors, shared)
            assert isinstance(made, _plan.Plan)
            assert min(batch, 16) <= made.batch <= min(batch, 8 * made.tiles)
            assert made.shared_bytes <= shared
            assert made.blocks <= processors
            assert made.blocks * made.channels >= sizes[1] > (made.blocks - 1) * made.channels
            assert made.blocks * made.outs >= sizes[0]
            assert made.channels % 2 == 0
            assert max(made.across) <= _plan.WARPS


def test_a_block_that_does_not_fit_says_why():
    wide = _plan.plan(_plan.Block(8192, 16384, 16, 512, 4, 2), 1, 132, SHARED)
    assert wide == "D = 8192, E = 16384: a block would have more than 128 rows of a matrix"
    small = _plan.plan(_plan.Block(768, 1536, 16, 48, 4, 2), 32, 132, 8 << 10)
    assert small == "E = 1536, N = 16, R = 48: must fit into 8192 bytes"


def right():
    given = example(OP, Case(_sizes(2, 3, 6, 4, 2, 3), ALL))
    return {name: x.float() if isinstance(x, torch.Tensor) else x for name, x in given.items()}


WRONG = [
    ({"x": None}, ShapeError, "x: a NoneType: must be a tensor"),
    ({"in_weight": torch.zeros(6, 3)}, ShapeError, "in_weight: shape (6, 3): must be (2E = 12, D = 3)"),
    ({"x_weight": torch.zeros(9, 6)}, ShapeError, "x_weight: shape (9, 6): must be (R+2N = 10, E = 6)"),
    ({"conv_weight": torch.zeros(6, 1)}, ShapeError, "conv_weight: shape (6, 1): W must be at least 2"),
    ({"a_log": torch.zeros(5, 4)}, ShapeError, "a_log: shape (5, 4): must be (E = 6, N)"),
    (
        {"out_weight": torch.zeros(3, 6).half()},
        ShapeError,
        "out_weight: dtype torch.float16: must be torch.float32",
    ),
    ({"skip": torch.zeros(3)}, ShapeError, "skip: shape (3,): must be (E = 6)"),
    ({"norm_weight": torch.zeros(6)}, ShapeError, "norm_weight: shape (6,): must be (D = 3)"),
    ({"h0": torch.zeros(2, 6, 5)}, StateError, "h0: shape (2, 6, 5): must be (B = 2, E = 6, N = 4)"),
    ({"conv0": torch.zeros(2, 3, 6)}, StateError, "conv0: shape (2, 3, 6): must be (B = 2, W-1 = 2, E = 6)"),
    ({"impl": "nvrtc"}, NoKernelError, "nvrtc: runs on CUDA devices, not on cpu"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG)
def test_wrong_arguments(change, error, message):
    with pytest.raises(error) as caught:
        s6_block_step(**right() | change)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_it_compiles_without_a_device():
    try:
        _nvrtc._nvrtc()
    except OSError:
        pytest.skip("NVRTC is not here")
    for dtype, batch, even in ((torch.bfloat16, 1, 1), (torch.float16, 8, 0), (torch.float32, 1, 1)):
        for architecture in ("sm_80", "sm_90"):
            made = _plan.plan(_plan.Block(768, 1536, 16, 48, 4, dtype.itemsize), batch, 132, SHARED)
            named = (("DATA", _nvrtc.DATA[dtype]), ("VEC", even), ("NORM", even), ("ZOH", 1 - even))
            macros = [f"-D{key}={value}" for key, value in (*named, *made.defines())]
            options = ["--std=c++17", *macros, f"--gpu-architecture={architecture}"]
            assert _nvrtc.compile_source(cuda._source(), options)


def s6_model(dtype=torch.float32, device="cpu", **fields):
    config = ModelConfig(vocab=50, width=64, layers=2, pattern="s6", **fields)
    torch.manual_seed(0)
    return LanguageModel(config).to(device, dtype).eval()


@pytest.mark.parametrize("zoh", [False, True])
def test_a_mixer_hands_over_its_parameters(zoh, monkeypatch):
    mixer = mixer_class("s6")(width=12, state=5, conv=3, zoh=zoh)
    norm, x, state = torch.rand(12), torch.randn(3, 12), mixer.initial_state(3)
    monkeypatch.setattr(s6, "block_step", torch_step)
    with torch.no_grad():
        for _ in range(3):
            y, after = mixer._fused_step(x, state, norm, 0.1)
            want, after_want = mixer.step(torch.nn.functional.rms_norm(x, (12,), norm, 0.1), state)
            torch.testing.assert_close((y, *after), (x + want, *after_want), rtol=1e-5, atol=1e-6)
            plain, _ = mixer._fused_step(x, state, None, 0.0)
            torch.testing.assert_close(plain, mixer.step(x, state)[0], rtol=1e-5, atol=1e-6)
            state = after
        run = s6._BlockRun(mixer, state)
        torch.testing.assert_close(run.residual(x, norm, 0.1), mixer._fused_step(x, state, norm, 0.1)[0])
        state = s6.S6State(*(part.clone() for part in run.state()))
        assert isinstance(run.state(), s6.S6State)
        torch.testing.assert_close(run(x), mixer._fused_step(x, state, None, 0.0)[0])


def test_a_block_and_a_decoder_take_the_mixers_own_sum(monkeypatch):
    """What a GPU does, with torch's operations in the place of the kernel."""
    model = s6_model()
    tokens = torch.randint(0, 50, (2, 9))
    calls = []

    def step(*args, **flags):
        calls.append(args)
        return torch_step(*args, **flags)

    monkeypatch.setattr(s6, "block_step", step)
    monkeypatch.setattr(Recorded, "step", lambda *args: None)
    monkeypatch.setattr(s6.S6, "step_residual", s6.S6._fused_step)
    monkeypatch.setattr(s6.S6, "run", lambda mixer, state: s6._BlockRun(mixer, state))
    with torch.no_grad():
        want, _ = model(tokens)
        state = model.initial_state(2)
        decoder = Decoder(model, model.initial_state(2))
        for t in range(9):
            got, state = model.step(tokens[:, t], state)
            torch.testing.assert_close(got, want[:, t], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(decoder(tokens[:, t]), want[:, t], rtol=1e-4, atol=1e-5)
    assert len(calls) == 2 * 2 * 9
    assert all(args[9] is not None for args in calls)


def test_a_hook_on_a_norm_is_called(monkeypatch):
    model, seen = s6_model(), []
    monkeypatch.setattr(s6.S6, "step_residual", lambda *args: pytest.fail("the norm was passed over"))
    model.backbone.blocks[0].norm.register_forward_hook(lambda *args: seen.append(1))
    with torch.no_grad():
        block = model.backbone.blocks[0]
        block.step(torch.randn(2, 64), block.mixer.initial_state(2))
    assert seen


def gpu(test):
    return pytest.mark.gpu(pytest.mark.filterwarnings("ignore")(test))


def check_forward(given, dtype):
    """The error budget of the results alone, all of it on the GPU."""

    def cast(to):
        return {k: x.to("cuda", dtype).to(to) if isinstance(x, torch.Tensor) else x for k, x in given.items()}

    with torch.no_grad():
        got = cuda.step(**cast(dtype) | {"h0": cast(torch.float32)["h0"]})
        exact = OP.reference(**cast(torch.float64))
        rounding = {} if dtype is torch.float32 else {"operand_dtype": dtype}
        plain = OP.reference(**cast(torch.float32), **rounding)
    for g, p, e in zip(got, plain, exact, strict=True):
        check_errors(g, p, e)


@gpu
@pytest.mark.parametrize("size", [*SIZES, *GPU_SIZES])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sizes_on_a_gpu(dtype, size):
    check_forward(example(OP, Case(_sizes(*size), ALL, {"zoh": size[0] == 2})), dtype)


@gpu
def test_strides_on_a_gpu():
    for index in (1, 3, 5):
        check_budget(OP, cuda.step, example(OP, OP.cases[index]), torch.float32, "cuda", layout=strided)


def on_gpu(*sizes, dtype=torch.bfloat16):
    drawn = example(OP, Case(_sizes(*sizes), ALL))
    return {name: x.to("cuda", dtype) if isinstance(x, torch.Tensor) else x for name, x in drawn.items()}


@gpu
@pytest.mark.parametrize("batch", [1, 32])
def test_a_captured_graph_follows_its_inputs_and_compiled_runs_are_equal(batch):
    given = on_gpu(batch, 768, 1536, 16, 48, 4)

    def thrice():
        now = dict(given)
        for _ in range(3):
            y, h, conv = s6_block_step(**now, impl="nvrtc")
            now |= {"x": y, "h0": h, "conv0": conv}
        return y, h, conv

    with torch.no_grad():
        thrice()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = thrice()
        for _ in range(5):  # an odd number of launches: the halves of the exchange's memory swap their parts
            given["x"].copy_(torch.randn_like(given["x"]))
            graph.replay()
            for a, b in zip(found, thrice(), strict=True):
                assert torch.equal(a, b)
        compiled = torch.compile(lambda **kw: s6_block_step(**kw, impl="nvrtc"), fullgraph=True)(**given)
        for a, b in zip(compiled, s6_block_step(**given, impl="nvrtc"), strict=True):
            assert torch.equal(a, b)


@gpu
def test_streams_and_shapes_by_turns():
    """Two thousand launches on two streams and of two shapes give what the first ones gave."""
    shapes = [on_gpu(1, 768, 1536, 16, 48, 4), on_gpu(7, 256, 512, 16, 16, 4)]
    streams = [torch.cuda.Stream() for _ in range(2)]
    with torch.no_grad():
        first = [s6_block_step(**given, impl="nvrtc") for given in shapes]
        torch.cuda.synchronize()
        wrong = torch.zeros(2, device="cuda")
        for turn in range(1000):
            for i, stream in enumerate(streams):
                with torch.cuda.stream(stream):
                    which = turn % 3 % 2
                    y, h, _ = s6_block_step(**shapes[which], impl="nvrtc")
                    wrong[i] += (y != first[which][0]).sum() + (h != first[which][1]).sum()
        torch.cuda.synchronize()
    assert wrong.sum() == 0


@gpu
def test_a_mixer_steps_with_it_as_it_runs_forward():
    stepping.check_mixer("s6", "s6_block_step", 1e-4)


@gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [2, 40])
def test_a_decoder_reads_what_the_model_says(dtype, batch):
    """40 rows are beyond the kernel: the parts run."""
    stepping.check_model(s6_model(dtype, "cuda"), batch)


@gpu
def test_gradients_and_autocast_take_the_parts():
    model = s6_model(device="cuda")
    token = torch.tensor([3, 4], device="cuda")
    model.step(token, model.initial_state(2))[0].sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        assert model.step(token, model.initial_state(2))[0].dtype == torch.bfloat16
