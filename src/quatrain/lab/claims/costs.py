"""What length costs: time and peak memory of training and reading, time and bytes of a generated token."""

import json
import subprocess
import sys
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from quatrain.config.schema import to_dict
from quatrain.errors import QuatrainError
from quatrain.lab.claims import stats, timing
from quatrain.lab.claims.claim import Rows
from quatrain.lab.claims.config import MIXERS, ClaimsConfig
from quatrain.lab.claims.timing import Tell
from quatrain.model.backbone import State
from quatrain.model.lm import LanguageModel

K = TypeVar("K", bound=Hashable)

_LONG = 512  # from here on an exponent is fitted: below, calls and weights cost more than steps
_STEPS = 32  # generated tokens in a timed stretch
_READ = 512  # tokens after which a recurrent state is timed
_CHUNK = 2048  # tokens of a prompt read at a time
_SEEN = 1 << 20  # bytes below which a peak is within what the allocator holds anyway


class MeasureError(QuatrainError, RuntimeError):
    """A process that measures memory ended without an answer; the message holds its last line."""


def by_length(config: ClaimsConfig, tell: Tell) -> Rows:
    """Rows "cost" (seconds of each repeat by mixer, length and mode) and "exponent" of their growth.

    Batch 1; mode "read" is a forward pass without gradients, "train" forward and backward.
    """
    device = torch.device(config.device)
    tasks: dict[tuple[str, str, int], Callable[[], object]] = {}
    for mixer, shape in timing.shapes(config).items():
        model = timing.fresh(shape, device)
        for length in config.lengths:
            tokens = timing.bytes_of(length + 1, device)
            tasks["read", mixer, length] = timing.reading(model.eval(), tokens[:, :-1])
            tasks["train", mixer, length] = timing.training_step(model, tokens)
    found = timing.alternate(tasks, config.repeats, device, tell)
    rows: Rows = []
    for (mode, mixer, length), seconds in found.items():
        row = {"mode": mode, "mixer": mixer, "length": length, "seconds": seconds}
        rows.append(("cost", {**row, "median": median(seconds)}))
    long = [length for length in config.lengths if length >= _LONG]
    long = long if len(long) > 1 else list(config.lengths)
    for mode in ("read", "train"):
        for mixer in MIXERS:
            fit = stats.exponent({length: found[mode, mixer, length] for length in long})
            rows.append(("exponent", {"of": mode, "mixer": mixer, "lengths": long, **fit.fields()}))
    return rows


def memory(config: ClaimsConfig, tell: Tell) -> Rows:
    """Rows "memory" (peak bytes of a training step beyond the model itself) and "exponent" of their growth.

    The Transformer also with its attention weights in memory, at lengths a quarter as long.
    """
    rows: Rows = []
    shapes = timing.shapes(config)
    plain = {"attention": {**shapes["attention"].mixer.get("attention", {}), "impl": "reference"}}
    jobs: list[tuple[str, bool, Any, tuple[int, ...]]] = [
        (mixer, True, shape, config.memory_lengths) for mixer, shape in shapes.items()
    ]
    quarter = tuple(length // 4 for length in config.memory_lengths if length >= 4)
    jobs.append(("attention", False, replace(shapes["attention"], mixer=plain), quarter))
    for done, (mixer, fused, shape, lengths) in enumerate(jobs):
        tell(done / len(jobs))
        found = peak(config, {"work": "training", "model": to_dict(shape)}, lengths)
        rows += _peaks(found, {"mixer": mixer, "fused": fused})
    return rows


def _peaks(found: dict[int, int], same: dict[str, Any]) -> Rows:
    rows: Rows = [("memory", {**same, "length": length, "bytes": held}) for length, held in found.items()]
    seen = {length: float(held) for length, held in found.items() if held >= _SEEN}
    if len(seen) > 1:
        rows.append(
            ("exponent", {"of": "memory", **same, "lengths": list(seen)} | stats.growth(seen).fields())
        )
    return rows


def peak(config: ClaimsConfig, work: dict[str, Any], lengths: tuple[int, ...]) -> dict[int, int]:
    """Peak bytes of some work by length, from a process of its own; see `_memory`. Raises MeasureError."""
    task = {**work, "lengths": lengths, "device": config.device}
    done = subprocess.run(
        [sys.executable, "-m", "quatrain.lab.claims._memory"],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise MeasureError(f"measuring the memory of {work['work']} failed: {last}")
    return {int(length): int(held) for length, held in json.loads(done.stdout).items()}


def generation(config: ClaimsConfig, tell: Tell) -> Rows:
    """Rows "step" (seconds of a generated token, state bytes, by mixer, batch and context) and "exponent"
    of time and bytes over contexts at batch 1.

    Recurrent models read up to 512 tokens: beyond, their state has the same shape, and `far` reads to the
    end. The Transformer's cache is filled with random keys and values, since what they hold does not matter
    to the time; contexts whose cache would be larger than ``cache_bytes`` are left out.
    """
    device = torch.device(config.device)
    tasks: dict[tuple[str, int, int], _Start] = {}
    held: dict[tuple[str, int, int], int] = {}
    bytes_: dict[tuple[str, int, int], int] = {}
    for mixer, shape in timing.shapes(config).items():
        model = timing.fresh(shape, device).eval()
        for batch in config.batches:
            for context in config.contexts:
                key = mixer, batch, context
                bytes_[key] = model.state_bytes(batch, context)
                if bytes_[key] > config.cache_bytes:
                    continue
                state = _state(model, mixer, batch, context)
                held[key] = sum(tensor.numel() * tensor.element_size() for layer in state for tensor in layer)
                tasks[key] = _Start(model, state, timing.bytes_of(1, device, batch)[:, 0])
    found = _in_turns(tasks, config.repeats, device, tell)
    rows: Rows = []
    for key, total in bytes_.items():
        mixer, batch, context = key
        row: dict[str, Any] = {"mixer": mixer, "batch": batch, "context": context, "state_bytes": total}
        if key in found:
            seconds = found[key]
            row |= {"seconds": seconds, "median": median(seconds), "held_bytes": held[key]}
        rows.append(("step", row))
    return [*rows, *_growths(rows)]


def _growths(rows: Rows) -> Rows:
    found: Rows = []
    for mixer in MIXERS:
        mine = [row for _, row in rows if row["mixer"] == mixer and row["batch"] == 1]
        timed = {row["context"]: row["seconds"] for row in mine if "seconds" in row}
        if len(timed) > 1:
            fit = stats.exponent(timed).fields()
            found.append(("exponent", {"of": "step", "mixer": mixer, "lengths": list(timed), **fit}))
        fit = stats.growth({row["context"]: float(row["state_bytes"]) for row in mine}).fields()
        lengths = [row["context"] for row in mine]
        found.append(("exponent", {"of": "state", "mixer": mixer, "lengths": lengths, **fit}))
    return found


def _state(model: LanguageModel, mixer: str, batch: int, context: int) -> State:
    if mixer != "attention":
        with torch.no_grad():
            return read(model, None, timing.bytes_of(min(context, _READ), model.device, batch))
    random = torch.Generator().manual_seed(context)

    def filled(empty: Any) -> Any:
        shape = (batch, context, *empty.k.shape[2:])
        k, v = (torch.randn(shape, generator=random).to(empty.k) for _ in range(2))
        return type(empty)(k, v, torch.full_like(empty.position, context))

    return tuple(filled(layer) for layer in model.initial_state(batch))


def read(model: LanguageModel, state: State | None, tokens: Tensor) -> State:
    """The state after ``tokens (B, T)``, read in chunks."""
    for at in range(0, tokens.shape[1], _CHUNK):
        _, state = model.hidden(tokens[:, at : at + _CHUNK], state)
    assert state is not None
    return state


class _Start(NamedTuple):
    """Where generation begins: a model, the state after a context, the next token ``(B,)``."""

    model: LanguageModel
    state: State
    token: Tensor


def _in_turns(
    starts: Mapping[K, _Start], repeats: int, device: torch.device, tell: Tell
) -> dict[K, list[float]]:
    """Seconds of a generated token from each start, ``repeats`` times, in turns.

    The first step is not counted: it takes a cache that it does not own into a buffer with room.
    """
    found: dict[K, list[float]] = {key: [] for key in starts}
    total, done = (repeats + 1) * len(starts), 0
    with torch.no_grad():
        for turn in range(repeats + 1):  # the first turn warms up
            for key in list(starts) if turn % 2 == 0 else list(reversed(list(starts))):
                model, state, token = starts[key]
                logits, state = model.step(token, state)
                seconds = timing.stretch(partial(_generate, model, state, logits.argmax(-1)), 1, device)
                if turn:
                    found[key].append(seconds / _STEPS)
                done += 1
                tell(done / total)
    return found


def _generate(model: LanguageModel, state: State, token: Tensor) -> None:
    for _ in range(_STEPS):
        logits, state = model.step(token, state)
        token = logits.argmax(-1)


def far(config: ClaimsConfig, tell: Tell) -> Rows:
    """Rows "far": Mamba reads to each context, up to the longest, and generates from there; fields as in
    "step", and the seconds of reading.
    """
    device = torch.device(config.device)
    model = timing.fresh(timing.shapes(config)["s6"], device).eval()
    state: State | None = None
    tasks: dict[int, _Start] = {}
    spent: dict[int, float] = {}
    held: dict[int, int] = {}
    done, seconds = 0, 0.0
    with torch.no_grad():
        for context in config.far:
            while done < context:
                count = min(_CHUNK * 8, context - done)
                tokens = timing.bytes_of(count, device, seed=done)
                state, took = _timed(model, state, tokens, device)
                done, seconds = done + count, seconds + took
                tell(0.9 * done / config.far[-1])
            assert state is not None
            spent[context] = seconds
            held[context] = sum(part.numel() * part.element_size() for layer in state for part in layer)
            tasks[context] = _Start(model, state, timing.bytes_of(1, device)[:, 0])
    found = _in_turns(tasks, config.repeats, device, lambda share: tell(0.9 + 0.1 * share))
    rows: Rows = []
    for context, each in found.items():
        row = {"mixer": "s6", "context": context, "state_bytes": held[context], "seconds": each}
        rows.append(("far", {**row, "median": median(each), "read_seconds": spent[context]}))
    fit = stats.exponent(found)
    exponent = {"of": "far", "mixer": "s6", "lengths": list(found), **fit.fields()}
    return [*rows, ("exponent", exponent)]


def _timed(
    model: LanguageModel, state: State | None, tokens: Tensor, device: torch.device
) -> tuple[State, float]:
    after: list[State] = []
    took = timing.stretch(lambda: after.append(read(model, state, tokens)), 1, device)
    return after[0], took


def batches(config: ClaimsConfig, tell: Tell) -> Rows:
    """Rows "batch": seconds of a training step at batches and lengths of equally many tokens at most."""
    device = torch.device(config.device)
    most = max(config.lengths)
    lengths = [length for length in config.lengths if length * max(config.batches) <= most]
    tasks: dict[tuple[str, int, int], Callable[[], object]] = {}
    for mixer, shape in timing.shapes(config).items():
        model = timing.fresh(shape, device)
        for batch in config.batches:
            for length in lengths:
                tokens = timing.bytes_of(length + 1, device, batch)
                tasks[mixer, batch, length] = timing.training_step(model, tokens)
    found = timing.alternate(tasks, config.repeats, device, tell)
    return [
        ("batch", {"mixer": m, "batch": b, "length": t, "seconds": seconds, "median": median(seconds)})
        for (m, b, t), seconds in found.items()
    ]
