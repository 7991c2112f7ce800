"""What kind of data a source is, which task it is for, and how it is read: found out, said, overridable."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from quatrain.config.check import check
from quatrain.data.config import DataConfig
from quatrain.data.corpus import PYTHON, STDIN, Corpus, ending, find, is_binary, is_fasta
from quatrain.data.readers import audio, folder, jsonl, series, table, ucr
from quatrain.data.readers._item import Item
from quatrain.data.sequences import Meaning
from quatrain.errors import DataError


@dataclass(frozen=True)
class Found:
    """What a source is.

    Attributes:
        task: as in `quatrain.data.task.TASKS`; "lm" is prepared by `quatrain.data.tokens`, all others here.
        name: short, fit for a file name.
        says: what was recognised and what it is taken for, a line for the person.
        files: what is read, in order.
        meaning: what is known before reading.
        read: the items; None for lm.
    """

    task: str
    name: str
    says: str
    files: tuple[Path, ...] = ()
    meaning: Meaning | None = None
    read: Callable[[], Iterator[Item]] | None = None


def recognise(config: DataConfig) -> Found:
    """Find out what ``config.source`` is. ``config.task`` goes before what it looks like.

    Raises DataError where nothing is found, or where the task does not go with the data.
    """
    wanted, source = config.task, config.source
    path = Path(source).expanduser()
    if source in (STDIN, PYTHON) or wanted == "lm" or not path.exists():
        found = _text(config, source)
    elif path.is_dir():
        found = _directory(config, path)
    elif ending(path) in jsonl.ENDINGS:
        found = _jsonl(config, path)
    elif ending(path) in table.ENDINGS:
        found = _table(config, path)
    elif ending(path) == ".ts":
        found = _ucr(config, (path,))
    elif ending(path) in audio.ENDINGS:
        raise DataError(
            f"data source {source!r}: is one recording; give a directory with one folder per class"
        )
    else:
        found = _text(config, source)
    if wanted not in ("auto", found.task):
        raise DataError(f"data source {source!r}: is {found.says}; the task {wanted} needs other data")
    return found


def _text(config: DataConfig, source: str) -> Found:
    corpus = find(source)
    binary = len(corpus.files) == 1 and corpus.repeatable and is_binary(corpus.files[0])
    kind = "binary data, not text" if binary else "text"
    says = f"{kind} ({corpus.description}): a language model over its {_tokens(config, corpus)}"
    return Found("lm", corpus.name, says, corpus.files)


def _tokens(config: DataConfig, corpus: Corpus) -> str:
    """What a token of a text is, in words; of DNA, whether the other strand is read as well."""
    name = config.tokenizer
    if name == "auto":
        name = "dna" if is_fasta(corpus) else "bytes"
    if name == "dna":
        both = "" if config.reverse_complement == "off" else "; windows come from both strands"
        return f"bases, each record a document{both}"
    return {"bytes": "bytes", "bpe": f"{config.bpe_vocab:,} byte pairs"}.get(name, f"tokens of {name}")


def _read_as(config: DataConfig, texts: bool = True) -> str:
    """What a step of a labelled text is, in words."""
    name = {"auto": "bytes", "bpe": f"{config.bpe_vocab:,} byte pairs"}.get(
        config.tokenizer, config.tokenizer
    )
    return f" read as {name}" if texts else ""


def _directory(config: DataConfig, path: Path) -> Found:
    name = find_name(path)
    series_files = sorted(path.glob("*.ts"))
    if series_files:
        return _ucr(config, tuple(series_files))
    classes = folder.classes(path)
    if not classes:
        if not any(path.iterdir()):
            raise DataError(f"data source {config.source!r}: the directory is empty")
        if config.task not in ("auto", "lm"):
            rule = "must hold one folder per class, two at least, and files in them only"
            raise DataError(f"data source {config.source!r}: {rule}")
        return _text(config, config.source)
    files = [file for pairs in classes.values() for _, file in pairs]
    heard = {ending(file) in audio.ENDINGS for file in files}
    if len(heard) > 1:
        raise DataError(
            f"data source {config.source!r}: holds recordings and other files in its class folders"
        )
    kind = "recordings" if heard == {True} else "texts"
    features = config.audio if kind == "recordings" else ""
    return Found(
        "classify",
        name,
        f"{len(files):,} {kind} in {len(classes)} folders{_read_as(config, kind == 'texts')}: "
        "classes by folder",
        tuple(files),
        Meaning(task="classify", features=features),
        lambda: folder.read(classes, features),
    )


def _jsonl(config: DataConfig, path: Path) -> Found:
    keys = jsonl.keys(path)
    what = ", ".join(key for key in jsonl.KNOWN if key in keys) or ", ".join(sorted(keys)) or "no keys"
    meaning = Meaning(task="classify", features=config.audio if "audio" in keys else "")
    if "labels" in keys:
        task, says = "tag", "one tag for each step"
    elif "label" in keys:
        task, says = "classify", "classes by label"
    elif "text" in keys and keys & {"audio", "values"}:
        task, says = "transcribe", "texts to be heard"
    elif "values" in keys:
        task, says = "forecast", f"a series a line, forecast {config.horizon} steps ahead"
        meaning = replace(meaning, horizon=config.horizon, season=config.season, inputs=config.inputs)
    else:
        return _text(config, config.source)
    if config.task == "transcribe" and task == "classify" and keys & {"audio", "values"}:
        task, says = "transcribe", "labels as texts to be heard"
    meaning = replace(meaning, task=task)

    read_as = _read_as(config, task == "classify" and "text" in keys and not keys & {"audio", "values"})
    says = f"JSON Lines with {what}{read_as}: {says}"
    return Found(task, find_name(path), says, (path,), meaning, lambda: jsonl.read(path, meaning.features))


def _table(config: DataConfig, path: Path) -> Found:
    opened = table.open_table(path)
    label = "" if config.task == "forecast" else series.label_column(opened, ())
    timed = table.time_column(opened)
    labelled = config.task == "classify" or (config.task == "auto" and label and not timed)
    if labelled:
        label = series.label_column(opened, config.target)
        if not label:
            known = ", ".join(opened.columns)
            raise DataError(f"{path}: data.target: name the column with the label; found {known}")
        text = series.text_column(opened, label)
        what = (
            f"texts in {text!r}{_read_as(config)}"
            if text
            else f"rows of {len(series.row_numbers(opened, label))} numbers"
        )
        return Found(
            "classify",
            find_name(path),
            f"a table, {what}: classes by {label!r}",
            (path,),
            Meaning(task="classify"),
            lambda: series.read_rows(opened, label),
        )
    columns = series.columns_of(opened, config.target, config.calendar, config.others)
    by = f" by {columns.time!r}" if columns.time else ""
    shown = ", ".join(columns.targets[:8]) + (", ..." if len(columns.targets) > 8 else "")
    return Found(
        "forecast",
        find_name(path),
        f"a series of {len(columns.names)} columns{by}: forecast {shown}, {config.horizon} steps ahead",
        (path,),
        Meaning(
            task="forecast",
            columns=tuple(columns.names),
            targets=len(columns.targets),
            horizon=config.horizon,
            season=config.season,
            time=columns.time,
            calendar=columns.calendar,
            inputs=config.inputs,
        ),
        lambda: series.read_series(opened, columns),
    )


def _ucr(config: DataConfig, files: tuple[Path, ...]) -> Found:
    if len(files) == 1 and files[0].stem.upper().endswith(("_TRAIN", "_TEST")):
        stem = files[0].stem.rsplit("_", 1)[0]
        pair = [path for path in sorted(files[0].parent.glob("*.ts")) if path.stem.rsplit("_", 1)[0] == stem]
        files = tuple(pair)
    parts = dict.fromkeys(files, "")
    for path in files:
        for word in ("train", "test"):
            if path.stem.lower().endswith(f"_{word}"):
                parts[path] = word
    if len(files) != 1 and sorted(parts.values()) != ["test", "train"]:
        raise DataError(f"data source {config.source!r}: must hold one NAME_TRAIN.ts and its NAME_TEST.ts")
    if len(files) == 1:
        parts = {files[0]: ""}
    order = sorted(files, key=lambda path: parts[path] == "test")

    def read() -> Iterator[Item]:
        for path in order:
            yield from ucr.read(path, parts[path])

    name = find_name(order[0]).removesuffix("_TRAIN")
    says = "UCR/UEA series" + (", split as the archive has it" if len(files) > 1 else "")
    return Found("classify", name, f"{says}: classes by label", tuple(order), Meaning(task="classify"), read)


def find_name(path: Path) -> str:
    """A short name for a run: the directory's, or the file's without its endings."""
    if path.is_dir():
        return path.resolve().name or "data"
    check(bool(path.name), "data.source", str(path), "must name a file")
    stem = path.with_suffix("") if path.suffix in (".gz", ".xz", ".bz2") else path
    return stem.stem or "data"
