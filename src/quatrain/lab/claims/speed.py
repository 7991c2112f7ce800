"""What people say about speed."""

from quatrain.lab.claims import stats
from quatrain.lab.claims.claim import (
    AGREES,
    DISAGREES,
    NOISE,
    Claim,
    Found,
    Verdict,
    above,
    larger,
    missing,
    select,
    together,
)  # fmt: skip
from quatrain.lab.claims.words import NAMES, digits, interval, length

SEVERAL = 3.0  # times faster, from which on people say several times


def generating(found: Found) -> Verdict:
    """Agrees where, after the longest context timed for both, Mamba generates at least 3 times as fast."""
    found_pair = _longest(found)
    if found_pair is None:
        return missing("Generation against context")
    at, theirs, mine = found_pair
    faster = stats.ratio(theirs, mine)
    text = f"After {length(at)} tokens Mamba generates {interval(faster, 1)} times as fast as the Transformer"
    first = min(row["context"] for row in select(found, "step", mixer="s6", batch=1))
    start = _seconds(found, "attention", first), _seconds(found, "s6", first)
    if start[0] and start[1]:
        text += f"; after {length(first)}, {interval(stats.ratio(start[0], start[1]), 1)} times"
    return Verdict(above(faster, SEVERAL), f"{text}. Batch of one, equal parameters.")


def _longest(found: Found) -> tuple[int, list[float], list[float]] | None:
    contexts = sorted({row["context"] for row in select(found, "step", batch=1)}, reverse=True)
    for context in contexts:
        theirs, mine = _seconds(found, "attention", context), _seconds(found, "s6", context)
        if theirs and mine:
            return context, theirs, mine
    return None


def _seconds(found: Found, mixer: str, context: int) -> list[float]:
    rows = select(found, "step", mixer=mixer, batch=1, context=context)
    return list(rows[0].get("seconds") or []) if rows else []


def training(found: Found) -> Verdict:
    """Agrees where, at the longest sequence, a token trains at least 3 times as fast in Mamba."""
    rows = {(row["mixer"], row["length"]): row["seconds"] for row in select(found, "cost", mode="train")}
    lengths = sorted(
        {at for mixer, at in rows if mixer == "s6"} & {at for mixer, at in rows if mixer == "attention"}
    )
    if not lengths:
        return missing("Training against length")
    faster = {at: stats.ratio(rows["attention", at], rows["s6", at]) for at in (lengths[0], lengths[-1])}
    listed = ", ".join(f"{interval(one, 2)} times as fast at {length(at)}" for at, one in faster.items())
    text = f"Mamba trains {listed} tokens a sequence as the Transformer, batch of one, equal parameters."
    return Verdict(above(faster[lengths[-1]], SEVERAL), text)


def crossing(found: Found) -> Verdict:
    """Agrees where Mamba is the faster one from some length on, in training and in generation; within noise
    where the interval of that length has no end.
    """
    train: dict[str, dict[int, list[float]]] = {}
    for row in select(found, "cost", mode="train"):
        train.setdefault(row["mixer"], {})[row["length"]] = row["seconds"]
    step: dict[str, dict[int, list[float]]] = {}
    for row in select(found, "step", batch=1):
        if "seconds" in row:
            step.setdefault(row["mixer"], {})[row["context"]] = row["seconds"]
    parts, words = [], []
    for name, by in (("training", train), ("generation", step)):
        if "attention" not in by or "s6" not in by:
            continue
        both = set(by["attention"]) & set(by["s6"])
        at = stats.crossing(by["attention"], by["s6"])
        words.append(DISAGREES if at is None else AGREES if at.high < float("inf") else NOISE)
        if at is None:
            parts.append(f"in {name} nowhere up to {length(max(both))} tokens")
        elif at.value <= min(both):
            parts.append(f"in {name} already at {length(min(both))} tokens, the shortest measured")
        else:
            parts.append(f"in {name} from {_range(at)} tokens on")
    if not parts:
        return missing("Speed against length")
    return Verdict(
        together(words),
        f"Mamba overtakes the Transformer {'; '.join(parts)}. Batch of one, equal parameters.",
    )


def _range(at: stats.Estimate) -> str:
    high = f"{digits(at.high)}" if at.high < float("inf") else "never"
    return f"{digits(at.value)} ({digits(at.low)} to {high})"


def batches(found: Found) -> Verdict:
    """Agrees where a larger batch speeds up both recurrent models more than both parallel ones, disagrees
    where it certainly speeds one of them up less than one of those.
    """
    rows = select(found, "batch")
    if not rows:
        return missing("Speed against batch")
    batch = sorted({row["batch"] for row in rows})
    at = max(row["length"] for row in rows)
    gains = {}
    for mixer in dict.fromkeys(row["mixer"] for row in rows):
        each = {row["batch"]: row["seconds"] for row in rows if row["mixer"] == mixer and row["length"] == at}
        if len(batch) > 1 and batch[0] in each and batch[-1] in each:
            large = [one / batch[-1] for one in each[batch[-1]]]
            gains[mixer] = stats.ratio([one / batch[0] for one in each[batch[0]]], large)
    if not gains:
        return missing("Speed against batch")
    listed = ", ".join(f"{NAMES[mixer]} {interval(one)}" for mixer, one in gains.items())
    recurrent = [gains[mixer] for mixer in ("rnn", "lstm") if mixer in gains]
    parallel = [gains[mixer] for mixer in ("attention", "s6") if mixer in gains]
    text = (
        f"At {length(at)} tokens a sequence, a batch of {batch[-1]} trains this many times as many tokens a "
        f"second as a batch of {batch[0]}: {listed}."
    )
    if not recurrent or not parallel:
        return missing("Speed against batch")
    return Verdict(together([larger(one, other) for one in recurrent for other in parallel]), text)


CLAIMS = (
    Claim(
        "speed-generation",
        "speed",
        "Generates several times faster",
        "Mamba generates several times faster than a Transformer on long sequences.",
        "Time of a generated token after a context, batch of one, models of equal size, in turns; several: "
        "at least 3 times after the longest context.",
        generating,
    ),
    Claim(
        "speed-training",
        "speed",
        "Trains several times faster",
        "On long sequences Mamba trains several times faster than a Transformer.",
        "Time of forward and backward at growing lengths, batch of one, models of equal size, in turns; "
        "several: at least 3 times at the longest.",
        training,
    ),
    Claim(
        "speed-crossing",
        "speed",
        "Where Mamba overtakes",
        "From some length on Mamba is faster than a Transformer.",
        "The length at which the two curves cross, interpolated on logarithms, with a bootstrap interval.",
        crossing,
    ),
    Claim(
        "speed-batch",
        "speed",
        "Recurrent models need a batch",
        "Recurrent models waste the machine at small batches; parallel ones do not.",
        "Training speed at batch 1 and at a larger batch, at the longest sequence that both fit in.",
        batches,
    ),
)
