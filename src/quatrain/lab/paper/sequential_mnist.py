"""Sequential MNIST: Le, Jaitly and Hinton, arXiv:1504.00941; as in Bai et al., arXiv:1803.01271."""

import gzip
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np

from quatrain.config.check import check
from quatrain.errors import DataError
from quatrain.lab.paper._generator import Array, Batch, Generator, Split, last_only, stream, to_batch

_PIXELS = 28 * 28
_LABELS = {"images-idx3": "labels-idx1", "images.idx3": "labels.idx1"}


@dataclass(frozen=True, kw_only=True)
class SequentialMNIST(Generator):
    """A digit read pixel by pixel, row after row, and named after the last one::

        input   0 0 0.2 0.9 0.4 ... 0     784 brightnesses
        target  . .  .   .   .  ... 7

    Reads the file ``source``: an ``.npz`` with images ``x`` (or ``x_train``) and labels ``y`` (``y_train``),
    or ``train-images-idx3-ubyte``, plain or ``.gz``, with its labels beside it. The last 10,000 digits are
    the test part, the 5,000 before them the validation part (of a smaller file a sixth and a twelfth).
    Chance: 0.1.
    """

    channels: ClassVar[int] = 1
    rule = "must be 784, the pixels of a digit"
    source: Annotated[str, "file of digits"] = ""

    def __post_init__(self) -> None:
        check(self.source != "", "data.source", self.source, "must name the file of digits; give --data FILE")

    @property
    def vocab(self) -> int:
        _read(self.source)  # a file that cannot be read is found before a run begins, as with other tasks
        return 1

    @property
    def outputs(self) -> int:
        return 10

    def fits(self, length: int) -> bool:
        return length == _PIXELS

    def pieces(self, split: Split, length: int) -> int:
        return len(self._part(split)[0])

    def batch(self, seed: int, step: int, split: Split, batch: int, length: int) -> Batch:
        """Training: the epoch's own order; else the digits one after the other."""
        self.check(length)
        images, labels = self._part(split)
        begin = step * batch if split != "train" else (step - 1) * batch
        if split == "train":
            places = np.arange(begin, begin + batch)
            picked = np.array(
                [_order(seed, at // len(images), len(images))[at % len(images)] for at in places]
            )
        else:
            picked = np.arange(begin, begin + batch) % len(images)
        pixels = images[picked].astype(np.float32)[:, :, None] / 255
        return to_batch(pixels, last_only(labels[picked], length))

    def _part(self, split: Split) -> tuple[Array, Array]:
        images, labels = _read(self.source)
        test = min(10_000, len(images) // 6)
        valid = min(5_000, len(images) // 12)
        ends = {"train": (0, -test - valid), "valid": (-test - valid, -test), "test": (-test, len(images))}
        low, high = ends[split]
        return images[low:high], labels[low:high]


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> Array:
    return stream(seed, 0, epoch).permutation(count)


@lru_cache(maxsize=1)
def _read(source: str) -> tuple[Array, Array]:
    """Images ``(n, 784)`` uint8 and labels ``(n,)`` int64. Raises DataError."""
    path = Path(source)
    if not path.is_file():
        raise DataError(f"data.source = {source!r}: there is no such file")
    try:
        images, labels = _npz(path) if zipfile.is_zipfile(path) else _idx(path)
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(f"data.source = {source!r}: cannot be read as digits: {error}") from None
    images = images.reshape(len(images), -1)
    fits = images.shape[1] == _PIXELS and len(labels) == len(images) >= 24 and images.dtype == np.uint8
    if not fits or labels.min() < 0 or labels.max() > 9:
        raise DataError(
            f"data.source = {source!r}: must hold at least 24 images of 784 bytes and as many labels 0 to 9; "
            f"it holds {len(images)} of {images.shape[1]} {images.dtype} and {len(labels)} labels"
        )
    return images, labels.astype(np.int64)


def _npz(path: Path) -> tuple[Array, Array]:
    with np.load(path, allow_pickle=False) as file:
        x, y = ("x_train", "y_train") if "x_train" in file else ("x", "y")
        return file[x], file[y]


def _idx(path: Path) -> tuple[Array, Array]:
    for images, labels in _LABELS.items():
        if images in path.name:
            return _bytes(path, 16), _bytes(path.with_name(path.name.replace(images, labels)), 8)
    raise ValueError("neither an .npz nor called ...images-idx3-ubyte")


def _bytes(path: Path, head: int) -> Array:
    """What follows the head of an IDX file: one byte a pixel or label."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    body = np.frombuffer(raw, np.uint8, offset=head)
    return body.reshape(-1, _PIXELS) if head == 16 else body
