"""Frozen dataclasses to and from plain dicts: one description of a config for TOML, flags and checkpoints.

A field's type says what is allowed, its ``Annotated`` text is its help, its class's ``__post_init__`` holds
the ranges::

    @dataclass(frozen=True, kw_only=True)
    class TrainConfig:
        lr: Annotated[float, "learning rate after the warm-up"] = 2e-3

Types: int, float (an int or inf is one; NaN is not), bool, str, ``Literal``, ``tuple[T, ...]``, unions of
these, nested dataclasses, and ``Mapping[str, Mapping[str, object]]``, a table whose content only its owner
can judge.
"""

import difflib
import hashlib
import json
import re
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from quatrain.config.check import closest
from quatrain.errors import ConfigError

C = TypeVar("C")
_FAILED: Any = object()  # stands for a value that has been reported as wrong


@dataclass(frozen=True, kw_only=True)
class FieldInfo:
    """One leaf of a config: dotted key, type without ``Annotated``, default (or MISSING), help."""

    key: str
    type: Any
    default: Any
    help: str

    @property
    def choices(self) -> tuple[str, ...]:
        """The words of a ``Literal``; empty for any other type."""
        return tuple(map(str, get_args(self.type))) if get_origin(self.type) is Literal else ()


def from_dict(cls: type[C], values: Mapping[str, Any], path: str = "") -> C:
    """Build ``cls`` from plain values; what is absent keeps its default.

    Raises one ConfigError with a line for every unknown key (and the closest known one), missing key, wrong
    type, and for what ``__post_init__`` of any nested class rejects. ``path`` is put before every key in
    these lines. A class's own ranges are judged only once all of its values have the right type.
    """
    problems: list[str] = []
    built = _build(cls, values, path, problems, [info.key for info in fields_of(cls, path)])
    if problems:
        raise ConfigError("\n".join(problems))
    return cast(C, built)


def to_dict(config: Any) -> dict[str, Any]:
    """The plain dict that ``from_dict`` turns back into an equal config: nested dicts, lists for tuples."""
    hints = _hints(cast(Any, type(config)))
    return {field.name: _plain(getattr(config, field.name), hints[field.name]) for field in fields(config)}


def fields_of(cls: type, path: str = "") -> list[FieldInfo]:
    """Every leaf of ``cls`` and of the dataclasses in it, with dotted keys, in order of definition."""
    found: list[FieldInfo] = []
    plain, full = _hints(cls), get_type_hints(cls, include_extras=True)
    for field in fields(cls):
        key, kind = _join(path, field.name), plain[field.name]
        if is_dataclass(kind):
            found += fields_of(cast(type, kind), key)
        else:
            notes = [note for note in getattr(full[field.name], "__metadata__", ()) if isinstance(note, str)]
            found.append(FieldInfo(key=key, type=kind, default=_default(field), help=" ".join(notes)))
    return found


def override(cls: type, values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with the dotted keys of ``changes`` set, as a new plain dict for ``from_dict`` to judge.

    A string is read as its field's type (``"3e-4"``, ``"true"``, ``"0.8,0.1,0.1"``), inside a free table as
    the TOML value it looks like. Nothing is rejected here: what is wrong stays as it is, so that one error
    can list it all.
    """
    known = {info.key: info.type for info in fields_of(cls)}
    merged: dict[str, Any] = _copied(values)
    for key, change in changes.items():
        *tables, last = key.split(".")
        table = merged
        for name in tables:
            inner = table.get(name)
            table[name] = dict(inner) if isinstance(inner, Mapping) else {}
            table = table[name]
        table[last] = _read(change, known.get(key, object)) if isinstance(change, str) else change
    return merged


def replace_in(config: C, changes: Mapping[str, Any]) -> C:
    """``config`` with dotted keys changed, as ``{"train.lr": "3e-4"}``. Raises as ``from_dict``."""
    return from_dict(type(config), override(type(config), to_dict(config), changes))


def digest(config: Any) -> str:
    """12 hex digits of the SHA-256 of a config's (or plain dict's) canonical JSON: a name for its values."""
    plain = to_dict(config) if is_dataclass(config) else config
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _build(cls: type, values: object, path: str, problems: list[str], known: list[str]) -> Any:
    """An instance of ``cls``, or _FAILED and more ``problems``; ``known``: leaf keys of the whole."""
    if isinstance(values, cls):
        return values
    if not isinstance(values, Mapping):
        problems.append(f"{path or cls.__name__} = {_show(values)}: must be a table of keys")
        return _FAILED
    before, hints, ready = len(problems), _hints(cls), {}
    for name, value in values.items():
        if name not in hints:
            problems.append(_unknown(path, str(name), value, hints, known))
    for field in fields(cls):
        key = _join(path, field.name)
        if field.name in values:
            ready[field.name] = _convert(hints[field.name], values[field.name], key, problems, known)
        elif _default(field) is MISSING:
            problems.append(f"{key}: is missing and has no default")
    if len(problems) > before:
        return _FAILED
    try:
        return cls(**ready)
    except ConfigError as error:
        problems += [_qualify(line, path, hints) for line in str(error).splitlines()]
        return _FAILED


def _convert(kind: Any, value: Any, key: str, problems: list[str], known: list[str]) -> Any:
    """``value`` as ``kind``, or _FAILED after adding to ``problems``."""
    origin, inner = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _build(cast(type, kind), value, key, problems, known)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_convert(inner[0], item, f"{key}[{i}]", problems, known) for i, item in enumerate(value))
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {
            str(k): _convert(inner[1], item, _join(key, str(k)), problems, known) for k, item in value.items()
        }
    if origin in (Union, types.UnionType):
        for option in inner:
            attempt: list[str] = []
            result = _convert(option, value, key, attempt, known)
            if not attempt:
                return result
    elif (result := _scalar(kind, value)) is not _FAILED:
        return result
    hint = closest(value, map(str, inner)) if origin is Literal and isinstance(value, str) else ""
    problems.append(f"{key} = {_show(value)}: must be {_describe(kind)}{hint}")
    return _FAILED


def _scalar(kind: Any, value: Any) -> Any:
    """``value`` as the scalar ``kind``, or _FAILED. As in TOML, True is no number and 1.0 no integer."""
    if get_origin(kind) is Literal:
        same = [word for word in get_args(kind) if type(word) is type(value) and word == value]
        return same[0] if same else _FAILED
    if kind in (object, Any):
        return _copied(value)
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value) if value == value else _FAILED  # NaN is not equal to itself
        except OverflowError:
            return _FAILED
    return value if kind in (int, bool, str) and type(value) is kind else _FAILED


def _read(text: str, kind: Any) -> Any:
    """A command-line string as ``kind`` where it can be read so, otherwise the string itself."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is tuple:
        return [_read(part.strip(), inner[0]) for part in text.split(",") if part.strip()]
    options = inner if origin in (Union, types.UnionType) else (kind,)
    for option in options:
        if option is str or (get_origin(option) is Literal and text in get_args(option)):
            return text
    readers: dict[Any, Callable[[str], Any]] = {bool: _read_bool, int: int, float: float}
    for wanted, reader in readers.items():
        if wanted in options or object in options:
            try:
                return reader(text)
            except ValueError:
                continue
    return text


def _read_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _plain(value: Any, kind: Any = object) -> Any:
    if is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        item_kind = get_args(kind)[0] if get_args(kind) else object
        return [_plain(item, item_kind) for item in value]
    # An int given for a float is the same config, so it is written the same way and has the same digest.
    return float(value) if kind is float and type(value) is int else value


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, (list, tuple)) else value


def _unknown(path: str, name: str, value: object, siblings: Iterable[str], known: list[str]) -> str:
    """The line for a key that does not exist; suggests a sibling, or that word elsewhere in the config."""
    near = difflib.get_close_matches(name, list(siblings), n=1)
    candidates = [_join(path, near[0])] if near else [key for key in known if key.rsplit(".", 1)[-1] == name]
    hint = f" (did you mean {candidates[0]}?)" if candidates else closest(_join(path, name), known)
    return f"{_join(path, name)} = {_show(value)}: unknown key{hint}"


def _qualify(line: str, path: str, hints: Mapping[str, Any]) -> str:
    """Put ``path`` before a message of ``__post_init__`` that names its field without it."""
    word = re.match(r"\w+", line)
    return f"{path}.{line}" if path and word and word[0] in hints else line


def _describe(kind: Any) -> str:
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ("one of " if len(inner) > 1 else "") + ", ".join(map(str, inner))
    if origin in (Union, types.UnionType):
        return " or ".join(map(_describe, inner))
    if origin is tuple:
        return f"a list, each item {_describe(inner[0])}"
    return names.get(kind, "a table of keys")


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _default(field: "Field[Any]") -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


@cache
def _hints(cls: Any) -> dict[str, Any]:
    """Types of the fields alone, without ``Annotated`` and without class variables."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}
