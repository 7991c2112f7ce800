"""The C++ core: plain shared libraries, one for each instruction set, loaded with ctypes on first use.

`missing` says whether an op may use it, `run` calls an entry point. An argument structure is a row of
64-bit integers (``abi.h``); `tensor` gives the part of one tensor.
"""

import ctypes
import os
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

import torch  # its OpenMP runtime has to be there before the core is loaded
from torch import Tensor

ISAS = ("avx512bf16", "avx512", "avx2", "base")  # best first

DTYPES = {torch.float32: 1, torch.float64: 2, torch.bfloat16: 3, torch.float16: 4}
ABSENT = (0, 0, 0, 0, 0, 0)

_forced: list[str] = []
_process = os.getpid()


@cache
def _found() -> dict[str, Path]:
    """The libraries that were built and that this processor can run, best first."""
    found = {}
    for isa in ISAS:
        with as_file(files(__name__) / f"libquatrain_{isa}.so") as path:
            if path.is_file():
                found[isa] = path
    if "base" not in found:
        return {}
    detect = ctypes.CDLL(str(found["base"])).qt_isa
    detect.restype = ctypes.c_char_p
    best = ISAS.index(detect().decode())
    return {isa: path for isa, path in found.items() if ISAS.index(isa) >= best}


@cache
def _load(isa: str) -> ctypes.CDLL:
    return ctypes.CDLL(str(_found()[isa]))


@cache
def _reason() -> str | None:
    try:
        return None if _found() else "the C++ core was not built (no compiler at install)"
    except OSError as error:
        return f"the C++ core does not load ({error})".replace("\n", " ")


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def missing() -> str | None:
    """Why the core cannot be used, in one line; None if it can."""
    return _reason()


def library() -> ctypes.CDLL | None:
    """The library of the best instruction set that this processor runs, or of the forced one."""
    if _reason() is not None:
        return None
    return _load(_forced[-1] if _forced else next(iter(_found())))


def available() -> tuple[str, ...]:
    """Instruction sets that were built and run here, best first."""
    return () if _reason() is not None else tuple(_found())


@contextmanager
def forced(isa: str) -> Iterator[None]:
    """Use the library of ``isa``, one of `available`, inside the context. For tests."""
    if isa not in available():
        raise ValueError(f"isa = {isa!r}: must be one of {', '.join(available())}")
    _forced.append(isa)
    try:
        yield
    finally:
        _forced.pop()


_functions: dict[tuple[str, str], Callable[[int], int]] = {}


def function(name: str) -> Callable[[int], int]:
    """The entry point ``int name(const int64_t* arguments)`` of the chosen library."""
    isa = _forced[-1] if _forced else ""
    found = _functions.get((name, isa))
    if found is None:
        loaded = library()
        if loaded is None:
            raise RuntimeError(_reason())
        entry = getattr(loaded, name)
        entry.argtypes, entry.restype = (ctypes.c_void_p,), ctypes.c_int
        found = _functions[name, isa] = entry
    return found


def tensor(x: Tensor | None) -> tuple[int, ...]:
    """``QtTensor``: address, dtype, four strides in elements, missing leading dimensions first."""
    if x is None:
        return ABSENT
    strides = x.stride()
    return (x.data_ptr(), DTYPES[x.dtype], *(0,) * (4 - len(strides)), *strides)


def places(lengths: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """First step and length of each sequence as dense int64 tensors; None where it is 0 and the whole row."""
    if cu_seqlens is not None:
        bounds = cu_seqlens.to(torch.int64)
        return bounds[:-1].contiguous(), bounds.diff()
    return None, None if lengths is None else lengths.to(torch.int64).contiguous()


def run(name: str, values: list[int]) -> None:
    """Call the entry point with the arguments packed as one row of 64-bit integers."""
    packed = array("q", values)
    code = function(name)(packed.buffer_info()[0])
    if code:
        raise RuntimeError(f"{name}: the core refused its arguments (code {code})")


def sizes(name: str, values: list[int], places: tuple[int, ...]) -> tuple[int, ...]:
    """Call an entry point that fills some of its arguments in, and return those at ``places``."""
    packed = array("q", values)
    function(name)(packed.buffer_info()[0])
    return tuple(packed[i] for i in places)


def threads() -> int:
    """How many threads torch would use; one in a forked child, where OpenMP's threads are gone."""
    return torch.get_num_threads() if os.getpid() == _process else 1
