"""From an exception to one line on stderr and an exit code."""

import difflib
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import cast

from quatrain.cli import Command
from quatrain.errors import ConfigError, QuatrainError


def guarded(commands: Mapping[str, Command], name: str, args: Sequence[str]) -> int:
    """Run the command; turn what it raises into one line on stderr and an exit code."""
    show_traceback = "--traceback" in args
    rest = [argument for argument in args if argument != "--traceback"]
    try:
        return _find(commands, name)(rest)
    except BrokenPipeError:
        _silence_stdout()  # the reader (head, less) has gone: nothing to tell, nobody to tell it to
        return 128 + signal.SIGPIPE
    except (Exception, KeyboardInterrupt) as error:
        if show_traceback:
            traceback.print_exc()
        code, line = describe(error)
        if line:
            sys.stderr.write(f"quatrain {name}: {line}\n")
        return code


def describe(error: BaseException) -> tuple[int, str]:
    """Exit code and line of an exception. Messages of several lines are folded into one."""
    if isinstance(error, KeyboardInterrupt):
        return 128 + getattr(error, "signal", signal.SIGINT), _fold(str(error)) or "interrupted"
    if isinstance(error, QuatrainError):
        return 2, _fold(str(error))
    if isinstance(error, OSError):
        return 2, _system(error)
    line = f"a fault of ours: {type(error).__name__}: {_fold(str(error))} (add --traceback to see where)"
    return 1, line


def closest(word: str, known: Sequence[str]) -> str:
    """`` (did you mean lstm?)``, or nothing when no known word is near."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""


def _find(commands: Mapping[str, Command], name: str) -> Callable[[Sequence[str]], int]:
    if name not in commands:
        known = ", ".join(commands)
        raise ConfigError(f"command = {name!r}: must be one of {known}{closest(name, list(commands))}")
    module, function = commands[name].target.split(":")
    return cast(Callable[[Sequence[str]], int], getattr(import_module(module), function))


def _system(error: OSError) -> str:
    files = [str(name) for name in (error.filename, error.filename2) if name is not None]
    reason = error.strerror or str(error) or type(error).__name__
    return _fold(f"{' -> '.join(files)}: {reason}" if files else reason)


def _fold(text: str) -> str:
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


def _silence_stdout() -> None:
    """Point stdout at nothing, so that the flush at exit doesn't fail once more."""
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
