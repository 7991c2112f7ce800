"""The core under sanitizers: a driver of its own, compiled with the core's sources."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "src" / "quatrain" / "kernels" / "_core"
DRIVERS = ("driver", "steps")
SOURCES = (
    *("core", "s6_scan", "s6_step", "causal_conv", "attention_step", "attention_extend"),
    *("linear_step", "rms_norm", "mamba_step", "decode"),
)
FLAGS = [
    "-std=gnu++17",
    "-O1",
    "-g",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-Wno-psabi",
]
COMPILER = shutil.which("g++") or shutil.which("clang++")


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler found")
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_the_core_is_clean_under(sanitizer, tmp_path):
    program = tmp_path / "driver"
    drivers = [ROOT / "tests" / "native" / f"{name}.cpp" for name in DRIVERS]
    sources = [*drivers, *(CORE / f"{name}.cpp" for name in SOURCES)]
    flags = [*FLAGS, f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", f"-I{CORE}", "-pthread"]
    jobs = []
    for source in sources:
        output = tmp_path / f"{source.stem}.o"
        jobs.append((output, subprocess.Popen([COMPILER, *flags, "-c", source, "-o", output])))
    assert [job.wait() for _, job in jobs] == [0] * len(jobs)
    linked = subprocess.run(
        [COMPILER, *flags, *(output for output, _ in jobs), "-o", program], capture_output=True, text=True
    )
    if linked.returncode and "san" in linked.stderr:
        pytest.skip(f"the compiler has no -fsanitize={sanitizer}")
    assert linked.returncode == 0, linked.stderr
    done = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "done" in done.stdout
