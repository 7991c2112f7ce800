"""A group of tensors as a safetensors file, and back.

The file is written here, by the published format (a little-endian header length, a JSON header padded to 8
bytes, the data), because a checkpoint wants its bytes streamed, hashed and flushed in one pass, one tensor in
memory at a time. It is read by the safetensors library, and so can be by anyone.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from quatrain._files import write_synced
from quatrain.errors import CheckpointError

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True, kw_only=True)
class GroupFile:
    """What the manifest says of the file of a group.

    ``shared`` maps the names left out of the file to the name of the same tensor in it (a tied head is stored
    once); ``complex`` are the names stored as real tensors with a last dimension of 2, which every reader
    understands.
    """

    file: str
    bytes: int
    sha256: str
    shared: dict[str, str]
    complex: list[str]


def write_group(directory: Path, group: str, tensors: Mapping[str, Tensor]) -> GroupFile:
    """Write ``<group>.safetensors``, onto the disk. Raises OSError, CheckpointError for a foreign dtype."""
    first: dict[tuple[object, ...], str] = {}
    kept: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    for name, tensor in sorted(tensors.items()):
        lazy = (tensor.is_conj(), tensor.is_neg())  # such a view has the memory of its base, and other values
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), lazy)
        if tensor.numel() and place in first:
            shared[name] = first[place]
        else:
            first[place], kept[name] = name, tensor.detach()
    split = [name for name, tensor in kept.items() if tensor.is_complex()]
    for name in split:
        kept[name] = torch.view_as_real(kept[name].resolve_conj().resolve_neg())
    file = f"{group}.safetensors"
    size, sha256 = write_synced(directory / file, _chunks(group, kept))
    return GroupFile(file=file, bytes=size, sha256=sha256, shared=shared, complex=split)


def read_group(path: Path, entry: GroupFile, device: torch.device | str) -> dict[str, Tensor]:
    """The tensors of a group, all names included. Raises CheckpointError for a foreign file."""
    try:
        tensors = load_file(path, device=str(device))
    except SafetensorError as error:
        raise CheckpointError(f"{path}: is not a safetensors file: {error}") from None
    for name in entry.complex:
        tensors[name] = torch.view_as_complex(tensors[name])
    return tensors | {name: tensors[stored] for name, stored in entry.shared.items()}


def _chunks(group: str, tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    # Wide numbers first: every tensor then lies at a multiple of its item size and can be mapped into memory.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {}
    offset = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in _NAMES:
            raise CheckpointError(f"{group}: tensor {name!r} has dtype {tensor.dtype}, which is not saved")
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name in order:
        if tensors[name].numel():
            yield tensors[name].cpu().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy().data
