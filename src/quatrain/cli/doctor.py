"""``quatrain doctor``: what is here, what will run, and why something else will not."""

import platform
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import TYPE_CHECKING

from quatrain.cli._flags import Surface, parse

if TYPE_CHECKING:
    from quatrain.kernels import Op
    from quatrain.kernels._op import Arguments

SURFACE = Surface(
    command="doctor",
    help="Say what machine and versions are here, which kernels will run, and why others will not.",
    options=(),
    examples=("quatrain doctor",),
)

NEEDED = ("torch", "numpy", "safetensors", "rich")
EXTRAS = {
    "report": ("altair", "vl-convert-python"),
    "parquet": ("pyarrow",),
    "audio": ("soundfile",),
    "text": ("tokenizers",),
}
_DTYPES = ("float32", "bfloat16")


def run(args: Sequence[str]) -> int:
    parse(SURFACE, args).raise_problems()
    for line in (*_machine(), "", *_versions(), "", *_kernels()):
        sys.stdout.write(f"{line}\n")
    return 0


def _machine() -> Iterator[str]:
    import torch

    from quatrain.cli._display import size
    from quatrain.lab.machine import machine
    from quatrain.model.device import why_no_cuda

    here = machine(torch.get_num_threads())
    memory = here["memory_bytes"]
    yield f"machine   {here['cpu']}, {here['cores']} cores, {here['threads']} threads"
    yield f"          {here['os']}, memory {size(memory) if isinstance(memory, int) else 'unknown'}"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield f"device    {torch.cuda.get_device_name(index)}"
    reason = why_no_cuda()
    yield f"device    auto is {'cpu: ' + reason if reason else 'cuda'}"


def _versions() -> Iterator[str]:
    from quatrain import __version__

    needed = ", ".join(f"{name} {_version(name)}" for name in NEEDED)
    yield f"versions  quatrain {__version__}, Python {platform.python_version()}, {needed}"
    for extra, names in EXTRAS.items():
        found = {name: _version(name) for name in names}
        have = all(found.values())
        shown = ", ".join(f"{name} {version}" for name, version in found.items() if version)
        lacks = f"missing: pip install 'quatrain[{extra}]'"
        yield f"extra     {extra:<8} {shown if have else lacks}"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _kernels() -> Iterator[str]:
    """One line for each op, device and dtype: what runs, and every other candidate with its reason."""
    import torch

    from quatrain.kernels import OPS, _core

    reason = _core.missing()
    yield f"C++ core  {reason or ', '.join(_core.available())}"
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    yield f"kernels   {'op':<16}{'device':<8}{'dtype':<10}runs"
    for op in OPS.values():
        for device in devices:
            for dtype in _DTYPES:
                choice = _choice(op, _example(op, device, dtype))
                yield f"          {op.name:<16}{device:<8}{dtype:<10}{choice}"


def _example(op: "Op", device: str, dtype: str) -> "Arguments":
    import torch

    drawn = op.example(op.cases[0], torch.Generator().manual_seed(0))
    kind: torch.dtype = getattr(torch, dtype)
    return {
        name: x.to(device, kind if x.is_floating_point() else None) if isinstance(x, torch.Tensor) else x
        for name, x in drawn.items()
    }


def _choice(op: "Op", arguments: "Arguments") -> str:
    from quatrain.errors import NoKernelError

    try:
        chosen = op.choose(arguments).name
    except NoKernelError as error:
        return f"nothing: {error}"
    reasons = {impl.name: impl.why_not(arguments) for impl in op.impls if impl.name != chosen}
    declined = "; ".join(f"not {name}: {why}" for name, why in reasons.items() if why)
    return f"{chosen} ({declined})" if declined else chosen
