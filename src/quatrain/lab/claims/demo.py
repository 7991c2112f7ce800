"""Three small models trained within a minute on selective copying, to look at what they do inside.

The task (Gu and Dao, arXiv:2312.00752, section 4.1), small: a few content tokens stand among blanks, then as
many markers ask for them in order::

    . . 5 . . . 2 . . . . . 3 . . . ? ? ?
                                    5 2 3
"""

from collections.abc import Mapping
from math import cos, log, pi
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from quatrain.lab.claims import reach, stats
from quatrain.lab.claims.claim import Rows
from quatrain.lab.claims.config import ClaimsConfig
from quatrain.lab.claims.timing import Tell
from quatrain.lab.look import Inside, inside
from quatrain.lab.paper.selective_copying import SelectiveCopying
from quatrain.mixers.lstm import LSTM
from quatrain.model.config import ModelConfig
from quatrain.model.init import initialise
from quatrain.model.sequence import SequenceModel

BLANK, CONTENTS, COUNT = 0, 8, 3  # token 0; tokens 1 to 8; content tokens of a sequence
MARKER = CONTENTS + 1
_TASK = SelectiveCopying(data=COUNT, symbols=MARKER + 1)
_BATCH, _TESTED, _WARM = 32, 64, 50
_SHOWN = 24  # units of a layer that are drawn
_SHAPES: Mapping[str, tuple[dict[str, Any], float, float]] = {  # shape, rate, times the steps
    "lstm": ({"width": 96, "layers": 1}, 4e-3, 1.0),
    "attention": ({"width": 64, "layers": 2, "mixer": {"attention": {"heads": 4}}}, 4e-3, 1.6),
    "s6": ({"width": 48, "layers": 1}, 1e-2, 1.2),
}


def draw(length: int, batch: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Tokens ``(batch, length)`` and the answers ``(batch, 3)`` of the markers at their end."""
    tokens, answers = _TASK.draw(random, batch, length)
    return torch.from_numpy(tokens), torch.from_numpy(answers[:, -COUNT:].copy())


def trained(mixer: str, config: ClaimsConfig, tell: Tell) -> tuple[SequenceModel, float]:
    """A model trained on the CPU, and its token accuracy on fresh sequences."""
    sizes, lr, _ = _SHAPES[mixer]
    shape = ModelConfig(task="tag", vocab=MARKER + 1, outputs=MARKER, pattern=mixer, **sizes)
    with torch.random.fork_rng(devices=[]):
        model = SequenceModel(shape)
    initialise(model, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    steps, random = _steps(mixer, config), np.random.default_rng(1)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min((step + 1) / _WARM, 0.5 + 0.5 * cos(pi * step / steps))
        tokens, answers = draw(config.demo_length, _BATCH, random)
        loss = F.cross_entropy(_asked(model, tokens).flatten(0, 1), answers.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        tell((step + 1) / steps)
    tokens, answers = draw(config.demo_length, 256, np.random.default_rng(2))
    with torch.no_grad():
        right = _asked(model.eval(), tokens).argmax(-1) == answers
    return model, float(right.double().mean())


def _steps(mixer: str, config: ClaimsConfig) -> int:
    return round(config.demo_steps * _SHAPES[mixer][2])


def _asked(model: SequenceModel, tokens: Tensor) -> Tensor:
    """Logits at the markers, ``(B, 3, K)``."""
    hidden, _ = model.hidden(tokens, keep_state=False)
    return model.logits(hidden[:, -COUNT:])


def _inside(model: SequenceModel, tokens: Tensor) -> list[Inside]:
    """What each layer's mixer does on ``tokens (B, T)``."""
    found = []
    with torch.no_grad():
        x = model.embed(tokens)
        for block in model.backbone.blocks:
            found.append(inside(block.mixer, x if block.norm is None else block.norm(x)))
            x, _ = block(x, None, None, None, False)
    return found


def _shown(config: ClaimsConfig) -> tuple[Tensor, list[str]]:
    """Fresh sequences, of which the first is drawn, and the first one's tokens in letters."""
    tokens, _ = draw(config.demo_length, _TESTED, np.random.default_rng(3))
    letters = {BLANK: "\N{MIDDLE DOT}", MARKER: "?"}
    return tokens, [letters.get(int(token), str(int(token))) for token in tokens[0]]


def _about(
    model: SequenceModel, mixer: str, accuracy: float, config: ClaimsConfig
) -> tuple[str, dict[str, Any]]:
    params = sum(p.numel() for p in model.parameters())
    length, steps = config.demo_length, _steps(mixer, config)
    return "demo", {
        "mixer": mixer, "accuracy": accuracy, "params": params, "steps": steps, "length": length,
    }  # fmt: skip


def _map(values: Tensor) -> list[list[float]]:
    return [[round(value, 3) for value in row] for row in values.tolist()]


def gates(config: ClaimsConfig, tell: Tell) -> Rows:
    """An LSTM: rows "demo", "map" (each gate of some cells over one sequence), "contrast" (mean gate on
    content and on blanks, over sequences) and "retention" (its cells over blanks).
    """
    model, accuracy = trained("lstm", config, tell)
    tokens, letters = _shown(config)
    (found,) = _inside(model, tokens)
    rows: Rows = [_about(model, "lstm", accuracy, config)]
    moved = found.gates["input"][0].std(0)
    cells = moved.argsort(descending=True)[:_SHOWN].sort().values  # those whose input gate moves most
    for name, gate in found.gates.items():
        shown = {"mixer": "lstm", "name": name, "values": _map(gate[0, :, cells].T), "letters": letters}
        rows += [("map", shown), _contrast("lstm", name, gate.mean(-1), tokens)]
    mixer = model.backbone.blocks[0].mixer
    assert isinstance(mixer, LSTM)
    block = model.backbone.blocks[0]
    with torch.no_grad():
        x = model.embed(torch.full((1, config.reach), BLANK))
        x = x if block.norm is None else block.norm(x)
    return rows + reach.retention(mixer, x, {"mixer": "lstm", "trained": True})


def steps(config: ClaimsConfig, tell: Tell) -> Rows:
    """A Mamba: rows "demo", "map" (step sizes of the channels that move most, over one sequence, each
    relative to its own largest) and "channels".

    A channel takes larger steps on content where its mean step size over the steps whose convolution holds a
    content token is greater than over those whose convolution holds blanks alone. Row "channels": the share
    of such channels with its 95 % interval (Wilson), and quantiles of the ratio.
    """
    model, accuracy = trained("s6", config, tell)
    tokens, letters = _shown(config)
    rows: Rows = [_about(model, "s6", accuracy, config)]
    window = model.config.mixer_config("s6").conv
    content, blank = tokens != BLANK, tokens != MARKER
    for back in range(1, window):
        content[:, back:] |= tokens[:, :-back] != BLANK
    content, blank = content & blank, ~content & blank
    for layer, found in enumerate(_inside(model, tokens)):
        assert found.step is not None
        ratio = _over(found.step, content) / _over(found.step, blank)  # (E,)
        moved = found.step[0].log().std(0).argsort(descending=True)[:_SHOWN]
        order = moved[ratio[moved].argsort(descending=True)]
        shown = found.step[0][:, order].T
        values = _map(shown / shown.amax(1, keepdim=True))
        rows.append(
            ("map", {"mixer": "s6", "name": f"layer {layer + 1}", "values": values, "letters": letters})
        )
        share = stats.proportion(int((ratio > 1).sum()), len(ratio))
        low, middle, high = ratio.double().quantile(torch.tensor([0.1, 0.5, 0.9]).double()).tolist()
        quantiles = {"lowest": low, "median": middle, "highest": high}
        about = {"mixer": "s6", "layer": layer, "channels": len(ratio)}
        rows.append(("channels", {**about, **quantiles, **share.fields()}))
    return rows


def _over(values: Tensor, where: Tensor) -> Tensor:
    """The mean of ``values (B, T, E)`` over the steps ``where (B, T)``: (E,)."""
    return (values * where[..., None]).sum((0, 1)) / where.sum()


def _contrast(mixer: str, name: str, values: Tensor, tokens: Tensor) -> tuple[str, dict[str, Any]]:
    """Row "contrast" of ``values (B, T)``: means, and the ratio content / blank over sequences (t interval of
    its logarithm).
    """
    content = (tokens != BLANK) & (tokens != MARKER)
    on, off = _mean(values, content), _mean(values, tokens == BLANK)
    ratio = stats.over([log(a / b) for a, b in zip(on, off, strict=True)])
    fields = {key: float(torch.tensor(value).exp()) for key, value in ratio.fields().items()}
    return "contrast", {"mixer": mixer, "name": name, "content": fmean(on), "blank": fmean(off), **fields}


def _mean(values: Tensor, where: Tensor) -> list[float]:
    total: list[float] = ((values * where).sum(1) / where.sum(1)).tolist()
    return total


def heads(config: ClaimsConfig, tell: Tell) -> Rows:
    """A Transformer: rows "demo", "map" (each head's weights) and "apart" (how far heads of a layer differ).

    Two heads differ by the Jensen-Shannon divergence of what they look at, in nats: 0 the same, ln 2 = 0.69
    nothing in common; averaged over pairs of heads and positions.
    """
    model, accuracy = trained("attention", config, tell)
    tokens, letters = _shown(config)
    rows: Rows = [_about(model, "attention", accuracy, config)]
    for layer, found in enumerate(_inside(model, tokens)):
        maps = found.attention
        assert maps is not None
        for head, values in enumerate(maps[0]):
            name = f"layer {layer + 1}, head {head + 1}"
            rows.append(
                ("map", {"mixer": "attention", "name": name, "values": _map(values), "letters": letters})
            )
        apart = stats.over(_divergence(maps[:, :, 1:]))
        rows.append(("apart", {"mixer": "attention", "layer": layer, **apart.fields()}))
    return rows


def _divergence(maps: Tensor) -> list[float]:
    """Mean Jensen-Shannon divergence between heads, of ``maps (B, H, T, S)``: one number a sequence."""
    heads = maps.double().unbind(1)
    pairs = [(a, b) for at, a in enumerate(heads) for b in heads[at + 1 :]]
    found = [(_entropy((a + b) / 2) - (_entropy(a) + _entropy(b)) / 2).mean(1) for a, b in pairs]
    total: list[float] = torch.stack(found).mean(0).tolist()
    return total


def _entropy(p: Tensor) -> Tensor:
    return -(p * p.clamp(min=1e-300).log()).sum(-1)
