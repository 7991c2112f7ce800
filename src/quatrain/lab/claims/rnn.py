"""What people say of the RNN."""

from quatrain.lab.claims.claim import (
    AGREES,
    DISAGREES,
    LINEAR,
    Claim,
    Found,
    Verdict,
    above,
    below,
    estimate,
    law,
    missing,
    select,
    together,
)  # fmt: skip
from quatrain.lab.claims.stats import Estimate
from quatrain.lab.claims.words import interval, power, spans

EXACT = 1e-9  # relative difference in float64 that rounding explains


def states(found: Found) -> Verdict:
    """Agrees where T tokens give T distinct states and outputs, those of one pass over all."""
    rows = select(found, "states", mixer="rnn")
    if not rows:
        return missing("Reading step by step")
    row = rows[0]
    steps = row["length"]
    exact = row["states"] == row["outputs"] == steps and row["difference"] <= EXACT
    text = (
        f"{steps} tokens gave {row['states']} different hidden states and {row['outputs']} outputs; the "
        f"outputs of single steps and of one pass differ by {power(row['difference'])} of the largest."
    )
    return Verdict(AGREES if exact else DISAGREES, text)


def linear(found: Found, mixer: str) -> Verdict:
    """Agrees where time and memory of training grow with an exponent in the linear band."""
    fits = {what: select(found, "exponent", of=what, mixer=mixer) for what in ("read", "train", "memory")}
    fits["memory"] = [row for row in fits["memory"] if row.get("fused", True)]
    if not fits["train"]:
        return missing("Cost against length")
    known = {what: estimate(rows[0]) for what, rows in fits.items() if rows}
    says = {"read": "reading", "train": "a training step", "memory": "peak memory"}
    parts = [f"{says[what]} {interval(one)}" for what, one in known.items()]
    lengths = fits["train"][0]["lengths"]
    text = f"Exponents {spans(lengths)} tokens: {', '.join(parts)}. 1 is linear."
    return Verdict(law(list(known.values()), LINEAR), text)


def gradient(found: Found) -> Verdict:
    """Agrees where gradients shrink at a radius below 1 and grow at one above 1, each beyond its interval."""
    rows = sorted(select(found, "rate", mixer="rnn"), key=lambda row: row.get("radius") or 0)
    rates = {float(row["radius"]): estimate(row) for row in rows if row.get("radius")}
    if not rates:
        return missing("The gradient against distance")
    low, high = min(rates), max(rates)
    verdict = together([below(rates[low], 1.0), above(rates[high], 1.0)])
    text = (
        f"One step further back multiplies the gradient by {_factor(rates[low])} at a spectral radius of "
        f"{low:g} and by {_factor(rates[high])} at {high:g}: over 100 steps {_power(rates[low])} and "
        f"{_power(rates[high])}."
    )
    if verdict == DISAGREES:
        text += " tanh saturates, and what saturates shrinks gradients again."
    return Verdict(verdict, text)


def _factor(rate: Estimate) -> str:
    return interval(rate, 3)


def _power(rate: Estimate) -> str:
    return power(rate.value**100)


CLAIMS = (
    Claim(
        "rnn-state",
        "rnn",
        "A new hidden state at every step",
        "An RNN makes a new hidden state and an output at every step.",
        "An untrained model reads random bytes one by one in float64; its distinct states are counted and "
        "its outputs set against those of one pass over the whole sequence.",
        states,
    ),
    Claim(
        "rnn-cost",
        "rnn",
        "Linear cost",
        "The cost of an RNN grows linearly with the length.",
        "Time of forward passes and training steps at growing lengths, batch of one, in turns; peak memory "
        "of a training step in a process of its own; exponents by least squares on logarithms.",
        lambda found: linear(found, "rnn"),
    ),
    Claim(
        "rnn-gradient",
        "rnn",
        "Gradients vanish and explode",
        "Gradients of an RNN vanish or explode, so it does not learn what lies far back.",
        "Norm of the gradient of the last loss by the input k steps earlier, of one tanh layer whose "
        "orthogonal recurrent matrix is scaled to spectral radii around 1; float64, five sets of weights; a "
        "rate is fitted over k, its interval is over the weights.",
        gradient,
    ),
)
