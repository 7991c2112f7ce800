"""What a reproduction is: a task's settings, the models, their training and tests, and what was published.

Importing this module loads no torch.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from math import isfinite
from typing import Annotated, Any, Literal

from quatrain.config.check import check, closest
from quatrain.config.schema import from_dict
from quatrain.config.toml import load_toml
from quatrain.errors import ConfigError
from quatrain.lab.paper import TASKS, named
from quatrain.lab.paper.metric import Metric

Size = Literal["", "cpu", "gpu"]  # as published, or reduced to what one of these does in minutes
SIZES = {"cpu": "a CPU", "gpu": "a GPU"}


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a model's number has to reach. ``least`` or ``most``, at one length or at every tested one."""

    least: Annotated[float, "the number is at least this"] = float("-inf")
    most: Annotated[float, "the number is at most this"] = float("inf")
    at: Annotated[tuple[int, ...], "lengths at which it holds; empty: the recipe's own"] = ()

    @property
    def asks(self) -> bool:
        """Whether there is a target at all."""
        return isfinite(self.least) or isfinite(self.most)

    @property
    def says(self) -> str:
        """The target in words; empty where there is none."""
        if not self.asks:
            return ""
        return f">= {self.least:g}" if isfinite(self.least) else f"<= {self.most:g}"


@dataclass(frozen=True, kw_only=True)
class Published:
    """A number of a paper."""

    value: Annotated[float, "as printed, a share where the metric is one"]
    source: Annotated[str, "arXiv id and table"]
    length: Annotated[int, "at which it was measured; 0: the recipe's own"] = 0
    note: Annotated[str, "what differs from what is measured here"] = ""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One model: its shape, its learning rates, what it should reach and what a paper says it does."""

    model: Annotated[
        Mapping[str, object], "keys of a model's config; pattern is the entry's name if absent"
    ] = field(default_factory=dict)
    learning_rates: Annotated[tuple[float, ...], "tried with the first seed, chosen on validation"] = (1e-3,)
    steps: Annotated[int, "optimiser steps of this model; 0: those of the recipe"] = 0
    seeds: Annotated[int, "runs at its learning rate; 0: those of the recipe"] = 0
    longest: Annotated[int, "longest sequence it is tested on; 0: no limit"] = 0
    why: Annotated[str, "why there is a limit"] = ""
    target: Target = field(default_factory=Target)
    published: tuple[Published, ...] = ()

    def __post_init__(self) -> None:
        check(bool(self.learning_rates), "learning_rates", self.learning_rates, "must name at least one")
        for rate in self.learning_rates:
            check(rate > 0 and isfinite(rate), "learning_rates", rate, "must be positive and finite")
        for name in ("steps", "seeds", "longest"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class Training:
    """How every model is trained."""

    steps: Annotated[int, "optimiser steps"] = 1000
    batch: Annotated[int, "sequences of a step"] = 64
    lengths: Annotated[
        tuple[int, ...], "one length, the least and the greatest, or from three on all that are drawn"
    ] = (64,)
    warmup: Annotated[float, "fraction of the steps over which the learning rate rises"] = 0.05
    lr_floor: Annotated[float, "last learning rate as a fraction of the highest; 1: constant"] = 0.1
    weight_decay: Annotated[float, "decay of matrices"] = 0.0
    beta2: Annotated[float, "AdamW's memory of the squared gradient"] = 0.99
    clip: Annotated[float, "largest gradient norm"] = 1.0
    look_every: Annotated[int, "steps between two looks at the validation part"] = 200
    look_sequences: Annotated[int, "sequences of a look"] = 256
    save_every: Annotated[int, "steps between two checkpoints"] = 500
    dtype: Annotated[Literal["float32", "bfloat16"], "of matrix products"] = "float32"

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "look_every", "look_sequences", "save_every"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        fine = self.lengths and self.lengths[0] >= 1 and sorted(set(self.lengths)) == [*self.lengths]
        check(bool(fine), "lengths", list(self.lengths), "must name at least one, in rising order")

    @property
    def high(self) -> int:
        """The longest training sequence."""
        return self.lengths[-1]


@dataclass(frozen=True, kw_only=True)
class Testing:
    """What the trained models are asked."""

    lengths: Annotated[tuple[int, ...], "lengths of the test sequences"] = (64,)
    headline: Annotated[
        tuple[int, ...], "lengths whose mean is the number of the table; empty: the longest"
    ] = ()
    metric: Annotated[Metric, "what the table shows"] = "token_accuracy"
    sequences: Annotated[int, "test sequences of a length"] = 1024
    steps: Annotated[int, "most steps read for one length; fewer sequences, but at least 8, above it"] = 2**23

    def __post_init__(self) -> None:
        check(bool(self.lengths), "lengths", list(self.lengths), "must name at least one")
        for name in ("sequences", "steps"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        for length in self.headline:
            check(
                length in self.lengths, "headline", length, f"must be one of lengths = {list(self.lengths)}"
            )

    def count(self, length: int) -> int:
        """Test sequences of a length."""
        return max(min(8, self.sequences), min(self.sequences, self.steps // length))

    @property
    def asked(self) -> tuple[int, ...]:
        """The lengths of the table's number."""
        return self.headline or (max(self.lengths),)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One table of a paper, as published or reduced. Raises ConfigError for values out of range."""

    task: Annotated[str, "which generator"] = "parity"
    title: Annotated[str, "what is reproduced"] = ""
    source: Annotated[str, "whose settings these are"] = ""
    differs: Annotated[str, "what differs from the paper"] = ""
    reduced: Annotated[str, "what was made smaller; empty: settings as published"] = ""
    gpu: Annotated[bool, "whether a CPU would take hours"] = False
    seeds: Annotated[int, "runs of each model at its learning rate"] = 3
    data: Annotated[Mapping[str, object], "settings of the generator"] = field(default_factory=dict)
    train: Training = field(default_factory=Training)
    test: Testing = field(default_factory=Testing)
    models: Annotated[Mapping[str, Contestant], "by name"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rule = f"must be one of {', '.join(TASKS)}{closest(self.task, TASKS)}"
        check(self.task in TASKS, "task", self.task, rule)
        check(self.seeds >= 1, "seeds", self.seeds, "must be at least 1")

    def runs(self, name: str, seeds: int = 0) -> int:
        """Runs of a model at its learning rate: ``seeds``, or without them its own number."""
        return seeds or self.models[name].seeds or self.seeds

    def chosen(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The models called ``names``; all without names. Raises ConfigError for one that is not here."""
        for name in names:
            if name not in self.models:
                known = ", ".join(self.models)
                raise ConfigError(f"mixers = {name!r}: must be of {known}{closest(name, self.models)}")
        return tuple(dict.fromkeys(names)) or tuple(self.models)


def names() -> tuple[str, ...]:
    """The tasks that have a recipe."""
    folder = files("quatrain.lab.paper") / "recipes"
    return tuple(task for task in TASKS if (folder / f"{task}.toml").is_file())


def load(name: str, *, reduced: Size = "", source: str = "") -> Recipe:
    """The recipe of a task, as published or with what its table ``[reduced]`` changes.

    ``name`` is a task's, or the path of a recipe of your own, which ends in ``.toml`` and names its task.
    ``reduced`` asks for what a CPU or a GPU does in minutes: the table ``[reduced.cpu]`` or
    ``[reduced.gpu]``, laid over what ``[reduced]`` itself says for both. ``source`` is the file of a task
    that reads one. Raises ConfigError for an unknown task, a task without that variant, or a recipe that is
    not right; OSError for one that cannot be read.
    """
    if name.endswith(".toml"):
        own = load_toml(name)
        if "task" not in own:
            raise ConfigError(f"{name}: task: is missing; must be one of {', '.join(TASKS)}")
        return read(own, str(own.pop("task")), reduced=reduced, source=source)
    task = named(name)
    file = files("quatrain.lab.paper") / "recipes" / f"{task}.toml"
    if not file.is_file():
        raise ConfigError(f"task = {name!r}: has a generator and no recipe; {', '.join(names())} have one")
    return read(tomllib.loads(file.read_text("utf-8")), task, reduced=reduced, source=source)


def read(values: dict[str, Any], task: str, *, reduced: Size = "", source: str = "") -> Recipe:
    """A recipe from the tables of its file."""
    smaller = values.pop("reduced", None)
    if reduced:
        changes = _changes(smaller or {}, reduced)
        if not changes:
            others = [SIZES[size] for size in SIZES if size != reduced and _changes(smaller or {}, size)]
            which = f" for {SIZES[reduced]}, only for {others[0]}" if others else ""
            raise ConfigError(f"task = {task!r}: has no reduced variant{which}; leave --reduced out")
        says = changes.pop("says", "smaller settings")
        values = _merged(values, {**changes, "reduced": says})
    recipe = from_dict(Recipe, {"task": task, **values})
    if source:
        recipe = replace(recipe, data={**recipe.data, "source": source})
    return recipe


def _changes(smaller: Mapping[str, Any], size: str) -> dict[str, Any]:
    """What a table ``[reduced]`` changes for a device."""
    both = {key: value for key, value in smaller.items() if key not in SIZES}
    return _merged(both, smaller.get(size, {}))


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with the tables of ``changes`` laid over them, at every depth."""
    merged = dict(values)
    for key, change in changes.items():
        both = isinstance(change, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], change) if both else change
    return merged


__all__ = [
    "SIZES",
    "Contestant",
    "Published",
    "Recipe",
    "Size",
    "Target",
    "Testing",
    "Training",
    "load",
    "names",
    "read",
]
