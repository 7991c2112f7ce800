"""From an exception to lines on stderr and an exit code."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import cast

from quatrain.cli import Command
from quatrain.config.check import closest
from quatrain.errors import ConfigError, QuatrainError, ran_out_of_memory, shortage


def guarded(commands: Mapping[str, Command], name: str, args: Sequence[str]) -> int:
    """Run the command; turn what it raises into one line on stderr (one for each wrong key) and an exit
    code."""
    show_traceback = "--traceback" in args
    rest = [argument for argument in args if argument != "--traceback"]
    try:
        return _find(commands, name)(rest)
    except SystemExit as exit:  # of --help
        return exit.code if isinstance(exit.code, int) else 0
    except BrokenPipeError:
        _silence_stdout()  # the reader (head, less) has gone: nothing to tell, nobody to tell it to
        return 128 + signal.SIGPIPE
    except (Exception, KeyboardInterrupt) as error:
        if show_traceback:
            traceback.print_exc()
        code, lines = describe(error)
        prefix = f"quatrain {name}" if name in commands else "quatrain"
        sys.stderr.write("".join(f"{prefix}: {line}\n" for line in lines))
        return code


def describe(error: BaseException) -> tuple[int, list[str]]:
    """Exit code and lines of an exception: one, or one for each wrong key of a ConfigError."""
    if isinstance(error, KeyboardInterrupt):
        return 128 + getattr(error, "signal", signal.SIGINT), [_fold(str(error)) or "interrupted"]
    if isinstance(error, ConfigError):
        return 2, str(error).splitlines()
    if isinstance(error, QuatrainError):
        return 2, [_fold(str(error))]
    if isinstance(error, OSError):
        return 2, [_system(error)]
    if ran_out_of_memory(error):
        smaller = "a smaller model, batch or sequence takes less"
        return 2, [f"not enough memory{shortage(error)}: {smaller}"]
    return 1, [f"a fault of ours: {type(error).__name__}: {_fold(str(error))} (add --traceback to see where)"]


def _find(commands: Mapping[str, Command], name: str) -> Callable[[Sequence[str]], int]:
    if name not in commands:
        known = ", ".join(commands)
        raise ConfigError(f"command = {name!r}: must be one of {known}{closest(name, commands)}")
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
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
