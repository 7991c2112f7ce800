"""Token files: a text as a memory-mapped array of tokens, with a manifest that says what it is.

``tokens.bin`` holds one, two or four bytes a token, as the vocabulary needs, ``tokenizer.json`` a byte-pair
encoding where the tokens are not bytes or bases, and ``manifest.json`` where the text came from, its digest
and how it is split. The manifest is written last: where there is none, there is no token file.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np
from numpy.typing import NDArray

from quatrain._files import replacing, sha256_of, write_atomic
from quatrain.config.check import check
from quatrain.config.schema import from_dict, to_dict
from quatrain.data.corpus import STDIN, Corpus, find
from quatrain.data.tokenizer import JSON, Bytes, Tokenizer, dtype_of, read_json, rebuild
from quatrain.errors import ConfigError, DataError

TOKENS, MANIFEST, VERSION = "tokens.bin", "manifest.json", 1
FRACTIONS = (0.85, 0.05, 0.10)
Tokens = NDArray[np.unsignedinteger[Any]]
Part = Literal["train", "valid", "test"]


@dataclass(frozen=True, kw_only=True)
class _Manifest:
    """The content of ``manifest.json``."""

    format: Literal["quatrain tokens"] = "quatrain tokens"
    version: int = VERSION
    name: str
    source: str
    description: str
    files: int
    bytes: int
    tokens: int
    vocab: int
    tokenizer: Literal["bytes", "dna", "bpe"] = "bytes"
    fractions: tuple[float, ...]
    digest: str


class TokenFile:
    """A prepared text; `prepare` makes one and `TokenFile.open` finds it again.

    ``tokens`` is a read-only memory-mapped array ``(tokens,)`` of uint8, uint16 or uint32: reading costs
    memory only for the pages that are touched. ``manifest`` is the content of the manifest, ``digest`` the
    SHA-256 of the tokens in hex.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], tokens: Tokens) -> None:
        self.path = path
        self.manifest = manifest
        self.tokens = tokens
        self.name: str = manifest["name"]
        self.description: str = manifest["description"]
        self.vocab: int = manifest["vocab"]
        self.bytes: int = manifest["bytes"]
        self.digest: str = manifest["digest"]

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = False) -> Self:
        """The token file in a directory. Checks its size, and with ``verify`` (one pass over it) its content.

        Raises DataError where it is missing, truncated, altered, of another version or no token file.
        """
        path = Path(path)
        manifest = _read_manifest(path / MANIFEST)
        binary = path / TOKENS
        if not binary.is_file():
            raise DataError(f"{binary}: is missing; delete {path} to prepare the text again")
        size = binary.stat().st_size
        kind = dtype_of(manifest.vocab)
        must = manifest.tokens * kind.itemsize
        if size != must:
            what = "truncated" if size < must else "not the one of its manifest"
            raise DataError(f"{binary}: is {what}: has {size} bytes, must have {must}")
        if verify and sha256_of(binary) != manifest.digest:
            raise DataError(
                f"{binary}: was altered: its SHA-256 is not the {manifest.digest[:12]}... of its manifest"
            )
        return cls(path, to_dict(manifest), np.memmap(binary, dtype=kind, mode="r"))

    @property
    def splits(self) -> dict[str, int]:
        """Tokens of the parts ``train``, ``valid`` and ``test``."""
        return {
            name: stop - start for name, (start, stop) in _ranges(len(self.tokens), self.fractions).items()
        }

    @property
    def fractions(self) -> tuple[float, float, float]:
        """Fractions of training, validation and test part."""
        train, valid, test = self.manifest["fractions"]
        return train, valid, test

    @property
    def tokenizer(self) -> Tokenizer:
        """What made the tokens of the text. Raises DataError where its file is missing or altered."""
        name = self.manifest["tokenizer"]
        path = self.path / JSON
        return read_json(path) if name == "bpe" else rebuild(name, "")

    def part(self, name: Part) -> Tokens:
        """A view of a part: training tokens come first in the text, then validation, test tokens last."""
        ranges = _ranges(len(self.tokens), self.fractions)
        check(name in ranges, "part", name, "must be train, valid or test")
        start, stop = ranges[name]
        return self.tokens[start:stop]


def prepare(
    source: str,
    out_dir: str | Path,
    fractions: Sequence[float] = FRACTIONS,
    make: Callable[[Corpus], Tokenizer] | None = None,
) -> TokenFile:
    """Make the token file of ``source`` (see `corpus.find`) in ``out_dir``, or take the one there.

    A token is a byte, or what ``make`` makes of the corpus: a tokenizer. The text is copied in pieces,
    so memory does not grow with its size. An existing token file is used
    when the source still has its digest, which takes one reading of the source; stdin that brings nothing, or
    is a terminal, is taken to be the text of before, so that a run from a pipe can go on without it. Test and
    validation parts are the last ``floor(fraction * tokens)`` tokens and those before them.

    Raises DataError where the source is missing, empty or unreadable, or is not the text in ``out_dir``;
    ConfigError for fractions that are no split; OSError where ``out_dir`` cannot be written. A failure leaves
    nothing behind.
    """
    out = Path(out_dir)
    split = tuple(map(float, fractions))
    proper = len(split) == 3 and all(0 < part < 1 for part in split) and abs(sum(split) - 1) < 1e-6
    check(proper, "data.fractions", list(split), "must be three positive fractions that sum to 1")
    corpus = find(source)
    if (out / MANIFEST).exists():
        return _reuse(TokenFile.open(out), corpus, split)
    chunks = corpus.chunks()
    first = next(chunks, b"")
    if not first:
        raise DataError(f"data source {source!r}: is empty ({corpus.description})")
    tokenizer = make(corpus) if make else Bytes()
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    try:
        return _write(out, corpus, chain([first], chunks), split, tokenizer)
    except BaseException:
        with suppress(OSError):
            for folder in made:
                folder.rmdir()
        raise


def _write(
    out: Path, corpus: Corpus, chunks: Iterator[bytes], split: tuple[float, ...], tokenizer: Tokenizer
) -> TokenFile:
    size, count, hasher, kind = 0, 0, sha256(), dtype_of(tokenizer.vocab)

    def counted() -> Iterator[bytes]:
        nonlocal size
        for chunk in chunks:
            size += len(chunk)
            yield chunk

    with replacing(out / TOKENS) as file:
        try:
            for tokens in tokenizer.encode(counted()):
                written = np.ascontiguousarray(tokens, dtype=kind).tobytes()
                file.write(written)
                hasher.update(written)
                count += len(tokens)
        except DataError as error:
            raise DataError(f"data source {corpus.source!r}: {error}") from None
    if tokenizer.json:
        write_atomic(out / JSON, tokenizer.json)
    manifest = _Manifest(
        name=corpus.name,
        source=corpus.source,
        description=corpus.description,
        files=len(corpus.files),
        bytes=size,
        tokens=count,
        vocab=tokenizer.vocab,
        tokenizer=cast(Any, tokenizer.name),
        fractions=split,
        digest=hasher.hexdigest(),
    )
    try:
        write_atomic(out / MANIFEST, json.dumps(to_dict(manifest), indent=2, ensure_ascii=True) + "\n")
    except BaseException:
        (out / TOKENS).unlink(missing_ok=True)
        (out / JSON).unlink(missing_ok=True)
        raise
    return TokenFile.open(out)


def _reuse(there: TokenFile, corpus: Corpus, split: tuple[float, ...]) -> TokenFile:
    """The token file that exists, if it is that of the same text, split in the same way."""
    if there.fractions != split:
        raise DataError(
            f"{there.path}: was split {list(there.fractions)}, not {list(split)}; choose another directory"
        )
    if corpus.source == STDIN and sys.stdin.isatty():
        return there
    hasher, size = sha256(), 0
    wanted = there.tokenizer

    def counted() -> Iterator[bytes]:
        nonlocal size
        for chunk in corpus.chunks():
            size += len(chunk)
            yield chunk

    for tokens in wanted.encode(counted()):
        hasher.update(np.ascontiguousarray(tokens, dtype=dtype_of(wanted.vocab)).tobytes())
    gone = size == 0 and not corpus.repeatable
    if not gone and hasher.hexdigest() != there.digest:
        here = f"{size} bytes with digest {hasher.hexdigest()[:12]}"
        raise DataError(
            f"data source {corpus.source!r}: has {here}, {there.path} was made of {there.bytes} bytes "
            f"with digest {there.digest[:12]}; give the same text or another directory"
        )
    return there


def _ranges(tokens: int, fractions: Sequence[float]) -> dict[str, tuple[int, int]]:
    """Where the parts begin and end. The tiny term keeps 0.1 * 1000 from being 99 after rounding."""
    test = int(tokens * fractions[2] + 1e-9)
    valid = int(tokens * fractions[1] + 1e-9)
    train = tokens - valid - test
    return {"train": (0, train), "valid": (train, train + valid), "test": (train + valid, tokens)}


def _read_manifest(path: Path) -> _Manifest:
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path.parent}: is no token file: {path.name} is missing") from None
    except ValueError:
        raise DataError(f"{path}: is no JSON: truncated or altered") from None
    if not isinstance(values, dict) or values.get("format") != "quatrain tokens":
        raise DataError(f"{path}: is not the manifest of a token file")
    if values.get("version") != VERSION:
        raise DataError(
            f"{path}: is of version {values.get('version')!r}, this Quatrain reads version {VERSION}"
        )
    try:
        return from_dict(_Manifest, values)
    except ConfigError as error:
        raise DataError(f"{path}: {'; '.join(str(error).splitlines())}") from None
