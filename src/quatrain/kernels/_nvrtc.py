"""CUDA C++ compiled at run time by NVRTC, which comes with torch's CUDA wheel, and run on torch's stream.

Nothing is loaded or compiled at import. Machine code is kept in ``~/.cache/quatrain/kernels`` under a key of
the source, the options, the architecture and NVRTC's version.
"""

import ctypes
import hashlib
import sys
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from quatrain._files import write_atomic
from quatrain.errors import NoKernelError

DATA = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # the kernels' numbers for data types
_OLDEST = (8, 0)  # compute capability: bfloat16 conversions
_SHARED_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_ANY_CLUSTER = 14  # CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
_COOPERATIVE, _CLUSTER = 2, 4  # CU_LAUNCH_ATTRIBUTE_: all blocks run at once; blocks form clusters
_PLAIN_SHARED = 48 << 10  # what a block gets without asking


def why_not() -> str | None:
    """Why kernels cannot be compiled and run here; None if they can. Reads no device."""
    if torch.version.cuda is None:
        return "this build of torch has no CUDA"
    if (reason := _missing("NVRTC", _nvrtc)) is not None:
        return reason
    return _missing("the CUDA driver", _driver)


def why_not_for(x: torch.Tensor) -> str | None:
    """Why kernels cannot run on data such as x; reads metadata only."""
    if x.device.type != "cuda":
        return f"runs on CUDA devices, not on {x.device.type}"
    if x.dtype not in DATA:
        return f"dtype {x.dtype}: must be float32, float16 or bfloat16"
    reason: str | None = _why_not_here(x.device.index)
    return reason


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _why_not_here(device: int | None) -> str | None:
    """Why not on this machine: the same for all arguments of a device."""
    if (reason := why_not()) is not None:
        return reason
    capability = torch.cuda.get_device_capability(device)
    if capability < _OLDEST:
        return f"compute capability {capability[0]}.{capability[1]}: must be at least 8.0"
    return None


def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU."""
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


@cache
def residents(device: int) -> tuple[int, ...]:
    """How many clusters of 1, 2, .. 16 blocks run at once, where a block takes a whole multiprocessor.

    Parts of a chip have different numbers of working multiprocessors, so two chips of a name may differ.
    """
    first = processors(torch.device("cuda", device))
    if torch.cuda.get_device_capability(device) < (9, 0):
        return (first,)
    empty = kernels('extern "C" __global__ void empty() {}', (), device)
    shared = shared_bytes(device)
    return first, *(empty.resident_clusters("empty", 256, shared, size) for size in range(2, 17))


def shared_bytes(device: int) -> int:
    """Shared memory that a block can have."""
    about: Any = torch.cuda.get_device_properties(device)  # whose stubs know less than it has
    found: int = about.shared_memory_per_block_optin
    return found


def capture(device: int) -> int:
    """The number of the CUDA graph that torch's current stream is being captured for; 0 for none."""
    if not torch.cuda.is_current_stream_capturing():
        return 0
    stream = ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream)
    state, number = ctypes.c_int(), ctypes.c_ulonglong()
    about = ctypes.byref(state), ctypes.byref(number)
    if _driver().cuStreamGetCaptureInfo_v2(stream, *about, None, None, None):
        raise RuntimeError("CUDA driver: a stream that is being captured does not say for which graph")
    return number.value


@cache
def _missing(name: str, load: Any) -> str | None:
    try:
        load()
    except OSError as e:
        return f"{name} cannot be loaded ({e})"
    return None


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


@cache
def _nvrtc() -> ctypes.CDLL:
    """The NVRTC of torch's CUDA version: from its wheel, or from wherever the system finds it."""
    major = (torch.version.cuda or "").split(".")[0]
    windows = sys.platform == "win32"
    pattern = f"nvrtc64_{major}*_0.dll" if windows else f"libnvrtc.so.{major}*"
    roots = [Path(torch.__file__).parent / "lib"]
    spec = find_spec("nvidia")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        roots += [p for p in Path(place).glob("*/bin/x86_64" if windows else "*/lib") if p.is_dir()]
    found = sorted(path for root in roots for path in root.glob(pattern) if ".alt." not in path.name)
    for path in found:
        return ctypes.CDLL(str(path))
    return ctypes.CDLL(f"nvrtc64_{major}0_0.dll" if windows else f"libnvrtc.so.{major}")


def source(*names: str) -> str:
    """The text of ``"package:file"`` resources, one after the other."""
    parts = []
    for name in names:
        package, file = name.split(":")
        parts.append((files(package) / file).read_text(encoding="utf-8"))
    return "\n".join(parts)


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute; the value is a union of 64 bytes that begins with up to three numbers."""

    _fields_ = (
        ("key", ctypes.c_int),
        ("pad", ctypes.c_char * 4),
        ("value", ctypes.c_uint * 16),
    )


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    )


class Kernels:
    """The kernels of one compiled program, on one device."""

    def __init__(self, code: bytes, device: int) -> None:
        self._device = device
        self._driver = _driver()
        self._functions: dict[tuple[str, int], ctypes.c_void_p] = {}
        self._context = ctypes.c_void_p()
        with torch.cuda.device(device):
            torch.cuda.current_stream()  # torch makes the device's context current
            self._check(self._driver.cuDevicePrimaryCtxRetain(ctypes.byref(self._context), self._handle()))
            self._check(self._driver.cuCtxSetCurrent(self._context))
            self._module = ctypes.c_void_p()
            self._check(self._driver.cuModuleLoadData(ctypes.byref(self._module), code))

    def _handle(self) -> int:
        """The driver's number of the device, found by its identity: the two may be ordered differently."""
        handle = ctypes.c_int()
        bus: Any = torch.cuda.get_device_properties(self._device)
        name = f"{bus.pci_domain_id:04x}:{bus.pci_bus_id:02x}:{bus.pci_device_id:02x}.0"
        if self._driver.cuDeviceGetByPCIBusId(ctypes.byref(handle), name.encode()):
            self._check(self._driver.cuDeviceGet(ctypes.byref(handle), self._device))
        return handle.value

    def _check(self, result: int) -> None:
        if result:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(result, ctypes.byref(text))
            raise RuntimeError(f"CUDA driver: {(text.value or b'unknown error').decode()} ({result})")

    def _function(self, name: str, shared: int) -> ctypes.c_void_p:
        key = (name, shared)
        if key not in self._functions:
            function = ctypes.c_void_p()
            self._check(self._driver.cuModuleGetFunction(ctypes.byref(function), self._module, name.encode()))
            if shared > _PLAIN_SHARED:
                self._check(self._driver.cuFuncSetAttribute(function, _SHARED_BYTES, shared))
            self._functions[key] = function
        return self._functions[key]

    def launch(
        self,
        name: str,
        blocks: int,
        threads: int,
        shared: int,
        args: ctypes.Structure,
        *,
        cluster: int = 1,
        cooperative: bool = False,
    ) -> None:
        """Queue ``name<<<blocks, threads, shared>>>(args)`` on torch's current stream of the device.

        Args:
            cluster: blocks of a cluster; more than 8 where the device has them.
            cooperative: all blocks run at once, or the launch fails.
        """
        if self._device != torch.cuda.current_device():
            with torch.cuda.device(self._device):
                return self.launch(
                    name, blocks, threads, shared, args, cluster=cluster, cooperative=cooperative
                )
        self._check(self._driver.cuCtxSetCurrent(self._context))
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(args))
        stream = ctypes.c_void_p(torch.cuda.current_stream(self._device).cuda_stream)
        function = self._function(name, shared)
        if cluster > 1 or cooperative:
            if cluster > 8:
                self._check(self._driver.cuFuncSetAttribute(function, _ANY_CLUSTER, 1))
            config, _keep = _launch_config(blocks, threads, shared, stream, cluster, cooperative)
            self._check(self._driver.cuLaunchKernelEx(ctypes.byref(config), function, pointers, None))
            return
        self._check(
            self._driver.cuLaunchKernel(function, blocks, 1, 1, threads, 1, 1, shared, stream, pointers, None)
        )

    def resident_clusters(self, name: str, threads: int, shared: int, cluster: int) -> int:
        """Clusters of this size that the device runs at once."""
        function = self._function(name, shared)
        if cluster > 8:
            self._check(self._driver.cuFuncSetAttribute(function, _ANY_CLUSTER, 1))
        config, _keep = _launch_config(cluster, threads, shared, ctypes.c_void_p(), cluster, False)
        count = ctypes.c_int()
        self._check(
            self._driver.cuOccupancyMaxActiveClusters(ctypes.byref(count), function, ctypes.byref(config))
        )
        return count.value


def _launch_config(
    blocks: int, threads: int, shared: int, stream: ctypes.c_void_p, cluster: int, cooperative: bool
) -> tuple[_Config, Any]:
    """The launch and the attributes it points to, which have to live as long."""
    wanted = [(_CLUSTER, (cluster, 1, 1))] if cluster > 1 else []
    if cooperative:
        wanted.append((_COOPERATIVE, (1, 0, 0)))
    attributes = (_Attribute * max(len(wanted), 1))()
    for attribute, (key, value) in zip(attributes, wanted, strict=False):
        attribute.key = key
        attribute.value[:3] = value
    config = _Config((blocks, 1, 1), (threads, 1, 1), shared, stream.value, attributes, len(wanted))
    return config, attributes


@cache
def kernels(text: str, defines: tuple[tuple[str, int], ...], device: int) -> Kernels:
    """Compile CUDA C++ with macros for a device, or take it from the cache, and load it.

    Raises:
        NoKernelError: NVRTC refuses the source; the message holds its log.
    """
    options = ["--std=c++17", *(f"-D{name}={value}" for name, value in defines)]
    options.append(f"--gpu-architecture={_architecture(torch.cuda.get_device_capability(device))}")
    version = (ctypes.c_int(), ctypes.c_int())
    _nvrtc().nvrtcVersion(ctypes.byref(version[0]), ctypes.byref(version[1]))
    parts = (text, *options, f"{version[0].value}.{version[1].value}")
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    path = Path.home() / ".cache" / "quatrain" / "kernels" / f"{key}.cubin"
    try:
        return Kernels(path.read_bytes(), device)
    except (OSError, RuntimeError):  # not there, or not what it was
        pass
    code = compile_source(text, options)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, code)
    except OSError:
        pass  # a read-only home costs a compilation per process
    return Kernels(code, device)


def _architecture(capability: tuple[int, int]) -> str:
    """``sm_90``; for a device newer than NVRTC, the newest ``compute_`` that the driver can finish."""
    nvrtc, count = _nvrtc(), ctypes.c_int()
    nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count))
    known = (ctypes.c_int * count.value)()
    nvrtc.nvrtcGetSupportedArchs(known)
    wanted = 10 * capability[0] + capability[1]
    if wanted in list(known):
        return f"sm_{wanted}"
    return f"compute_{max(arch for arch in known if arch < wanted)}"


def compile_source(text: str, options: list[str]) -> bytes:
    """Machine code of CUDA C++ (PTX if the options name a ``compute_`` architecture).

    Raises:
        NoKernelError: NVRTC refuses the source; the message holds its log.
    """
    nvrtc, program = _nvrtc(), ctypes.c_void_p()
    _require(nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None))
    try:
        flags = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if nvrtc.nvrtcCompileProgram(program, len(options), flags):
            log = _read(nvrtc, "nvrtcGetProgramLog", program)
            raise NoKernelError(f"NVRTC: {log.rstrip(bytes(1)).decode(errors='replace').strip()}")
        ptx = any("compute_" in option for option in options)
        return _read(nvrtc, "nvrtcGetPTX" if ptx else "nvrtcGetCUBIN", program)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _read(nvrtc: ctypes.CDLL, name: str, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _require(getattr(nvrtc, f"{name}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _require(getattr(nvrtc, name)(program, buffer))
    return buffer.raw


def _require(result: int) -> None:
    if result:
        raise NoKernelError(f"NVRTC: error {result}")
