"""Rows of a comparison as a real one writes them, made up from smooth curves and a little seeded noise."""

import math
import random
from typing import Any

Row = dict[str, Any]
RATES = [3e-4, 1e-3, 3e-3]
STEPS, BATCH_TOKENS, RUNG = 1200, 4096, 400
CONTEXTS = [128, 256, 512, 1024, 2048, 4096, 8192, 16384]

# mixer: final nats, tokens/s, width, layers, ms at a short context, state bytes (0: grows), exponent, reach of gradient
_MODELS = {
    "rnn": (1.512, 62000, 408, 3, 0.21, 4896, 1.01, 14),
    "lstm": (1.298, 31000, 224, 3, 0.38, 5376, 1.02, 60),
    "attention": (1.331, 24000, 144, 4, 0.62, 0, 1.63, 700),
    "s6": (1.236, 19000, 136, 4, 0.55, 78336, 1.00, 260),
    "s4d": (1.402, 27000, 136, 4, 0.41, 78336, 1.04, 150),
}
_TEXT = (
    "def read_header(self, size=-1):\n    \"\"\"Return the next <block> of the stream & its length.\n\n    If *size* is "
    "negative, read until EOF.\n    \"\"\"\n    if self._closed:\n        raise ValueError('I/O operation on closed file')\n"
    "    data = self._fp.read(size)\n    return data, len(data)\n"
)


def about(mixers: list[str], seeds: int) -> Row:
    """The comparison row."""
    return {
        "kind": "comparison",
        "id": "a3f9c1",
        "started": "2026-03-14T09:26:53+00:00",
        "machine": {
            "cpu": "Intel(R) Xeon(R) Platinum 8481C @ 2.70GHz",
            "cores": 2,
            "threads": 2,
            "memory_bytes": 8 * 2**30,
            "device": "cpu",
            "os": "Linux 6.1 x86_64",
        },
        "versions": {"quatrain": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "config_digest": "9f2c4d11ab07",
        "command": "quatrain compare --budget 10m",
        "data": {
            "name": "Python 3.11 library",
            "description": "sources and documentation of Python 3.11.7's standard library",
            "digest": "5d41402abc4b",
            "bytes": 21_400_000,
            "tokens": 21_400_000,
            "vocab": 256,
            "splits": {"train": 18_190_000, "valid": 1_070_000, "test": 2_140_000},
        },
        "params_target": 1_000_000,
        "budget_seconds": 600,
        "tokens_per_model": STEPS * BATCH_TOKENS,
        "sequence": 256,
        "batch": 16,
        "steps": STEPS,
        "learning_rates": RATES,
        "rung_fraction": RUNG / STEPS,
        "seeds": list(range(seeds)),
        "mixers": mixers,
    }


def _curve(mixer: str, lr: float, seed: int, steps: int, noise: random.Random) -> list[Row]:
    final, speed = _MODELS[mixer][:2]
    final += {3e-4: 0.11, 1e-3: 0.0, 3e-3: 0.06}[lr] + 0.012 * noise.gauss(0, 1)
    rows = []
    for step in range(0, steps + 1, 10):
        clean = final + (5.55 - final) * math.exp(-((step / 9) ** 0.42))
        tokens = step * BATCH_TOKENS
        same = {"mixer": mixer, "lr": lr, "seed": seed, "step": step, "tokens": tokens, "seconds": tokens / speed}
        if step:
            rows.append({"kind": "train", **same, "loss": clean + 0.03 * noise.gauss(0, 1)})
        if step and step % 100 == 0:
            rows.append({"kind": "valid", **same, "loss": clean + 0.02})
    return rows


def _result(mixer: str, seed: int, last: float, noise: random.Random) -> Row:
    _, speed, width, _, *_ = _MODELS[mixer]
    test = last - 0.03 + 0.004 * noise.gauss(0, 1)
    return {
        "kind": "result", "mixer": mixer, "seed": seed, "lr": 1e-3, "status": "ok", "reason": "",
        "valid_loss": last, "test_loss": test, "test_bits_per_byte": test / math.log(2), "test_tokens": 524_288,
        "test_total_tokens": 2_140_000, "tokens": STEPS * BATCH_TOKENS, "train_seconds": STEPS * BATCH_TOKENS / speed,
        "tokens_per_second": speed * (1 + 0.02 * noise.random()), "peak_memory_bytes": int(3.1e8 + 9e5 * width),
    }  # fmt: skip


def _state(mixer: str, context: int) -> int:
    width, layers, fixed = _MODELS[mixer][2], _MODELS[mixer][3], _MODELS[mixer][5]
    return fixed or 2 * 4 * width * layers * context


def _costs(mixer: str) -> list[Row]:
    _, speed, _, _, latency, fixed, exponent, reach = _MODELS[mixer]
    rows: list[Row] = []
    for context in CONTEXTS:
        ms = latency if fixed else latency * (1 + context / 3000)
        seconds = 0.004 + 3e-5 * context**exponent * 10000 / speed
        rows.append({"kind": "step_cost", "mixer": mixer, "context": context, "ms_per_token": ms,
                     "state_bytes": _state(mixer, context)})
        rows.append({"kind": "prefill", "mixer": mixer, "length": context, "seconds": seconds})
    rows.append({"kind": "prefill_fit", "mixer": mixer, "exponent": exponent, "lengths": CONTEXTS[3:]})
    for trained in (False, True):
        for k in [*range(32), *range(32, 256, 8)]:
            norm = 0.3 * math.exp(-k / (reach if trained else reach / 2)) / (1 + k) ** 0.7
            rows.append({"kind": "gradient", "mixer": mixer, "k": k, "norm": norm, "trained": trained})
    return rows


def model(mixer: str) -> Row:
    """The model row."""
    width, layers = _MODELS[mixer][2:4]
    return {
        "kind": "model", "mixer": mixer, "params": 1_000_000 + 37 * width, "params_embedding": 256 * width,
        "width": width, "layers": layers, "mlp": "gated" if mixer == "attention" else "none",
        "flops_per_token": 2_000_000 + 900 * width, "state_bytes": _state(mixer, 256),
        "summary": f"{layers} layers of width {width}",
    }  # fmt: skip


def baselines() -> list[Row]:
    """Trivial baselines, from log2 256 bits down to an order-3 Markov model."""
    bits = {"uniform": 8.0, "unigram": 4.51, "markov-1": 3.44, "markov-2": 2.67, "markov-3": 2.31}
    return [
        {"kind": "baseline", "name": name, "order": order, "test_bits_per_byte": bit, "test_loss": bit * math.log(2),
         "valid_loss": (bit + 0.02) * math.log(2)}
        for order, (name, bit) in enumerate(bits.items())
    ]  # fmt: skip


def comparison(mixers: tuple[str, ...] = ("rnn", "lstm", "attention", "s6"), seeds: int = 1) -> list[Row]:
    """All rows of a finished comparison, in the order in which one is run."""
    noise = random.Random(7)
    rows = [about(list(mixers), seeds), *baselines(), *(model(mixer) for mixer in mixers)]
    for mixer in mixers:
        for lr in RATES:
            if lr != 1e-3:
                rows += _curve(mixer, lr, 0, RUNG, noise)
        for seed in range(seeds):
            curve = _curve(mixer, 1e-3, seed, STEPS, noise)
            last = [row["loss"] for row in curve if row["kind"] == "valid"][-1]
            rows += [*curve, _result(mixer, seed, last, noise)]
    for mixer in mixers:
        rows += _costs(mixer)
        rows.append({"kind": "sample", "mixer": mixer, "prompt": "def ", "text": _TEXT[4:] * 2})
    return [*rows, {"kind": "end", "training_seconds": 571.0, "evaluation_seconds": 143.0, "complete": True}]
