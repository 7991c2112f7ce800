"""Command-line arguments: a command's own options, and every key of a config as ``--train.lr 3e-4``."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from quatrain.config.check import closest
from quatrain.config.schema import FieldInfo, fields_of, from_dict, override
from quatrain.errors import ConfigError

C = TypeVar("C")


@dataclass(frozen=True)
class Option:
    """One option or positional argument of a command.

    ``kind`` is str, int, float, or bool for a switch that takes no value; ``many`` collects every use in a
    tuple.
    """

    name: str  # "--out", or "data" for a positional argument
    help: str
    metavar: str = ""
    kind: type = str
    default: Any = ""
    many: bool = False
    required: bool = False

    @property
    def positional(self) -> bool:
        return not self.name.startswith("-")


DEVICE = Option("--device", "auto, cpu or cuda (default: auto: cuda where it is usable)", "NAME", str, "auto")


@dataclass(frozen=True)
class Surface:
    """Everything one command accepts. ``keys`` is the config class whose keys are flags, if any."""

    command: str
    help: str
    options: tuple[Option, ...]
    keys: type | None = None
    examples: tuple[str, ...] = ()


@dataclass
class Parsed:
    """What was given: values of options by name without dashes, config keys as text, and what is wrong so
    far."""

    options: dict[str, Any]
    keys: dict[str, str] = field(default_factory=dict)
    given: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    def __getitem__(self, name: str) -> Any:
        return self.options[name]

    def raise_problems(self) -> None:
        """Raise one ConfigError with a line for each problem, if there is any."""
        if self.problems:
            raise ConfigError("\n".join(self.problems))

    def config(self, cls: type[C], values: Mapping[str, Any]) -> C:
        """The config that ``values`` and the flags over them give. One ConfigError lists what is wrong with
        both."""
        try:
            config = from_dict(cls, override(cls, values, self.keys))
        except ConfigError as error:
            self.problems += str(error).splitlines()
        self.raise_problems()
        return config


def parse(surface: Surface, args: Sequence[str]) -> Parsed:
    """Read ``args``. ``--help`` prints the help and exits; faults are collected in ``problems``, none raised
    here.

    ``--name value`` and ``--name=value`` are one; in names ``-`` and ``_`` are one; ``--`` ends the options.
    """
    named = {_plain(option.name): option for option in surface.options if not option.positional}
    parsed = Parsed({_plain(o.name): () if o.many else o.default for o in surface.options})
    places = [option for option in surface.options if option.positional]
    rest = list(args)
    while rest:
        argument = rest.pop(0)
        if argument in ("-h", "--help"):
            sys.stdout.write(help_text(surface))
            raise SystemExit(0)
        if argument == "--":
            _positional(parsed, places, rest)
            break
        if not argument.startswith("-") or argument == "-":
            _positional(parsed, places, [argument])
            continue
        name, equals, value = argument.partition("=")
        option = named.get(_plain(name))
        if option and option.kind is bool:
            _switch(parsed, option, value, bool(equals))
            continue
        if not equals:
            if not rest or (rest[0].startswith("--") and len(rest[0]) > 2):
                parsed.problems.append(
                    f"{name}: needs a value" if _known(surface, name, option) else _unknown(surface, name)
                )
                continue
            value = rest.pop(0)
        if option:
            _take(parsed, option, value)
        elif surface.keys and "." in name:
            parsed.keys[_plain(name)] = value
        else:
            parsed.problems.append(_unknown(surface, name))
    for option in surface.options:
        if option.required and _plain(option.name) not in parsed.given:
            parsed.problems.append(f"{option.name}: is missing; {option.help}")
    return parsed


def help_text(surface: Surface) -> str:
    """Usage, options and, for a command that takes a config, every key with its default."""
    places = [
        (option.name.upper() if option.required else f"[{option.name}]") + ("..." if option.many else "")
        for option in surface.options
        if option.positional
    ]
    keys = " [--KEY VALUE ...]" if surface.keys else ""
    lines = [f"usage: quatrain {surface.command} {' '.join(places)} [OPTIONS]{keys}", "", surface.help, ""]
    rows = [(f"{option.name} {option.metavar}".strip(), option.help) for option in surface.options]
    rows.append(("--traceback", "show where an error came from"))
    lines += ["arguments:", *_columns(rows)]
    if surface.keys:
        lines += [
            "",
            "keys, also of a TOML recipe; a flag goes before the recipe, the recipe before the default:",
        ]
        lines += _columns([_key_row(info) for info in fields_of(surface.keys)])
    if surface.examples:
        lines += ["", "examples:", *(f"  {example}" for example in surface.examples)]
    return "\n".join(lines) + "\n"


def _positional(parsed: Parsed, places: list[Option], values: list[str]) -> None:
    for value in values:
        free = [option for option in places if option.many or option.name not in parsed.given]
        if free:
            _take(parsed, free[0], value)
        else:
            parsed.problems.append(f"{value!r}: is one argument too many")


def _switch(parsed: Parsed, option: Option, value: str, valued: bool) -> None:
    if valued:
        parsed.problems.append(f"{option.name} = {value!r}: takes no value")
    parsed.options[_plain(option.name)] = True
    parsed.given.add(_plain(option.name))


# By metavar: what an argument must name. An empty variable of the shell would take the default otherwise.
_NAMED = {"DIR": "must name a directory", "FILE": "must name a file", "A,B": "must name at least one"}


def _take(parsed: Parsed, option: Option, text: str) -> None:
    name = _plain(option.name)
    if option.metavar in _NAMED and not text.strip(" ,"):
        parsed.problems.append(f"{option.name} = {text!r}: {_NAMED[option.metavar]}")
        return
    words = {int: "an integer", float: "a number"}
    try:
        value = option.kind(text)
    except ValueError:
        parsed.problems.append(f"{option.name} = {text!r}: must be {words[option.kind]}")
        return
    if option.many:
        parsed.options[name] = (*parsed.options[name], value)
    elif name in parsed.given:
        parsed.problems.append(f"{option.name} = {text!r}: is given twice")
    else:
        parsed.options[name] = value
    parsed.given.add(name)


def _known(surface: Surface, name: str, option: Option | None) -> bool:
    return option is not None or (
        surface.keys is not None and _plain(name) in {i.key for i in fields_of(surface.keys)}
    )


def _unknown(surface: Surface, name: str) -> str:
    """The line for a flag that doesn't exist; ``--lr`` is told of ``--train.lr``."""
    keys = [info.key for info in fields_of(surface.keys)] if surface.keys else []
    same = [f"--{key}" for key in keys if key.rsplit(".", 1)[-1] == _plain(name)]
    flags = [option.name for option in surface.options if not option.positional] + [
        f"--{key}" for key in keys
    ]
    hint = f" (did you mean {same[0]}?)" if same else closest(name, flags)
    return f"{name}: unknown option{hint}"


def _key_row(info: FieldInfo) -> tuple[str, str]:
    default = info.default
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    shown = {True: "true", False: "false"}.get(shown, shown) if isinstance(shown, bool) else shown
    choices = f" ({', '.join(info.choices)})" if info.choices else ""
    return f"--{info.key} {shown if shown not in ('', {}) else '...'}", info.help + choices


def _columns(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = min(34, max(len(left) for left, _ in rows))
    return [f"  {left:<{width}}  {right}".rstrip() for left, right in rows]


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_")
