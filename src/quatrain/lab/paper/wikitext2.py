"""WikiText-2 by words: Merity et al., arXiv:1609.07843; trained as in Merity et al., arXiv:1708.02182."""

import gzip
import lzma
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np

from quatrain.config.check import check
from quatrain.errors import DataError
from quatrain.lab.paper._generator import SPLITS, Array, Batch, Generator, Split, next_ones, to_batch

_UNPACK: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.decompress, ".xz": lzma.decompress}


@dataclass(frozen=True, kw_only=True)
class WikiText2(Generator):
    """The next word of a text that is read from its beginning to its end::

        input   <eos> = Valkyria Chronicles III =
        target  = Valkyria Chronicles III = <eos>

    Reads the folder ``source``, which holds a file for each part, with ``train``, ``valid`` and ``test`` in
    their names, plain or ``.gz`` or ``.xz``: words with spaces between them, an ``<eos>`` stands for each
    line's end. In training the text is cut into as many streams as a batch has rows, each read in order; a
    recurrent model goes on with its state (truncated backpropagation), attention begins anew in every
    window. The vocabulary is that of all three parts, 33,278 words, as published. Tests read the whole part;
    what is behind its end is not asked.
    """

    language: ClassVar[bool] = True
    carries: ClassVar[bool] = True
    rule = "must be at least 1"
    source: Annotated[str, "folder with the three parts"] = ""

    def __post_init__(self) -> None:
        rule = "must name the folder with the text's three parts; give --data DIR"
        check(self.source != "", "data.source", self.source, rule)

    @property
    def vocab(self) -> int:
        return _read(self.source)[1]

    def fits(self, length: int) -> bool:
        return length >= 1

    def count(self, split: Split) -> int:
        """Words of a part that can be asked: all but the first."""
        return len(self._part(split)) - 1

    def pieces(self, split: Split, length: int) -> int:
        return -(-self.count(split) // length)

    def begins(self, step: int, batch: int, length: int) -> bool:
        """Whether training batch ``step``, from 1, is the first of the text."""
        return (step - 1) % self._windows(batch, length) == 0

    def batch(self, seed: int, step: int, split: Split, batch: int, length: int) -> Batch:
        """Training: window ``step - 1`` of every stream, over and over; else one piece after the other."""
        self.check(length)
        words = self._part(split)
        if split == "train":
            each = (len(words) - 1) // batch
            at = (step - 1) % self._windows(batch, length) * length
            starts = np.arange(batch) * each + at
        else:
            starts = np.arange(step * batch, (step + 1) * batch) * length
        return to_batch(*next_ones(words, starts, length))

    def _windows(self, batch: int, length: int) -> int:
        found = (len(self._part("train")) - 1) // batch // length
        check(
            found >= 1, "train.batch", batch, f"must leave {length} words to each stream of the training part"
        )
        return found

    def _part(self, split: Split) -> Array:
        return _read(self.source)[0][SPLITS.index(split)]


@lru_cache(maxsize=1)
def _read(source: str) -> tuple[tuple[Array, ...], int]:
    """The three parts as int64 word numbers, most frequent first, and how many words there are."""
    folder = Path(source)
    if not folder.is_dir():
        raise DataError(f"data.source = {source!r}: must be a folder; there is none")
    parts = [_words(_file(folder, split)) for split in SPLITS]
    for split, words in zip(SPLITS, parts, strict=True):
        if len(words) < 2:
            raise DataError(f"data.source = {source!r}: its {split} part must have at least two words")
    counts = Counter(chain(*parts))
    number = {word: at for at, word in enumerate(sorted(counts, key=lambda word: (-counts[word], word)))}
    found = (np.fromiter(map(number.__getitem__, words), np.int64, len(words)) for words in parts)
    return tuple(found), len(number)


def _file(folder: Path, split: str) -> Path:
    found = sorted(path for path in folder.iterdir() if split in path.name and "wiki" in path.name.lower())
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        rule = f"must hold one file with 'wiki' and {split!r} in its name; it holds {names}"
        raise DataError(f"data.source = {str(folder)!r}: {rule}")
    return found[0]


def _words(path: Path) -> list[str]:
    try:
        raw = _UNPACK.get(path.suffix, bytes)(path.read_bytes())
        lines = raw.decode("utf-8").splitlines()
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError) as error:
        raise DataError(f"{path}: cannot be read as text: {error}") from None
    return [word for line in lines for word in (*line.split(), "<eos>")]
