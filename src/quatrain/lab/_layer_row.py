"""A `Layer` as a row of plain numbers that a page can draw: thinned, rounded, with what is worth saying."""

from base64 import b64encode
from collections.abc import Sequence
from math import ceil, exp, isinf, sqrt
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from quatrain.lab.look import Layer

Row = dict[str, Any]

COLUMNS = 1024  # of a strip: more steps are averaged in groups
_STRIPS, _MAPS = 450_000, 600_000  # bytes of all strips, and of all maps, of a page
_EDGES = [2.0 ** (half / 2) for half in range(-8, 81)]  # of a histogram of memory: half octaves
_OFTEN = 3  # times that a token has to come before it is said what a gate does at it


def layer_rows(layers: Sequence[Layer], labels: Sequence[str]) -> list[Row]:
    """A row for each layer; ``labels`` say what stands at each step (a text's tokens), or are empty.

    Fields: ``index``, ``mixer``, the norms ``before hidden added mlp`` (lists of T), ``memory``,
    ``memory_by``, ``strips`` (see `_strip`), ``maps``, ``heads``.
    """
    strips = sum(len(layer.gates) + (layer.step is not None) + (layer.kind == "rnn") for layer in layers)
    heads = sum(len(layer.attention) for layer in layers if layer.attention is not None)
    time = len(layers[0].hidden)
    most = max(8, min(96, _STRIPS // (max(1, strips) * min(time, COLUMNS))))
    side = max(24, min(256, int(sqrt(_MAPS / max(1, heads)))))
    return [_row(layer, labels, most, side) for layer in layers]


def _row(layer: Layer, labels: Sequence[str], most: int, side: int) -> Row:
    strips = []
    if layer.step is not None:
        changes = bool((layer.step != layer.step[0]).any())
        strips.append(_strip("step", layer.step, labels, most, "ratio" if changes else "log"))
    if layer.kind == "rnn" and layer.state is not None:  # there is nothing else to be seen in it
        size = layer.state.abs()
        strips.append(_strip("state", size, labels, most, "unit" if size.max() <= 1 else "linear"))
    for name, gate in layer.gates.items():
        bounded = layer.kind in ("lstm", "gru")
        strips.append(
            _strip(name, gate if bounded else gate.abs(), labels, most, "unit" if bounded else "linear")
        )
    return {
        "index": layer.index,
        "mixer": layer.kind,
        **{name: _list(getattr(layer, name)) for name in ("before", "hidden", "added")},
        "mlp": None if layer.mlp is None else _list(layer.mlp),
        "memory": None if layer.memory is None else _memory(layer.memory),
        "memory_by": layer.memory_by,
        "strips": strips,
        "maps": None if layer.attention is None else _maps(layer.attention, side),
        "heads": [] if layer.attention is None else [_head(weights) for weights in layer.attention],
    }


def _list(x: Tensor, digits: int = 4) -> list[float]:
    return [float(f"{value:.{digits}g}") for value in x.double().flatten().tolist()]


def _strip(name: str, x: Tensor, labels: Sequence[str], most: int, scale: str) -> Row:
    """``x (T, E)`` as a picture: a row a unit, those with the largest mean on top; a byte a number.

    Of more than ``most`` units every so many of the sorted ones are drawn. A byte b stands for low + (high -
    low) b / 255 on the scale ``unit`` or ``linear``, for low (high / low)^(b / 255) on ``log``, and on
    ``ratio`` for as many times the unit's own geometric mean over time, those that change most on top; what
    lies outside is drawn as the end. ``group`` steps are averaged for a column. ``profile`` is the mean over
    all units at each step (of log and ratio the geometric one). ``swing``, of ratio: how many times as large
    a unit's value is at its 95 % as at its 5 % of all steps, for the middle unit and the one that changes
    most. ``at`` lists tokens by their mean value; on ratio by the multiple of their own mean that the tenth
    of the units that changes most has there.
    """
    x = x.double()
    logs = scale in ("log", "ratio")
    wide = x.clamp(min=1e-12).log() if logs else x
    profile = wide.mean(1).exp() if logs else wide.mean(1)
    rank, swing, telling = wide.mean(0), [1.0, 1.0], profile
    if scale == "ratio":
        ends = wide.quantile(wide.new_tensor([0.05, 0.95]), 0)  # (2, E)
        rank = ends[1] - ends[0]
        swing = _list(torch.stack([rank.median(), rank.max()]).exp())
        wide = wide - wide.mean(0)
        telling = wide[:, rank.topk(-(-x.shape[1] // 10)).indices].mean(1).exp()
    order = rank.argsort(descending=True)
    kept = order[torch.linspace(0, len(order) - 1, min(most, len(order))).round().long()]
    low, high = _range(wide, scale)
    columns = _pooled(wide[:, kept].T, 1)
    return {
        "name": name,
        "scale": scale,
        "low": _short(exp(low) if logs else low),
        "high": _short(exp(high) if logs else high),
        "rows": len(kept),
        "columns": columns.shape[1],
        "group": ceil(len(x) / COLUMNS),
        "units": kept.tolist(),
        "of": x.shape[1],
        "data": _bytes((columns - low) / max(high - low, 1e-9)),
        "profile": _list(_pooled(profile[None], 1)[0]),
        "mean": _short(profile.mean()),
        "below": _short((x < 0.1).double().mean()),
        "above": _short((x > 0.9).double().mean()),
        "swing": swing,
        "at": _by_token(telling, labels),
    }


def _range(wide: Tensor, scale: str) -> tuple[float, float]:
    """What the lightest and the darkest shade stand for: nearly all values lie between them."""
    values = wide.flatten()
    if scale == "unit":
        return 0.0, 1.0
    if scale == "ratio":
        far = max(float(_quantile(values.abs(), 0.998)), 0.1)
        return -far, far
    return (float(_quantile(values, 0.002)) if scale == "log" else 0.0), float(_quantile(values, 0.998))


def _quantile(values: Tensor, share: float) -> Tensor:
    """As `torch.quantile`, which takes no more than 2^24 values, to the nearest one."""
    return values.kthvalue(1 + round(share * (len(values) - 1))).values


def _short(value: float | Tensor) -> float:
    return float(f"{float(value):.4g}")


def _bytes(shade: Tensor) -> str:
    return b64encode((shade.clamp(0, 1) * 255).round().to(torch.uint8).numpy().tobytes()).decode()


def _pooled(x: Tensor, dim: int, most: int = COLUMNS) -> Tensor:
    """Means of so many neighbours along ``dim`` that at most ``most`` are left; the last may be of fewer."""
    size = x.shape[dim]
    group = ceil(size / most)
    return x if group == 1 else torch.stack([part.mean(dim) for part in _groups(x, group, dim)], dim)


def _groups(x: Tensor, size: int, dim: int) -> list[Tensor]:
    return [x.narrow(dim, at, min(size, x.shape[dim] - at)) for at in range(0, x.shape[dim], size)]


def _by_token(profile: Tensor, labels: Sequence[str]) -> list[list[Any]]:
    """[token, mean, times] of the tokens that come often enough, the largest mean first."""
    found: dict[str, list[float]] = {}
    for value, label in zip(profile.tolist(), labels, strict=False):
        found.setdefault(label, []).append(value)
    least = max(_OFTEN, len(labels) // 100)
    means = [(label, fmean(each), len(each)) for label, each in found.items() if len(each) >= least]
    means.sort(key=lambda row: -row[1])
    return [[label, _short(mean), count] for label, mean, count in means]


def _maps(weights: Tensor, side: int) -> Row:
    """``(H, T, T)`` as at most ``side`` x ``side`` bytes a head; a byte b stands for the weight (b / 255)^2.

    Where steps are joined in groups of ``group``, a cell is the mean over the reading steps of what they read
    of all steps of a group together: rows still sum to 1.
    """
    group = ceil(weights.shape[1] / side)
    if group > 1:
        weights = torch.stack([part.mean(1) for part in _groups(weights, group, 1)], 1)
        weights = torch.stack([part.sum(2) for part in _groups(weights, group, 2)], 2)
    return {
        "heads": len(weights),
        "side": weights.shape[1],
        "group": group,
        "data": [_bytes(each.double().sqrt()) for each in weights],
    }


def _head(weights: Tensor) -> Row:
    """What a head reads, on average over the steps that have something to choose from (T, T)."""
    time = len(weights)
    if time < 2:
        return {"self": 1.0, "previous": 0.0, "first": 1.0, "distance": 0.0, "count": 1.0}
    weights = weights.double()
    step = torch.arange(time)
    start = min(8, time // 2)
    distance = (weights * (step[:, None] - step).abs()).sum(-1)
    entropy = torch.special.entr(weights).sum(-1)
    found = {
        "self": weights.diagonal()[start:],
        "previous": weights.diagonal(-1)[max(0, start - 1) :],
        "first": weights[start:, 0],
        "distance": distance[start:],
        "count": entropy[start:].exp(),  # as many steps, read equally, would be as undecided
    }
    return {name: _short(value.mean()) for name, value in found.items()}


def _memory(memory: Tensor) -> Row:
    """Quartiles and a histogram over all units: ``edges`` n + 1, ``counts`` n; ``never`` are infinite.

    ``quartiles`` hold None where a quartile is infinite.
    """
    values = memory.double().flatten()
    finite = values[~values.isinf()]
    ranks = (torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]) * (len(values) - 1)).round().long()
    quartiles = [None if isinf(value) else _short(value) for value in values.sort().values[ranks].tolist()]
    bins = values.new_tensor(_EDGES)
    counts = torch.histogram(finite.clamp(_EDGES[0], _EDGES[-1]), bins).hist.long().tolist()
    used = [index for index, count in enumerate(counts) if count]
    first, end = (used[0], used[-1] + 1) if used else (0, 0)
    return {
        "count": len(values),
        "never": len(values) - len(finite),
        "quartiles": quartiles,
        "edges": [_short(edge) for edge in _EDGES[first : end + 1]] if used else [],
        "counts": counts[first:end],
        "values": _list(values) if len(values) <= 16 and not values.isinf().any() else [],
    }
