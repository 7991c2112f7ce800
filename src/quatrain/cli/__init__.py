"""The ``quatrain`` command. A command's module, and with it torch, is imported when that command runs."""

import sys
from collections.abc import Sequence
from typing import NamedTuple


class Command(NamedTuple):
    """Where a command lives (``module:function``, called with its arguments) and what it does, in a line."""

    target: str
    help: str


COMMANDS = {
    "compare": Command(
        "quatrain.cli.compare:run", "train the architectures side by side on your data and show a page"
    ),
    "train": Command(
        "quatrain.cli.train:run", "train a model on text, series, labels or recordings, or go on with one"
    ),
    "generate": Command("quatrain.cli.generate:run", "let a trained model continue a text"),
    "predict": Command(
        "quatrain.cli.predict:run", "classes, forecasts, tags or transcripts of new inputs by a trained model"
    ),
    "inspect": Command(
        "quatrain.cli.inspect:run", "show what a trained model does inside on one input, as a page"
    ),
    "eval": Command("quatrain.cli.eval:run", "score a trained model on data, beside what is trivial"),
    "claims": Command(
        "quatrain.cli.claims:run", "measure what everybody says about the four architectures and show a page"
    ),
    "reproduce": Command(
        "quatrain.cli.reproduce:run", "train the models of a paper's table again, beside its numbers"
    ),
    "doctor": Command(
        "quatrain.cli.doctor:run", "say what is here, which kernels will run and why not others"
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code.

    0 done, 2 the user can fix it (one line on stderr says how), 130 or 143 stopped by a signal, 1 a fault of
    ours (one line, and the traceback with ``--traceback``).
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        sys.stdout.write(usage())
        return 0
    if args[0] in ("-V", "--version"):
        from quatrain import __version__

        sys.stdout.write(f"quatrain {__version__}\n")
        return 0
    from quatrain.cli import _errors

    return _errors.guarded(COMMANDS, args[0], args[1:])


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "Quatrain: RNN, LSTM, Transformer and Mamba behind one interface: train, compare, stream.",
            "",
            "usage: quatrain COMMAND [ARGUMENTS]     quatrain COMMAND --help     quatrain --version",
            "",
            *lines,
            "",
            "Every command takes --traceback, which shows where an error came from.",
            "",
        ]
    )
