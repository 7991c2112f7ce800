"""The recurrent scans' CUDA kernel on a CPU: the same source, all blocks of a group at once, copies in any order."""

import ctypes
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from tests.test_kernels import WIDE_PARAMETERS, check_budget, example, strided

from quatrain.kernels import OPS, Case, _nvrtc, _recurrent_cuda
from quatrain.kernels._recurrent_cuda import _launch, _plan
from quatrain.kernels.gru_scan import cuda as gru
from quatrain.kernels.lstm_scan import cuda as lstm
from quatrain.kernels.rnn_scan import cuda as rnn

COMPILER = shutil.which("g++")
pytestmark = pytest.mark.skipif(
    COMPILER is None or sys.platform != "linux", reason="needs g++ and Linux's fibers"
)
HEADER = Path(__file__).with_name("cluster_on_cpu.h")
SCANS = {"rnn_scan": rnn.scan, "lstm_scan": lstm.scan, "gru_scan": gru.scan}


class Emulated:
    """Stands for `_nvrtc.Kernels`."""

    together = 1 << 30  # blocks that run at once
    late = 0

    def __init__(self, library):
        self.library = library

    def launch(self, name, blocks, threads, shared, args, *, cluster, cooperative):
        together = min(self.together, blocks) if cooperative else cluster
        function = getattr(self.library, name)
        self.library.emulate(
            function, blocks, together, cluster, threads, shared, self.late, ctypes.byref(args)
        )


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
    patch.setattr(_nvrtc, "processors", lambda device: 132)
    library = torch.library.Library("quatrain", "IMPL")
    library.impl("recurrent_cuda", _recurrent_cuda.forward, "CPU")
    library.impl("recurrent_cuda_backward", _recurrent_cuda.backward, "CPU")
    yield kernels
    library._destroy()
    patch.undo()


CASES = [
    pytest.param(name, case, id=f"{name}-{case.name}")
    for name in SCANS
    for case in OPS[name].cases
    if case.flags.get("reset") != "before"
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize(("name", "case"), CASES)
def test_matches_the_definition(emulator, name, case, dtype):
    check_budget(OPS[name], SCANS[name], example(OPS[name], case), dtype)
