"""From a source to what a run reads: a token file for lm, a sequence file for any other task."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from quatrain._files import chunks_of
from quatrain.config.check import check
from quatrain.config.schema import to_dict
from quatrain.data import tokens
from quatrain.data._encode import Encoding
from quatrain.data._write import write
from quatrain.data.config import DataConfig
from quatrain.data.corpus import Corpus, is_fasta, open_file, reading
from quatrain.data.recognise import Found, recognise
from quatrain.data.sequences import MANIFEST, WAVES, Manifest, Meaning, SequenceFile, is_sequence_file
from quatrain.data.tokenizer import Bytes, Dna, Tokenizer, learn, read_json
from quatrain.data.tokens import TokenFile
from quatrain.errors import DataError

Data = TokenFile | SequenceFile


def prepare(config: DataConfig, out: str | Path, tokenizer: Tokenizer | None = None) -> Data:
    """Make the file of ``config.source`` in ``out``, or take the one there if it is of the same data.

    ``tokenizer`` goes before the one that ``config`` names, where there are texts. Values are written as they
    are read, so memory does not grow with the data.

    Raises DataError where the source is missing, cannot be read or trained on, or is not what ``out`` was
    made of; OSError where ``out`` cannot be written. A failure leaves nothing behind.
    """
    out = Path(out)
    found = recognise(config)
    if found.read is None or found.meaning is None:
        if is_sequence_file(out):
            raise DataError(f"{out}: holds sequences, not a text; choose another directory")
        make = (lambda corpus: tokenizer) if tokenizer else partial(tokenizer_of, config)
        return tokens.prepare(config.source, out, config.fractions, make)
    settings = json.dumps({**to_dict(config), "source": ""}, sort_keys=True)
    if (out / MANIFEST).exists():
        return _reuse(SequenceFile.open(out), found, settings, config)
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    manifest = _manifest(found, config, settings)
    try:
        return write(out, found.read(), manifest, encoding=_encoding(config, tokenizer))
    except BaseException:
        with suppress(OSError):
            for folder in made:
                folder.rmdir()
        raise


def _encoding(config: DataConfig, tokenizer: Tokenizer | None) -> Encoding | None:
    """How labelled texts are to be read; None: as bytes."""
    if tokenizer:
        return Encoding(lambda texts: tokenizer)
    name = config.tokenizer
    if name in ("auto", "bytes"):
        return None
    check(name != "dna", "data.tokenizer", name, "is for FASTA files; labelled texts take bytes or bpe")
    if name == "bpe":
        return Encoding(lambda texts: learn(texts, config.bpe_vocab), name)
    read = read_json(Path(name).expanduser())
    return Encoding(lambda texts: read, name)


def prepare_like(
    config: DataConfig, out: str | Path, meaning: Meaning, tokenizer: Tokenizer | None = None
) -> SequenceFile:
    """Data to judge a trained model by, in an empty directory: labels and normalisation are the model's.

    ``tokenizer`` is the model's, where it reads texts in another than bytes.

    Raises DataError where the data is for another task, has other columns, or a label the model doesn't know.
    """
    wanted = replace(
        config,
        task=cast(Any, meaning.task),
        target=meaning.columns[: meaning.targets] if meaning.time or _named(meaning) else config.target,
        horizon=meaning.horizon or config.horizon,
        season=meaning.season or config.season,
        inputs=cast(Any, meaning.inputs),
        others=len(meaning.columns) - (WAVES if meaning.calendar else 0) > meaning.targets,
        calendar=meaning.calendar,
        audio=cast(Any, meaning.features or config.audio),
    )
    found = recognise(wanted)
    if found.read is None or found.meaning is None:
        raise DataError(f"data source {config.source!r}: is {found.says}; the model is for {meaning.task}")
    if found.meaning.columns and found.meaning.columns != meaning.columns:
        here, there = ", ".join(found.meaning.columns), ", ".join(meaning.columns)
        raise DataError(f"data source {config.source!r}: has the columns {here}; the model reads {there}")
    encoding = _encoding(wanted, tokenizer if meaning.tokenizer != "bytes" else None)
    return write(Path(out), found.read(), _manifest(found, wanted, ""), meaning, encoding)


def _named(meaning: Meaning) -> bool:
    return bool(meaning.columns) and not all(name.isdigit() for name in meaning.columns)


def _manifest(found: Found, config: DataConfig, settings: str) -> Manifest:
    assert found.meaning is not None
    return Manifest(
        name=found.name,
        source=config.source,
        description=found.says,
        source_digest=_digest(found),
        settings=settings,
        meaning=found.meaning,
        sequences=0,
        steps=0,
        longest=0,
        counts=(),
        fractions=config.fractions,
        digest="",
    )


def tokenizer_of(config: DataConfig, corpus: Corpus) -> Tokenizer:
    """The tokenizer that ``config.tokenizer`` names for a text; bpe is learnt from its start.

    Raises DataError where a tokenizer.json cannot be read, or where an encoding would have to be learnt from
    a stream that can be read once only; MissingExtraError.
    """
    name = config.tokenizer
    if name == "auto":
        name = "dna" if is_fasta(corpus) else "bytes"
    if name == "bytes":
        return Bytes()
    if name == "dna":
        return Dna()
    if name != "bpe":
        return read_json(Path(name).expanduser())
    if not corpus.repeatable:
        raise DataError(f"data source {config.source!r}: can be read once only; bpe needs a file")
    share = sum(path.stat().st_size for path in corpus.files) * config.fractions[0]
    return learn(_first(corpus.chunks(), int(share)), config.bpe_vocab)


def _first(chunks: Iterator[bytes], count: int) -> Iterator[bytes]:
    """The first ``count`` bytes, at least a piece: nothing is learnt from the parts behind them."""
    for chunk in chunks:
        if count <= 0:
            return
        cut = chunk if count >= len(chunk) else chunk[: max(1, chunk.rfind(b"\n", 0, count) + 1)]
        yield cut
        count -= len(chunk)


def open_data(path: str | Path) -> Data:
    """The prepared data in a directory, of either kind. Raises DataError where there is none."""
    return SequenceFile.open(path) if is_sequence_file(path) else TokenFile.open(path)


def _reuse(there: SequenceFile, found: Found, settings: str, config: DataConfig) -> SequenceFile:
    if _with_defaults(there.manifest.settings) != _with_defaults(settings):
        raise DataError(f"{there.path}: was prepared with other settings; choose another directory")
    if there.manifest.source_digest != _digest(found):
        raise DataError(
            f"data source {config.source!r}: has changed since {there.path} was made of it; "
            f"give the same data or another directory"
        )
    return there


def _with_defaults(settings: str) -> dict[str, Any]:
    """Settings by key, such that one written before a key was known has its default."""
    return {**to_dict(DataConfig()), "source": "", **json.loads(settings)}


def _digest(found: Found) -> str:
    """SHA-256 of the names and contents of all files."""
    hasher = hashlib.sha256()
    for path in found.files:
        hasher.update(path.name.encode("utf-8", "surrogateescape") + b"\0")
        with reading(path), open_file(path) as file:
            for chunk in chunks_of(file):
                hasher.update(chunk)
    return hasher.hexdigest()
