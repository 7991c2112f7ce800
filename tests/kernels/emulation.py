"""CUDA kernels on a CPU: the same sources, compiled by the C++ compiler with one of the headers here."""

import ctypes
import shutil
import subprocess
import sys
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch

from quatrain.kernels import _nvrtc

COMPILER = shutil.which("g++")
needed = pytest.mark.skipif(
    COMPILER is None or sys.platform != "linux", reason="needs g++ and Linux's fibers"
)


class Alone:
    """Stands for `_nvrtc.Kernels`: block after block, with cuda_on_cpu.h."""

    header = "cuda_on_cpu.h"

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library, self.launched = library, []

    def launch(self, name, blocks, threads, shared, args):
        self.launched.append(name)
        self.library.emulate(getattr(self.library, name), blocks, threads, shared, ctypes.byref(args))


class Together(Alone):
    """Blocks of a cluster or of a grid at once, their copies in any order, with cluster_on_cpu.h."""

    header = "cluster_on_cpu.h"
    together = 1 << 30  # blocks that run at once
    late = 0

    def launch(self, name, blocks, threads, shared, args, *, cluster, cooperative):
        together = min(self.together, blocks) if cooperative else cluster
        function = getattr(self.library, name)
        self.library.emulate(
            function, blocks, together, cluster, threads, shared, self.late, ctypes.byref(args)
        )


@contextmanager
def emulating(folder, kind, ops, **device):
    """Kernels are compiled for the CPU into ``folder`` and run as ``kind`` says.

    ``ops``: functions that torch's library takes on a CPU, by name; ``device``: what `_nvrtc` says of it.
    """

    @cache
    def kernels(text, defines, number):
        name = "-".join([str(len(text)), *(str(value) for _, value in defines)])
        file, library = folder / f"{name}.cpp", folder / f"{name}.so"
        file.write_text(f"{text}\nEMULATOR_ENTRY\n")
        header = Path(__file__).with_name(kind.header)
        macros = [f"-D{key}={value}" for key, value in defines]
        flags = ["-O1", "-std=c++17", "-shared", "-fPIC", "-w", "-include", str(header), *macros]
        subprocess.run([COMPILER, *flags, "-o", str(library), str(file)], check=True)
        return kind(ctypes.CDLL(str(library)))

    library = torch.library.Library("quatrain", "IMPL")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("kernels", kernels), *device.items()):
            patch.setattr(_nvrtc, name, value)
        for name, run in ops.items():
            library.impl(name, run, "CPU")
        try:
            yield patch
        finally:
            library._destroy()
