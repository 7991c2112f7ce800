"""The shape of a model that has a given number of parameters: depth by rule, width and MLP to fit."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from math import isqrt, log2

import torch

from quatrain.config.check import check
from quatrain.errors import ConfigError
from quatrain.model.backbone import Block
from quatrain.model.config import ModelConfig

# Layers at a million parameters; depth grows with the fourth root of the size. Attention: 12 layers at 85 M,
# as GPT-2. s6 and s4d: 21 at 85 M, near Mamba's 24, whose block stands for half of attention + MLP. LSTM, GRU
# and RNN run one step after the other in every layer, so practice keeps them shallow.
_DEPTH = {"rnn": 4.0, "lstm": 3.0, "gru": 3.0, "attention": 4.0, "s6": 7.0, "s4d": 7.0}
# Step of the widths -> its cost beside the squared distance from the depth's rule, in doublings.
_GRAINS = {8: 0.0, 4: 0.25, 2: 0.5, 1: 0.75}
_RATIOS = (2.0, 4.0)  # of the MLP's width to the model's
_TOLERANCES = (0.01, 0.02)  # two models within 1 % of a target are within 2 % of each other


def fit_size(pattern: str, target: int, *, base: ModelConfig | None = None) -> ModelConfig:
    """A config with ``target`` parameters, embedding and head not counted, within 2 % (1 % where that
    exists).

    Depth follows a rule per kind (the mean for a hybrid, in whole repeats of the pattern). Then width, a
    multiple of 8, and the MLP's width, a multiple of 8, are chosen to fit; where such steps are too coarse,
    depths up to twice or half the rule's and steps of 4, 2 and 1 are tried in order of their distance.
    Attention gets heads 32, 40, 48, 56 or 64 wide (64 from width 512 on; other even widths between them where
    nothing else fits; one head below width 32), unless ``base`` sets ``heads``.

    Args:
        pattern: kinds of mixers, as in ``ModelConfig.pattern``.
        target: number of parameters, at least 1.
        base: everything that is not fitted; settings of mixers that are not in the pattern are left out.

    Raises:
        ConfigError: unknown kind, target below 1, or no shape is near enough; the message names the nearest.

    Cost: milliseconds; layers are counted on the meta device, nothing is allocated.
    """
    check(target >= 1, "params", target, "must be at least 1")
    search = _Search(pattern, base if base is not None else ModelConfig())
    best: ModelConfig | None = None
    least = float("inf")
    for tolerance in _TOLERANCES:
        for depth, grain in search.shapes(target):
            for config in search.candidates(target, depth, grain):
                error = abs(search.size(config) / target - 1)
                if error <= tolerance:
                    return config
                if error < least:
                    best, least = config, error
    nearest = (
        f"; the nearest has {search.size(best)}, {best.layers} layers of width {best.width}" if best else ""
    )
    raise ConfigError(f"params = {target}: no {pattern!r} model has so many within 2 %{nearest}")


class _Search:
    """Shapes of one pattern, and their sizes from the counts of single layers."""

    def __init__(self, pattern: str, base: ModelConfig) -> None:
        self.kinds = pattern.split()
        settings = {kind: values for kind, values in base.mixer.items() if kind in self.kinds}
        self.base = replace(base, pattern=pattern, layers=max(1, len(self.kinds)), mixer=settings)
        self.mlps = any(self.base.has_mlp(kind) for kind in self.kinds)
        self.layers: dict[tuple[str, int], int] = {}

    def shapes(self, target: int) -> list[tuple[int, int]]:
        """(depth, grain) in order of preference."""
        repeat = len(self.kinds)
        rule = sum(_DEPTH.get(kind, 4.0) for kind in self.kinds) / repeat * (target / 1e6) ** 0.25
        rule = max(1, round(rule / repeat)) * repeat
        depths = [depth for depth in range(repeat, 2 * rule + 1, repeat) if 2 * depth >= rule]
        cost = {
            (depth, grain): log2(depth / rule) ** 2 + penalty
            for depth in depths
            for grain, penalty in _GRAINS.items()
        }
        return sorted(cost, key=lambda shape: cost[shape])

    def candidates(self, target: int, depth: int, grain: int) -> Iterator[ModelConfig]:
        """Configs of this depth that are near the target, the best proportioned first."""
        widest = isqrt(target // depth) + 64  # every mixer has more than D^2 parameters
        widths = [width for width in range(grain, widest, grain) if self._fits(width, grain)]

        def shape(base: ModelConfig, width: int) -> ModelConfig:
            mixer = dict(base.mixer)
            if "attention" in self.kinds:
                mixer["attention"] = {"heads": self._heads(width, grain), **mixer.get("attention", {})}
            return replace(base, layers=depth, width=width, mixer=mixer)

        def above(ratio: float) -> int:
            """Index of the first width that is too large with this MLP ratio."""
            base = replace(self.base, mlp_ratio=ratio)
            return bisect_right(widths, target, key=lambda width: self.size(shape(base, width)))

        wanted = above(self.base.mlp_ratio)
        if not self.mlps:
            near = [shape(self.base, width) for width in widths[max(0, wanted - 1) : wanted + 1]]
            yield from sorted(near, key=lambda config: abs(self.size(config) - target))
            return
        inside = range(max(0, above(_RATIOS[1]) - 1), min(above(_RATIOS[0]) + 1, len(widths)))
        for index in sorted(inside, key=lambda index: abs(index - wanted))[:12]:
            fitted = self._fit_mlp(shape(self.base, widths[index]), target, grain)
            if _RATIOS[0] <= fitted.mlp_ratio <= _RATIOS[1]:
                yield fitted

    def size(self, config: ModelConfig) -> int:
        """Parameters without embedding and head."""
        layers = Counter(config.kinds)
        residual = config.width if config.form == "residual" else 0
        mlps = sum(count for kind, count in layers.items() if config.has_mlp(kind))
        mixers = sum(count * self._layer(config, kind) for kind, count in layers.items())
        return residual + mixers + mlps * config.width * (3 * config.inner + 1)

    def _layer(self, config: ModelConfig, kind: str) -> int:
        """Parameters of one layer without its MLP."""
        key = (kind, config.width)
        if key not in self.layers:
            with torch.device("meta"):
                block = Block(config, kind)
            outside = (block.mlp, block.mlp_norm)
            mlp = sum(p.numel() for part in outside if part is not None for p in part.parameters())
            self.layers[key] = sum(p.numel() for p in block.parameters()) - mlp
        return self.layers[key]

    def _fits(self, width: int, grain: int) -> bool:
        """Whether every mixer can have this width: heads and directions get equal parts of it."""
        halved = any(settings.get("causal") is False for settings in self.base.mixer.values())
        return bool(self._heads(width, grain)) and not (halved and width % 2)

    def _heads(self, width: int, grain: int) -> int:
        """Number of attention heads; 0 if none fit, 1 without attention."""
        if "attention" not in self.kinds:
            return 1
        given = self.base.mixer.get("attention", {}).get("heads", 0)
        if isinstance(given, int) and given > 0:
            return given if width % (2 * given) == 0 else 0
        if width < 32:
            return 1 if width % 2 == 0 else 0
        usual = (64,) if width >= 512 else range(32, 65, 8)
        sizes = usual if grain == 8 else (*usual, *range(32, 65, 2))
        return next((width // size for size in sizes if width % size == 0), 0)

    def _fit_mlp(self, shape: ModelConfig, target: int, grain: int) -> ModelConfig:
        """The shape with the inner width, a multiple of ``grain``, that is nearest to the target."""
        mlps = sum(shape.has_mlp(kind) for kind in shape.kinds)
        inner = shape.inner + (target - self.size(shape)) / (3 * shape.width * mlps)
        return replace(shape, mlp_ratio=max(grain, grain * round(inner / grain)) / shape.width)
