"""Tasks of the papers, drawn without end from a seed, and the cells that reproduce a paper's table.

Importing this package loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from quatrain.config.check import closest
from quatrain.errors import ConfigError

if TYPE_CHECKING:
    from quatrain.lab.paper._generator import Generator as Generator

TASKS = {
    "selective_copying": "selective_copying:SelectiveCopying",
    "induction_heads": "induction_heads:InductionHeads",
    "mqar": "mqar:MQAR",
    "parity": "parity:Parity",
    "modular_arithmetic": "modular_arithmetic:ModularArithmetic",
    "adding": "adding:Adding",
    "copy_memory": "copy_memory:CopyMemory",
    "string_copying": "string_copying:StringCopying",
    "dyck": "dyck:Dyck",
    "sequential_mnist": "sequential_mnist:SequentialMNIST",
    "wikitext2": "wikitext2:WikiText2",
    "raw_audio": "raw_audio:RawAudio",
}


def task_class(name: str) -> "type[Generator]":
    """The generator registered as ``name``. Raises ConfigError for another name; it suggests the nearest."""
    name = named(name)
    module, cls = TASKS[name].split(":")
    found: type[Generator] = getattr(import_module(f"{__name__}.{module}"), cls)
    return found


def named(name: str) -> str:
    """A task's name as the table has it: ``-`` and ``_`` are one. Raises ConfigError where there is none."""
    plain = name.lower().replace("-", "_")
    if plain not in TASKS:
        known = ", ".join(TASKS)
        raise ConfigError(f"task = {name!r}: must be one of {known}{closest(plain, TASKS)}")
    return plain


__all__ = ["TASKS", "named", "task_class"]
