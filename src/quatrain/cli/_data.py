"""The options that say which data a command reads and what it is taken for: one set for all of them."""

from quatrain.cli._flags import Option, Parsed

TASK = Option("--task", "lm, classify, forecast, tag or transcribe (default: recognised)", "TASK")
TARGET = Option("--target", "columns to forecast (default: all), or the one with the label", "A,B")
HORIZON = Option("--horizon", "steps ahead that a forecast reaches (default: 24)", "N")
TOKENIZER = Option("--tokenizer", "of a text: bytes (default), dna, bpe, or a tokenizer.json", "NAME")
OPTIONS = (TASK, TARGET, HORIZON, TOKENIZER)

SHORT = {
    "data": "data.source",
    "task": "data.task",
    "target": "data.target",
    "horizon": "data.horizon",
    "tokenizer": "data.tokenizer",
}


def how_else(task: str) -> str:
    """What is said behind a kind of data that nobody named."""
    return " (recognised; --task chooses another)" if task == "auto" else ""


def prompt(tokenizer: str) -> str:
    """A beginning that a language model with this tokenizer can read, for a proposal."""
    return "ACGT" if tokenizer == "dna" else "The "


def shortcuts(parsed: Parsed, names: dict[str, str]) -> None:
    """Put arguments that stand for a config key among the keys; a problem where a key is given as well."""
    for name, key in names.items():
        if name not in parsed.given:
            continue
        if key in parsed.keys:
            parsed.problems.append(
                f"--{key} = {parsed.keys[key]!r}: contradicts {name} = {parsed[name]!r}; give one of them"
            )
        parsed.keys[key] = parsed[name]
