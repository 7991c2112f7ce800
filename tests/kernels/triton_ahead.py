"""The Triton kernels compiled for GPUs that are not here: NVIDIA's sm_90 and AMD's gfx942.

Run by test_triton.py in a process of its own. Types that do not fit, and what the language lacks, show here;
the interpreter, which is Python, takes both.
"""

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from quatrain.kernels.causal_conv import _triton_kernels as conv
from quatrain.kernels.s6_scan import _triton_kernels as s6

WIDE, DATA, INDEX = "*fp32", "*bf16", "*i64"
SIZES = ("time", "states", "groups", "width", "rows", "channels")
INDICES = ("index", "lengths", "bounds")
FLOATS = ("a", "skip", "bias", "h0", "last", "marks", "dh", "da", "db", "dc", "dskip", "dbias", "scratch")
CONSTANTS = {"SOFTPLUS": True, "SILU": True, "MARK": 32, "TAPS": 4, "T": 32}
TARGETS = (GPUTarget("cuda", 90, 32), GPUTarget("hip", "gfx942", 64))
KERNELS = (s6.forward_kernel, s6.backward_kernel, conv.forward_kernel, conv.sums_kernel, conv.inputs_kernel)


def type_of(name):
    if name in SIZES:
        return "i32"
    return INDEX if name in INDICES else WIDE if name in (*FLOATS, "weight", "dz", "parts") else DATA


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.backend)
@pytest.mark.parametrize(
    "kernel", KERNELS, ids=lambda kernel: f"{kernel.__module__.split('.')[-2]}-{kernel.__name__}"
)
@pytest.mark.parametrize("packed", [True, False])
def test_it_compiles(kernel, packed, target):
    absent = (
        ("lengths",)
        if packed
        else (*INDICES, "skip", "gate", "bias", "h0", "dh", "dlast", "dskip", "dgate", "dbias", "dh0")
    )
    constants = {**CONSTANTS, "ZOH": packed, "E": 64, "N": 16, **dict.fromkeys(absent)}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = {name: "constexpr" if name in constants else type_of(name) for name in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    triton.compile(ASTSource(kernel, signature, constexprs=places), target=target)
