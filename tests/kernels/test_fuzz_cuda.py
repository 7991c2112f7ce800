"""Random shapes and flags on a GPU against the float64 definition, under the error budget.

Gradients of few numbers, such as a skip's at E = 1, stay with the op table: their plain error, the measure of
the budget, is now and then 0 by luck.
"""

import random
from importlib import import_module

import pytest
import torch
from tests.test_kernels import WIDE_PARAMETERS, check_budget, example, strided

from quatrain.kernels import OPS, Case
from quatrain.kernels.causal_conv import cuda as conv
from quatrain.kernels.s6_scan import cuda as s6

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]
launch = import_module("quatrain.kernels.s6_scan._launch")
DTYPES = (torch.bfloat16, torch.float32, torch.float16)
EACH = 25  # shapes of one choice of flags: those share compiled kernels


def some(rng, *names):
    return tuple(name for name in names if rng.random() < 0.6)


def form(rng):
    return rng.choice([(), (), ("lengths",), ("cu_seqlens",)])


def check(name, run, case, seed, dtype, layout, keep):
    try:
        check_budget(OPS[name], run, example(OPS[name], case, seed), dtype, "cuda", layout, keep)
    except AssertionError as error:
        error.add_note(
            f"{case.name}, seed {seed}, {dtype}, {'strided' if layout is strided else 'dense'}, wide {keep}"
        )
        raise


@pytest.mark.parametrize("seed", range(40))
def test_s6_scan(seed, monkeypatch):
    rng = random.Random(seed)
    optional, batch_form = some(rng, "skip", "gate", "delta_bias", "h0"), form(rng)
    flags = {"softplus": rng.random() < 0.5, "zoh": rng.random() < 0.2}
    states = rng.choice((range(1, 5), range(5, 9), range(9, 17), range(9, 17), range(17, 33), range(33, 65)))
    dtype, keep = rng.choice(DTYPES), rng.choice(((), WIDE_PARAMETERS["s6_scan"]))
    for number in range(EACH):
        monkeypatch.setattr(launch, "_LEAST_CHUNK", rng.choice((1, 16, 512)))
        monkeypatch.setattr(launch, "_LEAST_LINK", rng.choice((1, 256)))
        launch.plan.cache_clear()
        many = rng.random() < 0.15 and "cu_seqlens" not in batch_form
        dims = {
            "B": 1 if "cu_seqlens" in batch_form else rng.randint(250, 600) if many else rng.randint(1, 5),
            "T": rng.randint(1, 70),
            "E": rng.choice((5, 6, 7)) if many else rng.choice((5, 16, 33, 64, 65, 130, 200)),
            "N": rng.choice(states),
        }
        if rng.random() < 0.25:
            dims["G"] = rng.choice([g for g in (1, 2, 3, 5) if dims["E"] % g == 0])
        case = Case(dims, (*optional, *batch_form), flags)
        layout = strided if rng.random() < 0.25 else (lambda x: x)
        check_budget(
            OPS["s6_scan"], s6.scan, example(OPS["s6_scan"], case, number), dtype, "cuda", layout, keep
        )


@pytest.mark.parametrize("seed", range(24))
def test_causal_conv(seed, monkeypatch):
    rng = random.Random(seed)
    optional, batch_form = some(rng, "bias", "h0"), form(rng)
    flags = {"silu": rng.random() < 0.5}
    taps, dtype = rng.randint(2, 8), rng.choice(DTYPES)
    keep = rng.choice(((), WIDE_PARAMETERS["causal_conv"]))
    for number in range(EACH):
        monkeypatch.setattr(conv, "_LEAST_CHUNK", rng.choice((1, 16)))
        conv._plan.cache_clear()
        dims = {
            "B": 1 if "cu_seqlens" in batch_form else rng.randint(1, 5),
            "T": rng.randint(1, 90),
            "E": rng.choice((5, 6, 8, 33, 64, 130)),
            "W": taps,
        }
        case = Case(dims, (*optional, *batch_form), flags)
        layout = strided if rng.random() < 0.25 else (lambda x: x)
        check("causal_conv", conv.convolve, case, number, dtype, layout, keep)


@pytest.mark.parametrize("seed", range(18))
def test_recurrent_scans(seed):
    rng = random.Random(seed)
    name = ("rnn_scan", "lstm_scan", "gru_scan")[seed % 3]
    run = import_module(f"quatrain.kernels.{name}.cuda").scan
    flags = {"nonlinearity": rng.choice(("tanh", "relu"))} if name == "rnn_scan" else {}
    optional = ({"rnn_scan": ("h0",), "lstm_scan": ("h0", "c0"), "gru_scan": ("bias", "h0")})[name]
    batch_form, dtype = form(rng), rng.choice(DTYPES)
    keep = rng.choice(((), WIDE_PARAMETERS[name]))
    for number in range(5):  # each a compilation or two
        dims = {
            "B": 1 if "cu_seqlens" in batch_form else rng.randint(2, 40),
            "T": rng.randint(2, 70),
            "D": rng.choice((5, 16, 33, 64, 100, 250, 520, 1030)),
        }
        case = Case(dims, (*optional, *batch_form), flags)
        layout = strided if rng.random() < 0.25 else (lambda x: x)
        check(name, run, case, number, dtype, layout, keep)
