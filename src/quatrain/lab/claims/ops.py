"""The ops with and without their large intermediate in memory, and S4D as recurrence and as convolution."""

from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from quatrain.lab.claims import _ops, costs, stats, timing
from quatrain.lab.claims.claim import Rows
from quatrain.lab.claims.config import ClaimsConfig
from quatrain.lab.claims.timing import Tell
from quatrain.mixers import _lti
from quatrain.mixers.s4d import S4D

_PLAIN = 4096  # steps beyond which the materialised forms take too much memory
_CHANNELS = 3  # of S4D whose kernel is drawn


def attention(config: ClaimsConfig, tell: Tell) -> Rows:
    """Rows "op" and "exponent" of attention alone, fused and with its weights in memory."""
    return _both("attention", _ops.attend, config, tell)


def scan(config: ClaimsConfig, tell: Tell) -> Rows:
    """Rows "op" and "exponent" of the S6 scan, fused and materialised, with the bytes counted."""
    return _both("scan", _ops.scan, config, tell)


def _both(
    name: str,
    make: Callable[[int, bool, torch.device], Callable[[], object]],
    config: ClaimsConfig,
    tell: Tell,
) -> Rows:
    device = torch.device(config.device)
    most = min(_PLAIN, max(config.lengths))
    lengths = [length for length in config.lengths if length >= min(256, config.lengths[-2])]
    keys = [(f, n) for n in lengths for f in (True, False) if f or n <= most]
    tasks = {key: make(key[1], key[0], device) for key in keys}
    found = timing.alternate(tasks, config.repeats, device, lambda share: tell(0.7 * share))
    del tasks
    rows: Rows = []
    for fused in (True, False):
        mine = tuple(n for n in lengths if (fused, n) in found)
        peaks = costs.peak(config, {"work": name, "fused": fused}, mine)
        tell(0.85 if fused else 1.0)
        for length in mine:
            seconds = found[fused, length]
            row: dict[str, Any] = {"op": name, "fused": fused, "length": length, "seconds": seconds}
            row |= {"median": median(seconds), "bytes": peaks[length]}
            if name == "scan":
                row["moved"] = _ops.scan_bytes(length, fused)
            rows.append(("op", row))
        long = mine[-min(len(mine), 4) :]
        same = {"op": name, "fused": fused, "lengths": long}
        fit = stats.exponent({length: found[fused, length] for length in long})
        rows.append(("exponent", {"of": "op time", **same, **fit.fields()}))
        seen = {length: float(peaks[length]) for length in mine if peaks[length] >= 1 << 20}
        if len(seen) > 1:
            fit = stats.growth(seen)
            rows.append(("exponent", {"of": "op memory", **same, "lengths": list(seen), **fit.fields()}))
    return rows


def s4d(config: ClaimsConfig, tell: Tell) -> Rows:
    """Rows "equal" (S4D's outputs step by step against its convolution) and "kernel" (the impulse response of
    some channels both ways).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mixer = S4D(width=32, state=16, complex=True)
    time = min(512, max(config.lengths))
    rows: Rows = []
    for dtype in (torch.float64, torch.float32):
        mixer = mixer.to(dtype)
        rows.append(("equal", _difference(mixer, time, dtype)))
    tell(0.5)
    return rows + _kernel(mixer.double(), min(time, 256))


def _difference(mixer: S4D, time: int, dtype: torch.dtype) -> dict[str, Any]:
    x = torch.randn(2, time, 32, generator=torch.Generator().manual_seed(1), dtype=dtype)
    with torch.no_grad():
        y, _ = mixer(x)
        state, steps = mixer.initial_state(2), []
        for t in range(time):
            one, state = mixer.step(x[:, t], state)
            steps.append(one)
    gap = (torch.stack(steps, 1) - y).abs().max() / y.abs().max()
    return {"dtype": str(dtype).removeprefix("torch."), "length": time, "difference": float(gap)}


def _kernel(mixer: S4D, time: int) -> Rows:
    rate, drive, c = mixer._system()
    with torch.no_grad():
        convolution = _lti.impulse_response(*_lti.powers(rate, time), c, drive, time)
        h, steps = drive.clone(), []
        for _ in range(time):
            steps.append((c * h).sum(-1).real)
            h = torch.exp(rate) * h
    recurrence = torch.stack(steps, 1)
    gap = float((recurrence - convolution).abs().max() / convolution.abs().max())
    order = rate.real.abs().amin(-1).argsort()
    picked = [int(order[at * (len(order) - 1) // max(1, _CHANNELS - 1)]) for at in range(_CHANNELS)]
    rows: Rows = [("equal", {"dtype": "the kernel in float64", "length": time, "difference": gap})]
    for channel in picked:
        pairs = zip(convolution[channel].tolist(), recurrence[channel].tolist(), strict=True)
        for t, (one, other) in enumerate(pairs):
            row = {"channel": channel, "t": t, "convolution": one, "recurrence": other}
            rows.append(("kernel", row))
    return rows


def new_state(config: ClaimsConfig, tell: Tell) -> Rows:
    """Row "states" of each architecture: distinct states and outputs while T tokens are read, and how far the
    outputs of steps lie from those of one pass.
    """
    rows: Rows = []
    time = min(64, max(config.lengths))
    shapes = timing.shapes(config)
    for done, (mixer, shape) in enumerate(shapes.items()):
        model = timing.fresh(shape, torch.device("cpu")).double().eval()
        tokens = timing.bytes_of(time, torch.device("cpu"))
        with torch.no_grad():
            whole, _ = model(tokens)
            state, outs, seen = model.initial_state(1), [], set()
            for t in range(time):
                logits, state = model.step(tokens[:, t], state)
                outs.append(logits)
                seen.add(b"".join(part.numpy().tobytes() for part in state[0]))
        gap = float((torch.stack(outs, 1) - whole).abs().max() / whole.abs().max())
        row = {"mixer": mixer, "length": time, "states": len(seen), "outputs": len(outs), "difference": gap}
        rows.append(("states", row))
        tell((done + 1) / len(shapes))
    return rows
