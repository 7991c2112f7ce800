"""How gradients and values travel back through time, in models before any training."""

from collections.abc import Iterable
from math import exp, log
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from quatrain.lab import probes
from quatrain.lab.claims import stats, timing
from quatrain.lab.claims.claim import Rows
from quatrain.lab.claims.config import MIXERS, ClaimsConfig
from quatrain.lab.claims.timing import Tell
from quatrain.mixers.lstm import LSTM, LSTMState
from quatrain.mixers.rnn import RNN
from quatrain.model.config import ModelConfig
from quatrain.model.lm import LanguageModel

RADII = (0.8, 0.9, 1.0, 1.1, 1.25)  # spectral radius of the recurrent matrix
BIASES = (0.0, 1.0, 3.0)  # of the forget gate
SEEDS = 5
_WIDTH, _BATCH = 128, 4
_LEAST = 4  # steps back from which a rate is fitted: the last ones go through the head's own way


def rnn(config: ClaimsConfig, tell: Tell) -> Rows:
    """Rows "gradient" and "rate" of one tanh layer with an orthogonal matrix scaled to each radius.

    A rate is the factor by which d loss_T / d x_{T-k} grows with one more step back, fitted over k.
    """
    rows: Rows = []
    for done, radius in enumerate(RADII):
        models = [_layer("rnn", {}, seed) for seed in range(SEEDS)]
        for model in models:
            mixer = model.backbone.blocks[0].mixer
            assert isinstance(mixer, RNN)
            with torch.no_grad():
                mixer.recurrent.mul_(radius)
        rows += _rates(models, config, {"mixer": "rnn", "radius": radius})
        tell((done + 1) / len(RADII))
    return rows


def lstm(config: ClaimsConfig, tell: Tell) -> Rows:
    """Rows "gradient", "rate" and "retention" of one layer at each bias of the forget gate."""
    rows: Rows = []
    for done, bias in enumerate(BIASES):
        models = [_layer("lstm", {"forget_bias": bias}, seed) for seed in range(SEEDS)]
        same = {"mixer": "lstm", "bias": bias}
        rows += _rates(models, config, same)
        mixer = models[0].backbone.blocks[0].mixer
        assert isinstance(mixer, LSTM)
        x = models[0].embed(_windows(config, 0)[:1, :-1]).detach()
        rows += retention(mixer, x, {**same, "trained": False})
        tell((done + 1) / len(BIASES))
    return rows


def everyone(config: ClaimsConfig, tell: Tell) -> Rows:
    """Rows "gradient" and "rate" of the four whole models of equal size, at their first weights."""
    rows: Rows = []
    shapes = timing.shapes(config)
    for done, mixer in enumerate(MIXERS):
        cpu = torch.device("cpu")
        models = [timing.fresh(shapes[mixer], cpu, seed).double().eval() for seed in range(SEEDS)]
        rows += _rates(models, config, {"mixer": mixer, "whole": True})
        tell((done + 1) / len(MIXERS))
    return rows


def _layer(kind: str, settings: dict[str, Any], seed: int) -> LanguageModel:
    """One bare layer between embedding and head, in float64: norms fall far below float32's least."""
    shape = ModelConfig(
        width=_WIDTH, layers=1, pattern=kind, form="stack", mixer={kind: settings} if settings else {}
    )
    return timing.fresh(shape, torch.device("cpu"), seed).double().eval()


def _windows(config: ClaimsConfig, seed: int) -> Tensor:
    return timing.bytes_of(config.reach + 1, torch.device("cpu"), _BATCH, seed)


def _rates(models: Iterable[LanguageModel], config: ClaimsConfig, same: dict[str, Any]) -> Rows:
    norms: dict[int, list[float]] = {}
    slopes = []
    for seed, model in enumerate(models):
        found = {k: n for k, n in probes.gradient_norms(model, _windows(config, seed)).items() if n > 0}
        for k, norm in found.items():
            norms.setdefault(k, []).append(log(norm))
        far = [k for k in found if k >= min(_LEAST, config.reach // 4)]
        slopes.append(stats.slope(far, [log(found[k]) for k in far]))
    rows: Rows = [
        ("gradient", {**same, "k": k, "norm": exp(fmean(logs))}) for k, logs in sorted(norms.items())
    ]
    rate = stats.over(slopes)
    factor = {"value": exp(rate.value), "low": exp(rate.low), "high": exp(rate.high)}
    return [*rows, ("rate", {**same, **factor})]


def retention(mixer: LSTM, x: Tensor, same: dict[str, Any]) -> Rows:
    """Rows "retention": the part of a value written into a cell that is left after k steps of ``x``.

    ``x`` is (1, T, D).

    Every cell is written to in a run of its own: kept = c_k(with 1 more at the start) - c_k(without), the
    median and the 90 % quantile over cells. Cost: D + 1 sequences of T steps.
    """
    width = mixer.config.width
    extra = torch.cat((torch.eye(width), torch.zeros(1, width))).to(x)
    state = LSTMState(torch.zeros_like(extra), extra)
    x = x.expand(width + 1, -1, -1)
    rows: Rows = []
    before = 0
    with torch.no_grad():
        for k in (step for step in probes.distances(x.shape[1] + 1) if step > 0):
            _, state = mixer(x[:, before:k].contiguous(), state)
            before = k
            kept = (state.c[:width].diagonal() - state.c[width]).double()
            best = float(kept.quantile(0.9))
            rows.append(("retention", {**same, "k": k, "kept": float(kept.median()), "best": best}))
    return rows
