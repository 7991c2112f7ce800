"""Raw audio: the samples themselves, as in Gu and Dao, Mamba, arXiv:2312.00752, appendix E.4."""

import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np

from quatrain.config.check import check
from quatrain.data.readers import audio
from quatrain.errors import DataError
from quatrain.lab.paper._generator import SPLITS, Array, Batch, Generator, Split, next_ones, stream, to_batch

LEVELS = 256
_MU = LEVELS - 1
_EVERY = 10  # of so many recordings one is validated on and one tested on


@dataclass(frozen=True, kw_only=True)
class RawAudio(Generator):
    """The next sample of a recording::

        input   128 131 140 122 97
        target  131 140 122 97  101

    A sample x in [-1, 1] is one of 256 levels, evenly spaced in sign(x) ln(1 + 255 |x|) / ln 256 (mu-law).
    Reads ``source``: an ``.npz`` that holds a recording in each array, int16 or numbers in [-1, 1], or a
    folder of ``.wav`` or ``.flac`` files. Of ten recordings, in the order of their names, eight are trained
    on, the ninth is validated on and the tenth tested on; those of a part follow each other. Training reads
    windows drawn at random, the others read the whole part, piece by piece. Saying that all levels are
    equally likely costs 8 bits a sample.
    """

    language: ClassVar[bool] = True
    rule = "must be at least 1"
    source: Annotated[str, "file or folder of recordings"] = ""

    def __post_init__(self) -> None:
        rule = "must name the recordings; give --data FILE or DIR"
        check(self.source != "", "data.source", self.source, rule)

    @property
    def vocab(self) -> int:
        return LEVELS

    def fits(self, length: int) -> bool:
        return length >= 1

    def pieces(self, split: Split, length: int) -> int:
        return -(-(len(self._part(split)) - 1) // length)

    def batch(self, seed: int, step: int, split: Split, batch: int, length: int) -> Batch:
        """Training: windows at random places; else one piece after the other."""
        self.check(length)
        part = self._part(split)
        if split == "train":
            room = len(part) - length
            check(room >= 1, "length", length, f"must be below the {len(part)} samples of the training part")
            starts = stream(seed, SPLITS.index(split), step).integers(0, room, batch)
        else:
            starts = np.arange(step * batch, (step + 1) * batch) * length
        return to_batch(*next_ones(part, starts, length))

    def _part(self, split: Split) -> Array:
        return _read(self.source)[SPLITS.index(split)]


def levels(samples: Array) -> Array:
    """Samples in [-1, 1] as levels 0 to 255, int64."""
    squeezed = np.sign(samples) * np.log1p(_MU * np.abs(samples)) / np.log(LEVELS)
    return np.asarray(np.rint((squeezed + 1) / 2 * _MU).astype(np.int64))


@lru_cache(maxsize=1)
def _read(source: str) -> tuple[Array, ...]:
    """The levels of the three parts. Raises DataError."""
    path = Path(source)
    if not path.exists():
        raise DataError(f"data.source = {source!r}: there is no such file or folder")
    clips = _folder(path) if path.is_dir() else _npz(path)
    if len(clips) < _EVERY:
        raise DataError(f"data.source = {source!r}: must hold at least {_EVERY} recordings; has {len(clips)}")
    parts: dict[Split, list[Array]] = {split: [] for split in SPLITS}
    for number, clip in enumerate(clips):
        parts[{_EVERY - 2: SPLITS[1], _EVERY - 1: SPLITS[2]}.get(number % _EVERY, SPLITS[0])].append(clip)
    return tuple(levels(np.concatenate(parts[split])) for split in SPLITS)


def _folder(path: Path) -> list[Array]:
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in audio.ENDINGS)
    return [audio.load(file)[0] for file in found]


def _npz(path: Path) -> list[Array]:
    """Recordings in the order of their names, as numbers in [-1, 1]."""
    if not zipfile.is_zipfile(path):
        raise DataError(f"data.source = '{path}': must be an .npz or a folder of .wav or .flac files")
    try:
        with np.load(path, allow_pickle=False) as file:
            clips = {name: file[name] for name in sorted(file)}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(f"data.source = '{path}': cannot be read as recordings: {error}") from None
    for name, clip in clips.items():
        fine = clip.ndim == 1 and len(clip) and (clip.dtype == np.int16 or clip.dtype.kind == "f")
        if not fine or (clip.dtype.kind == "f" and not np.abs(clip).max() <= 1):
            rule = "must be a row of int16 samples, or of numbers in [-1, 1]"
            raise DataError(f"data.source = '{path}': {name}: {rule}; is {clip.dtype} {clip.shape}")
    return [clip / 2**15 if clip.dtype == np.int16 else clip for clip in clips.values()]
