"""Triton kernels: when they are chosen, and their logic in Triton's interpreter, in a process of its own."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tests.test_kernels import example, is_float

from quatrain.errors import NoKernelError
from quatrain.kernels import OPS, _triton

NAMES = ("s6_scan", "causal_conv")


@pytest.mark.parametrize("name", NAMES)
def test_its_place_is_behind_nvrtc_and_before_plain_torch(name):
    op = OPS[name]
    assert [impl.name for impl in op.impls] == ["cpp", "nvrtc", "triton", "torch"]
    drawn = example(op, op.cases[0])
    given = {k: x.float() if is_float(x) else x for k, x in drawn.items()}
    with pytest.raises(NoKernelError, match="triton: runs on GPUs, not on cpu"):
        op.choose(given, "triton")


def test_its_reasons(monkeypatch):
    there = torch.empty(1, device="meta")
    monkeypatch.setattr(torch.Tensor, "device", torch.device("cuda", 0))
    assert _triton.why_not_for(there.double()) == "dtype torch.float64: must be float32, float16 or bfloat16"
    monkeypatch.setattr(_triton, "find_spec", lambda name: None)
    assert _triton.why_not_for(there) == "Triton is not installed"
    monkeypatch.setattr(_triton, "find_spec", find_spec)
    assert (_triton.why_not_for(there) is None) == (find_spec("triton") is not None)


def test_kernels_are_defined_on_use():
    """Torch may import Triton by itself."""
    ours = "any(name.endswith('_triton_kernels') for name in sys.modules)"
    code = f"import sys, quatrain.kernels; sys.exit({ours})"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed: pip install triton")
@pytest.mark.parametrize(
    ("cases", "environment"), [("interpreter", {"TRITON_INTERPRET": "1"}), ("ahead", {})]
)
def test_kernels_without_a_gpu(cases, environment, tmp_path):
    path = Path(__file__).with_name(f"triton_{'in_' * bool(environment)}{cases}.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", str(path)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **environment, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
