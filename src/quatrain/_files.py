"""Files that are written whole or not at all, and are on the disk when the call returns."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

CHUNK = 1 << 20  # bytes read or written at a time


def write_atomic(path: str | Path, content: bytes | str) -> None:
    """Replace ``path`` by ``content``: whoever reads it, even after a loss of power, sees old or new.

    Text is written as UTF-8. Raises OSError and leaves ``path`` as it was when the disk is full or not
    writable.
    """
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of ``path`` when the block ends without an exception."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path), open(temporary, "wb") as file:
            yield file
            sync(file)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Let an OSError name its file: a full disk, which is noticed while writing, does not say whose it is."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def write_synced(path: str | Path, chunks: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """Write a new file and flush it to the disk; return its bytes and its SHA-256 in hex. Raises OSError."""
    size, sha256 = 0, hashlib.sha256()
    with open(path, "xb") as file:
        for chunk in chunks:
            file.write(chunk)
            sha256.update(chunk)
            size += len(chunk)
        sync(file)
    return size, sha256.hexdigest()


def sync(file: BinaryIO) -> None:
    """Flush a file through Python and the system to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_directory(path: str | Path) -> None:
    """Flush a directory, and with it the names of the files in it, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def chunks_of(file: BinaryIO) -> Iterator[bytes]:
    """What is left of a file, a mebibyte at a time."""
    while chunk := file.read(CHUNK):
        yield chunk


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file in hex, read a mebibyte at a time. Raises OSError."""
    sha256 = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in chunks_of(file):
            sha256.update(chunk)
    return sha256.hexdigest()
