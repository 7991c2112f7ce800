"""The loader of the C++ core: which library runs, what it says where there is none, threads and forks."""

import ctypes
import os
import subprocess
import sys

import pytest
import torch
from tests import needs

from quatrain.kernels import _core


@pytest.fixture
def unbuilt(monkeypatch, tmp_path):
    """As after an install without a compiler."""
    monkeypatch.setattr(_core, "files", lambda package: tmp_path)
    caches = (_core._found, _core._reason)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def count(tasks: int, threads: int) -> int:
    entry = _core.library().qt_count
    entry.argtypes, entry.restype = (ctypes.c_int64, ctypes.c_int64), ctypes.c_int64
    return entry(tasks, threads)


@needs.core
def test_the_best_library_runs_first_and_each_can_be_forced():
    isas = _core.available()
    assert isas == tuple(isa for isa in _core.ISAS if isa in isas)
    assert isas[-1] == "base"
    for isa in isas:
        with _core.forced(isa):
            assert f"libquatrain_{isa}.so" in _core.library()._name
            assert count(100, 3) == 100
    assert f"libquatrain_{isas[0]}.so" in _core.library()._name


@needs.core
def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(ValueError, match=r"isa = 'sse9': must be one of .*base"), _core.forced("sse9"):
        pass


def test_without_a_build_the_reason_is_one_line(unbuilt):
    assert _core.library() is None
    assert _core.available() == ()
    assert "not built" in _core.missing()
    with pytest.raises(RuntimeError, match="not built"):
        _core.function("qt_nothing")


@needs.core
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("tasks", [0, 1, 2, 1000])
def test_every_task_runs_once(tasks, threads):
    assert count(tasks, threads) == tasks


@needs.core
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_runs_on_one_thread_and_does_not_hang():
    code = """
import ctypes, os, torch
from quatrain.kernels import _core
entry = _core.library().qt_count
entry.argtypes, entry.restype = (ctypes.c_int64, ctypes.c_int64), ctypes.c_int64
torch.set_num_threads(2)
assert entry(100, 2) == 100 and _core.threads() == 2
child = os.fork()
if child == 0:
    os._exit(0 if entry(100, 2) == 100 and _core.threads() == 1 else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


def test_tensors_are_described_by_address_dtype_and_strides():
    x = torch.zeros(2, 3, dtype=torch.bfloat16)
    assert _core.tensor(x) == (x.data_ptr(), 3, 0, 0, 3, 1)
    assert _core.tensor(None) == (0, 0, 0, 0, 0, 0)
