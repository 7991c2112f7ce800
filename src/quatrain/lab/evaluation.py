"""The other half of a comparison: what a trained model scores, costs and looks at, as rows."""

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from quatrain import checkpoint
from quatrain.lab import probes
from quatrain.lab._study import Study
from quatrain.lab.leak import leaks
from quatrain.lab.plan import Plan
from quatrain.model.config import ModelConfig
from quatrain.model.init import initialise
from quatrain.model.sequence import SequenceModel, build

Row = dict[str, Any]
Rows = list[tuple[str, Row]]
_LEAK_TOKENS = 256  # read when looking for a leak


def fresh(config: ModelConfig, seed: int) -> SequenceModel:
    """A model before any training, with the weights that training with this seed starts from."""
    with torch.random.fork_rng(devices=[]):
        model = build(config)
    initialise(model, seed)
    return model.eval()


def trained(out: Path, outcome: Row) -> SequenceModel | None:
    """The model with the lowest validation loss of a run; None where the run diverged."""
    if outcome["status"] != "ok":
        return None
    return checkpoint.load(out / outcome["run"] / "checkpoints" / f"step-{outcome['best_step']:08d}")


def refuse_leak(model: SequenceModel, sequence: int) -> None:
    """Raise RuntimeError where a model sees the future: its losses would mean nothing."""
    leak = leaks(model, min(sequence, _LEAK_TOKENS))
    if leak:
        raise RuntimeError(f"{model.config.pattern}: {leak}; nothing is compared")


def result(model: SequenceModel | None, outcome: Row, task: Study, plan: Plan) -> Row:
    """Fields of a "result" row: what a run cost, and its one test."""
    row: Row = {key: outcome[key] for key in ("lr", "status")} | {"reason": outcome.get("reason", "")}
    if model is None:
        return row
    seconds, typical = outcome["seconds"], outcome.get("step_seconds")
    if typical:  # the median step: other work on the machine shows less in it than in the sum
        seconds = typical * outcome["steps"]
    row |= {
        "step": outcome["best_step"],
        "tokens": outcome["tokens"],
        "train_seconds": outcome["seconds"],
        "tokens_per_second": outcome["tokens"] / seconds if seconds else None,
        "run": outcome["run"],
        **task.score(model, plan),
    }
    if not isfinite(row["test_loss"]):
        row |= {"status": "diverged", "reason": f"the test loss is {row['test_loss']:g}"}
    return row


def costs(mixer: str, model: SequenceModel, task: Study, contexts: Sequence[int], seconds: float) -> Rows:
    """Rows "step_cost", "prefill", "prefill_fit"; a note where the longest contexts took too long."""
    found = list(probes.costs(model, task.context(contexts[-1]), contexts, seconds))
    rows: Rows = []
    for cost in found:
        ms = 1000 * cost.step_seconds
        rows += [
            ("step_cost", {"context": cost.context, "ms_per_token": ms, "state_bytes": cost.state_bytes}),
            ("prefill", {"length": cost.context, "seconds": cost.prefill_seconds}),
        ]
    long = [cost for cost in found if cost.context >= 2 * probes.CHUNK]  # below, it is all one call: no fit
    if len(long) > 1:
        lengths = [cost.context for cost in long]
        power = probes.exponent(lengths, [cost.prefill_seconds for cost in long])
        rows.append(("prefill_fit", {"exponent": power, "lengths": lengths}))
    if len(found) < len(contexts):
        late = f"contexts from {contexts[len(found)]} on took more than {seconds:.0f} s and are left out"
        rows.append(("note", {"about": "contexts", "text": f"{mixer}: {late}"}))
    return [(kind, {"mixer": mixer, **row}) for kind, row in rows]


def reach(mixer: str, models: Sequence[tuple[SequenceModel | None, bool]], task: Study) -> Rows:
    """Rows "gradient" of models with whether each is trained; none for a model that is None."""
    return [
        ("gradient", {"mixer": mixer, "k": k, "norm": norm, "trained": is_trained})
        for model, is_trained in models
        if model is not None
        for k, norm in task.reach(model).items()
    ]
