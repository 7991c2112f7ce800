"""TOML files to and from plain dicts."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quatrain.errors import ConfigError

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}


def load_toml(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises ConfigError naming file, line and column, or OSError."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not TOML: byte {error.start} is not UTF-8") from None


def dump_toml(values: Mapping[str, Any]) -> str:
    """The text that ``load_toml`` reads back as an equal dict. Raises TypeError for None and objects."""
    lines: list[str] = []
    _table(values, (), lines)
    return "\n".join(lines) + "\n" if lines else ""


def _table(values: Mapping[str, Any], path: tuple[str, ...], lines: list[str]) -> None:
    tables = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    rest = {key: value for key, value in values.items() if key not in tables}
    if path and (rest or not tables):
        lines += ([""] if lines else []) + [f"[{'.'.join(map(_key, path))}]"]
    lines += [f"{_key(key)} = {_value(value)}" for key, value in rest.items()]
    for key, table in tables.items():
        _table(table, (*path, key), lines)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, Mapping):  # a table inside a list
        return "{" + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + "}"
    raise TypeError(f"TOML has no {type(value).__name__}: {value!r}")


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _string(key)


def _string(text: str) -> str:
    def escape(match: re.Match[str]) -> str:
        return _ESCAPES.get(match[0], f"\\u{ord(match[0]):04x}")

    return '"' + re.sub(r'["\\\x00-\x1f\x7f]', escape, text) + '"'
