"""Finding a text: files, directories, globs, stdin, or what every machine with Python has.

A corpus is bytes: the files one after another, nothing between them, ``.xz``, ``.gz`` and ``.bz2`` unpacked
on the way. It need not be UTF-8, and it is read in pieces, so its size does not matter.
"""

import bz2
import glob
import gzip
import hashlib
import lzma
import os
import re
import stat
import sys
import sysconfig
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from quatrain._files import CHUNK, chunks_of
from quatrain.errors import DataError

STDIN = "-"
FASTA = (".fa", ".fasta", ".fna")
PYTHON = "python"
_HEAD = 1024  # bytes in which a NUL says that a file is no text
_UNPACK: dict[str, Callable[[Path], object]] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
# In the library's folder, but packages of others, or tests, which not every installation has.
_NOT_PYTHONS = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})


@dataclass(frozen=True)
class Corpus:
    """A text that has been found but not read.

    ``name`` is short and fit for a file name, ``description`` says in a line what it is and what was left
    out, ``files`` are its files in order (none for stdin).
    """

    source: str
    name: str
    description: str
    files: tuple[Path, ...]
    documents: bool = False  # JSON Lines whose text fields are read, each ended by a line feed

    @property
    def repeatable(self) -> bool:
        """Whether it can be read more than once: stdin and pipes cannot."""
        return bool(self.files) and all(path.is_file() for path in self.files)

    def chunks(self) -> Iterator[bytes]:
        """The bytes, a mebibyte at a time. Raises DataError naming a file that is damaged or unreadable."""
        if not self.files:
            yield from chunks_of(sys.stdin.buffer)
        for path in self.files:
            yield from _documents(path) if self.documents else _chunks(path)


def find(source: str) -> Corpus:
    """The corpus that ``source`` names: a file, a directory, a glob, ``-`` (stdin) or ``python``.

    A path that exists comes before a glob, and ``python`` before a path of that name (``./python`` is the
    path). A directory is read with all its subdirectories in the order of the paths, without hidden files,
    binary files (a NUL in the first KiB) and links to directories; the description counts what was skipped. A
    glob (``**`` for any depth) takes what it matches, in order. ``python`` is the standard library of the
    Python that runs: source and documentation, megabytes of it, in an order drawn from a hash of the paths so
    that the parts of a split are alike.

    Raises DataError where nothing is found, a file is empty or may not be read.
    """
    if source == STDIN:
        return Corpus(source, "stdin", "standard input", ())
    if source == PYTHON:
        return _python()
    path = Path(source).expanduser()
    if path.is_dir():
        return _directory(source, path)
    if not path.exists() and glob.has_magic(source):
        return _glob(source, str(path))
    _require_readable(source, path)
    if _holds_documents(path):
        return Corpus(source, _slug(path.name), f"documents of {path.name}, by text", (path,), True)
    return Corpus(source, _slug(path.name), f"file {path.name}", (path,))


def is_fasta(corpus: Corpus) -> bool:
    """Whether all its files are called as FASTA files are."""
    return bool(corpus.files) and all(ending(path) in FASTA for path in corpus.files)


def _holds_documents(path: Path) -> bool:
    """Whether a file is JSON Lines whose first line has a ``text``."""
    from quatrain.data.readers import jsonl

    return ending(path) in jsonl.ENDINGS and path.is_file() and jsonl.begins_with_text(path)


def _documents(path: Path) -> Iterator[bytes]:
    """The texts, each ended by a line feed, about a mebibyte at a time."""
    from quatrain.data.readers import jsonl

    held, size = [], 0
    for _, text in jsonl.texts(path):
        held.append(text.encode("utf-8", "replace") + b"\n")
        size += len(held[-1])
        if size >= CHUNK:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)


def _directory(source: str, root: Path) -> Corpus:
    found, hidden, binary, other = [], 0, 0, 0
    for path, is_hidden in _walk(root):
        if is_hidden:
            hidden += 1
        elif not path.is_file():
            other += 1
        elif is_binary(path):
            binary += 1
        else:
            found.append(path)
    counts = {"hidden": hidden, "binary": binary, "not regular": other}
    skipped = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    left_out = f" (skipped: {skipped})" if skipped else ""
    if not found:
        raise DataError(f"data source {source!r}: the directory holds no text file{left_out}")
    return Corpus(
        source, _slug(root.resolve().name), f"directory {source}, {_files(found)}{left_out}", tuple(found)
    )


def _walk(root: Path, skip: frozenset[str] = frozenset()) -> Iterator[tuple[Path, bool]]:
    """The files under ``root`` in the order of their paths, and whether each is hidden.

    A hidden folder counts as one hidden file; folders named in ``skip`` count for nothing.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"data source {error.filename!r}: cannot be read: {error.strerror}")

    listed: list[tuple[Path, bool]] = []
    for folder, folders, files in os.walk(root, onerror=refuse):
        listed += [(Path(folder, name), True) for name in folders if name.startswith(".")]
        folders[:] = [name for name in folders if not name.startswith(".") and name not in skip]
        listed += [(Path(folder, name), name.startswith(".")) for name in files]
    yield from sorted(listed)


def _glob(source: str, pattern: str) -> Corpus:
    paths = sorted(Path(match) for match in glob.glob(pattern, recursive=True))
    found = tuple(path for path in paths if not path.is_dir())
    if not found:
        raise DataError(f"data source {source!r}: no file matches")
    for path in found:
        _require_readable(str(path), path, may_be_empty=True)
    return Corpus(source, _slug(source), f"glob {source}, {_files(found)}", found)


def _python() -> Corpus:
    version = ".".join(map(str, sys.version_info[:3]))
    library = Path(sysconfig.get_path("stdlib"))
    manual = Path("/usr/share/doc") / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    source = {
        key: path
        for key, path in _below(library, (".py",), _NOT_PYTHONS).items()
        if not key.startswith("_sysconfigdata")  # differs from machine to machine
    }
    if not source:
        raise DataError(f"data source 'python': no standard library in {library}; name a text instead")
    texts = {f"doc/{key}": path for key, path in _below(manual, (".rst", ".rst.txt")).items()}
    topics = "with" if any(key.startswith("pydoc_data/topics") for key in source) else "without"
    description = f"the standard library of Python {version}: {_files(source)}, {topics} pydoc's topics"
    description += f", and {_files(texts)} of documentation" if texts else ""
    files = source | texts
    order = sorted(files, key=lambda key: hashlib.sha256(os.fsencode(key)).digest())
    return Corpus(PYTHON, f"python-{version}", description, tuple(files[key] for key in order))


def _below(root: Path, endings: tuple[str, ...], skip: frozenset[str] = frozenset()) -> dict[str, Path]:
    """Readable files under ``root`` with one of these endings, by their path relative to it."""
    if not root.is_dir():
        return {}
    paths = (path for path, hidden in _walk(root, skip) if not hidden and path.name.endswith(endings))
    usable = (path for path in paths if path.is_file() and os.access(path, os.R_OK))
    return {path.relative_to(root).as_posix(): path for path in usable}


def _require_readable(source: str, path: Path, *, may_be_empty: bool = False) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"data source {source!r}: cannot be read: {error.strerror}") from None
    if not os.access(path, os.R_OK):
        raise DataError(f"data source {source!r}: cannot be read: Permission denied")
    if stat.S_ISREG(status.st_mode) and status.st_size == 0 and not may_be_empty:
        raise DataError(f"data source {source!r}: the file is empty")


def _chunks(path: Path) -> Iterator[bytes]:
    with reading(path), open_file(path) as file:
        yield from chunks_of(file)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what goes wrong while a file is read and unpacked into a DataError that names the file."""
    try:
        yield
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(f"data source {str(path)!r}: cannot be read: {reason}") from None


def open_file(path: Path) -> BinaryIO:
    """A file to read from, unpacked on the way where its name ends in .xz, .gz or .bz2."""
    unpack = _UNPACK.get(path.suffix)
    return cast(BinaryIO, unpack(path)) if unpack else open(path, "rb")


def ending(path: Path) -> str:
    """The name's last ending in small letters, without that of a packed file: ``.csv`` of ``a.CSV.gz``."""
    name = path.with_suffix("") if path.suffix.lower() in _UNPACK else path
    return name.suffix.lower()


def is_binary(path: Path) -> bool:
    """Whether a file is no text: a NUL in its first KiB. Raises DataError where it cannot be read."""
    return b"\0" in _head(path)


def _head(path: Path) -> bytes:
    with reading(path), open_file(path) as file:
        return file.read(_HEAD)


def _files(found: Iterable[object]) -> str:
    count = len(list(found))
    return f"{count:,} file{'' if count == 1 else 's'}"


def _slug(name: str) -> str:
    """A short name that is safe in a path: ``tinyshakespeare.txt`` of ``tinyshakespeare.txt.xz``."""
    for ending in _UNPACK:
        name = name.removesuffix(ending)
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.")[:60] or "text"
