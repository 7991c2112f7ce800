"""One step of a Mamba block: the CUDA kernel on a CPU, its machine code, what a GPU shows."""

import ctypes
import subprocess
from functools import cache

import pytest
import torch
from tests.kernels.test_recurrent_on_cpu import COMPILER, HEADER, Emulated, pytestmark
from tests.test_kernels import check_budget, example, strided

from quatrain.errors import NoKernelError, ShapeError, StateError
from quatrain.infer._decoder import Decoder
from quatrain.kernels import OPS, Case, _nvrtc, s6_block_step
from quatrain.kernels.s6_block_step import _plan, _sizes, cuda
from quatrain.mixers import mixer_class
from quatrain.model.config import ModelConfig
from quatrain.model.lm import LanguageModel

OP = OPS["s6_block_step"]
emulated = pytestmark
DTYPES = [torch.bfloat16, torch.float32, torch.float16]
ALL = ("norm_weight", "conv_bias", "dt_bias", "skip")
SHARED = 227 << 10


class Device:
    """What a test's device says of itself."""

    processors = 3
    graph = 0


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emulator")
    patch = pytest.MonkeyPatch()

    @cache
    def kernels(text, defines, device):
        name = "-".join(str(value) for _, value in defines)
        file, library = folder / f"{name}.cpp", folder / f"{name}.so"
        file.write_text(f"{text}\nEMULATOR_ENTRY\n")
        macros = [f"-D{key}={value}" for key, value in defines]
        flags = ["-O1", "-std=c++17", "-shared", "-fPIC", "-w", "-include", str(HEADER), *macros]
        subprocess.run([COMPILER, *flags, "-o", str(library), str(file)], check=True)
        return Emulated(ctypes.CDLL(str(library)))

    patch.setattr(_nvrtc, "kernels", kernels)
    patch.setattr(_nvrtc, "processors", lambda device: Device.processors)
    patch.setattr(_nvrtc, "shared_bytes", lambda device: SHARED)
    patch.setattr(_nvrtc, "capture", lambda device: Device.graph)
    patch.setattr(cuda, "_order", lambda device: (1, Device.graph))
    library = torch.library.Library("quatrain", "IMPL")
    library.impl("s6_block_step_cuda", cuda._run_traced, "CPU")
    yield kernels
    library._destroy()
    cuda._spaces.clear()
    patch.undo()


@emulated
@pytest.mark.parametrize("case", OP.cases, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_the_definition(emulator, case, dtype):
    check_budget(OP, cuda.step, example(OP, case), dtype)


SIZES = [  # B, D, E, N, R, W
    (1, 64, 128, 16, 4, 4),
    (17, 32, 24, 8, 2, 4),
    (64, 24, 16, 4, 3, 3),
    (33, 7, 10, 5, 9, 2),
    (2, 48, 96, 64, 3, 4),
    (1, 16, 8, 256, 1, 4),
]
GPU_SIZES = [(1, 768, 1536, 16, 48, 4), (64, 768, 1536, 16, 48, 4), (8, 1024, 2048, 16, 64, 4)]
GPU_SIZES += [(3, 2560, 5120, 16, 160, 4), (64, 256, 512, 64, 16, 3), (5, 100, 200, 256, 7, 2)]


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
    monkeypatch.setattr(Emulated, "late", late)
    cases = [Case(_sizes(*size), ALL) for size in ((2, 16, 24, 4, 2, 4), (9, 8, 16, 8, 3, 3), (1, 24, 8, 4, 1, 2))]
    drawn = [example(OP, case, seed) for seed, case in enumerate(cases)]
    narrow = [{k: v.bfloat16() if isinstance(v, torch.Tensor) else v for k, v in given.items()} for given in drawn]
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
    plain = cuda._spaces[0, 1][1]
    for graph in (7, 7, 8):
        monkeypatch.setattr(Device, "graph", graph)
        cuda.step(**{k: v.float() if isinstance(v, torch.Tensor) else v for k, v in check.items()})
        assert cuda._spaces[0, 0][0] == graph
    assert cuda._spaces[0, 1][1] is plain
    cuda._spaces.clear()


@emulated
def test_blocks_that_wait_too_long_say_so(emulator, monkeypatch):
    """A block fewer than the others expect: NaN, a mark, an error at the next call."""
    given = {k: v.float() if isinstance(v, torch.Tensor) else v for k, v in example(OP, OP.cases[2]).items()}
    monkeypatch.setattr(cuda, "PATIENCE", 300)
    launch = Emulated.launch
    monkeypatch.setattr(Emulated, "launch", lambda self, name, blocks, *a, **kw: launch(self, name, blocks - 1, *a, **kw))
    with torch.no_grad():
        y, _, _ = cuda.step(**given)
        assert y.isnan().any()
        monkeypatch.setattr(Emulated, "launch", launch)
        with pytest.raises(RuntimeError, match="s6_block_step: an earlier call's thread blocks waited too long"):
            cuda.step(**given)
        cuda._spaces.clear()
        assert not cuda.step(**given)[0].isnan().any()


@emulated
def test_strides(emulator):
    for index in (1, 3, 5):
        check_budget(OP, cuda.step, example(OP, OP.cases[index]), torch.float32, layout=strided)


@emulated
def test_numbers_that_are_none_do_not_stop_it(emulator):
    given = {k: v.bfloat16() if isinstance(v, torch.Tensor) else v for k, v in example(OP, OP.cases[2]).items()}
    given["x"].view(torch.int16)[:] = -1
    with torch.no_grad():
        y, h, _ = cuda.step(**given)
    assert y.isnan().all()
    assert h.isnan().all()


@emulated
def test_op_keeps_torchs_rules(emulator):
    given = example(OP, OP.cases[2])
    names = ("x", "in_weight", "conv_weight", "x_weight", "dt_weight", "a_log", "out_weight", "h0", "conv0", *ALL)
    args = (*(given[name].float() for name in names), 1e-5, False)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.quatrain.s6_block_step_cuda.default, args, test_utils=tests)


@pytest.mark.parametrize("sizes", [(768, 1536, 16, 48, 4), (2560, 5120, 16, 160, 4), (64, 128, 256, 4, 2), (8, 3, 1, 1, 2)])
@pytest.mark.parametrize("batch", [1, 5, 64])
def test_every_plan_fits(sizes, batch):
    for processors, shared in ((132, SHARED), (108, 163 << 10)):
        for size in (2, 4):
            made = _plan.plan(_plan.Block(*sizes, size), min(batch, _plan.rows_at_once(size)), processors, shared)
            assert isinstance(made, _plan.Plan)
            assert made.blocks <= processors
            assert made.blocks * made.channels >= sizes[1] > (made.blocks - 1) * made.channels
            assert made.blocks * made.outs >= sizes[0]
            assert made.channels % 2 == 0
            assert max(made.across) <= _plan.WARPS


def test_a_block_that_does_not_fit_says_why():
    wide = _plan.plan(_plan.Block(8192, 16384, 16, 512, 4, 2), 1, 132, SHARED)
    assert wide == "D = 8192, E = 16384: a block would have more than 128 rows of a matrix"
    small = _plan.plan(_plan.Block(768, 1536, 16, 48, 4, 2), 64, 132, 48 << 10)
    assert small == "E = 1536, N = 16, R = 48: must fit into 49152 bytes"


def right():
    given = example(OP, Case(_sizes(2, 3, 6, 4, 2, 3), ALL))
    return {name: x.float() if isinstance(x, torch.Tensor) else x for name, x in given.items()}


WRONG = [
    ({"x": None}, ShapeError, "x: a NoneType: must be a tensor"),
    ({"in_weight": torch.zeros(6, 3)}, ShapeError, "in_weight: shape (6, 3): must be (2E = 12, D = 3)"),
    ({"x_weight": torch.zeros(9, 6)}, ShapeError, "x_weight: shape (9, 6): must be (R+2N = 10, E = 6)"),
    ({"conv_weight": torch.zeros(6, 1)}, ShapeError, "conv_weight: shape (6, 1): W must be at least 2"),
    ({"a_log": torch.zeros(5, 4)}, ShapeError, "a_log: shape (5, 4): must be (E = 6, N)"),
    ({"out_weight": torch.zeros(3, 6).half()}, ShapeError, "out_weight: dtype torch.float16: must be torch.float32"),
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
