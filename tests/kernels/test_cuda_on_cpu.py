"""The CUDA kernels' logic on a CPU, block after block: the same sources, compiled by the C++ compiler."""

import ctypes
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from tests.test_kernels import check_budget, example, strided

from quatrain.kernels import OPS, Case, _nvrtc
from quatrain.kernels.s6_scan import _launch, cuda

COMPILER = shutil.which("g++")
pytestmark = pytest.mark.skipif(
    COMPILER is None or sys.platform != "linux", reason="needs g++ and Linux's fibers"
)
HEADER = Path(__file__).with_name("cuda_on_cpu.h")
OP = OPS["s6_scan"]


class Emulated:
    """Stands for `_nvrtc.Kernels`."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library, self.launched = library, []

    def launch(self, name, blocks, threads, shared, args):
        self.launched.append(name)
        self.library.emulate(getattr(self.library, name), blocks, threads, shared, ctypes.byref(args))


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emulator")
    patch = pytest.MonkeyPatch()

    @cache
    def kernels(text, defines, device):
        name = "-".join(str(value) for _, value in defines) + str(len(text))
        file, library = folder / f"{name}.cpp", folder / f"{name}.so"
        file.write_text(f"{text}\nEMULATOR_ENTRY\n")
        macros = [f"-D{key}={value}" for key, value in defines]
        flags = ["-O1", "-std=c++17", "-shared", "-fPIC", "-w", "-include", str(HEADER), *macros]
        subprocess.run([COMPILER, *flags, "-o", str(library), str(file)], check=True)
        return Emulated(ctypes.CDLL(str(library)))

    patch.setattr(_nvrtc, "kernels", kernels)
    patch.setattr(_launch, "processors", lambda device: 64)
    library = torch.library.Library("quatrain", "IMPL")
    library.impl("s6_scan_cuda", cuda.forward, "CPU")
    library.impl("s6_scan_cuda_backward", cuda.backward, "CPU")
    yield kernels
    library._destroy()
    patch.undo()


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in OP.cases])
@pytest.mark.parametrize(
    ("dtype", "chunks"), [(torch.bfloat16, False), (torch.float32, True)], ids=["whole", "chunks"]
)
def test_matches_the_definition(emulator, case, dtype, chunks, monkeypatch):
    if chunks:
        monkeypatch.setattr(_launch, "_LEAST_CHUNK", 1)
    check_budget(OP, cuda.scan, example(OP, case), dtype)


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
    monkeypatch.setattr(_launch, "_LEAST_CHUNK", 1)
    check_budget(OP, cuda.scan, example(OP, case), dtype)
