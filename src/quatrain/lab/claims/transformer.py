"""What people say of the Transformer."""

from math import log

from quatrain.lab.claims import stats
from quatrain.lab.claims.claim import (
    AGREES,
    DISAGREES,
    LINEAR,
    NOISE,
    QUADRATIC,
    Claim,
    Found,
    Verdict,
    above,
    estimate,
    larger,
    law,
    missing,
    select,
    together,
)  # fmt: skip
from quatrain.lab.claims.lstm import LEARNT
from quatrain.lab.claims.stats import Estimate
from quatrain.lab.claims.words import NAMES, interval, length, share, size, spans, times

APART = 0.1  # nats of divergence from which on two heads look at different things


def gains(found: Found) -> dict[str, dict[int, Estimate]]:
    """How many times less a token costs in one pass over T than in a step after T tokens: by mixer and T."""
    result: dict[str, dict[int, Estimate]] = {}
    for row in select(found, "cost", mode="read"):
        at = row["length"]
        steps = [s for s in select(found, "step", mixer=row["mixer"], batch=1, context=at) if "seconds" in s]
        if steps:
            each = [seconds / at for seconds in row["seconds"]]
            result.setdefault(row["mixer"], {})[at] = stats.ratio(steps[0]["seconds"], each)
    return result


def parallel(found: Found) -> Verdict:
    """Agrees where one pass is twice as fast per token as steps or more, and gains more than in RNN, LSTM."""
    found_gains = gains(found)
    if "attention" not in found_gains:
        return missing("The time of one pass against steps")
    mine = found_gains["attention"]
    at = max(mine)
    listed = ", ".join(
        f"{NAMES[mixer]} {interval(by[at], 1)}" for mixer, by in found_gains.items() if at in by
    )
    words = [above(mine[at], 2.0)]
    for mixer in ("rnn", "lstm"):
        peer = found_gains.get(mixer, {}).get(at)
        if peer:
            words.append(larger(mine[at], peer))
    text = (
        f"At {length(at)} tokens one pass costs less per token than single steps, this many times: {listed}."
    )
    return Verdict(together(words), text)


def reach(found: Found) -> Verdict:
    """Agrees where, at first weights, the gradient over distance falls more slowly than in RNN and LSTM."""
    rates = {row["mixer"]: estimate(row) for row in select(found, "rate", whole=True)}
    if "attention" not in rates:
        return missing("The gradient against distance")
    mine = rates["attention"]
    words = [
        AGREES if mine.low > rates[other].high else DISAGREES if mine.high < rates[other].low else NOISE
        for other in ("rnn", "lstm")
        if other in rates
    ]
    listed = ", ".join(f"{NAMES[mixer]} {interval(rate, 3)}" for mixer, rate in rates.items())
    return Verdict(together(words), f"One step further back multiplies the gradient by: {listed}.")


def quadratic(found: Found) -> Verdict:
    """Agrees where the time of attention grows with an exponent in the quadratic band, fused or not."""
    rows = select(found, "exponent", of="op time", op="attention")
    if not rows:
        return missing("Attention against length")
    says = {True: "fused", False: "with its weights in memory"}
    listed = "; ".join(
        f"{says[row['fused']]} {interval(estimate(row))} {spans(row['lengths'])}" for row in rows
    )
    text = f"Exponents of attention alone: {listed}. 2 is quadratic."
    steeper = [says[row["fused"]] for row in rows if estimate(row).low > QUADRATIC.high]
    if steeper:
        text += f" It grows faster than that {' and '.join(steeper)}."
    whole = select(found, "exponent", of="train", mixer="attention")
    if whole:
        text += (
            f" A whole training step: {interval(estimate(whole[0]))} {spans(whole[0]['lengths'])}, because "
            "the matrices of each token cost the most until the text is long."
        )
    return Verdict(law([estimate(row) for row in rows], QUADRATIC), text)


def memory(found: Found) -> Verdict:
    """Disagrees where fused attention's training memory grows linearly; agrees where it is quadratic too."""
    rows = {row["fused"]: row for row in select(found, "exponent", of="memory", mixer="attention")}
    if True not in rows:
        return missing("Peak memory against length")
    fused = estimate(rows[True])
    parts = [f"fused {interval(fused)} {spans(rows[True]['lengths'])}"]
    if False in rows:
        plain = estimate(rows[False])
        parts.append(f"with its weights in memory {interval(plain)} {spans(rows[False]['lengths'])}")
    text = f"Exponents of the peak memory of a training step: {'; '.join(parts)}."
    held = {
        row["fused"]: row
        for row in select(found, "memory", mixer="attention")
        if row["length"] == _common(found)
    }
    if len(held) == 2:
        text += (
            f" At {length(held[True]['length'])} tokens: {size(held[True]['bytes'])} and "
            f"{size(held[False]['bytes'])}."
        )
    if law([fused], LINEAR) == AGREES:
        return Verdict(DISAGREES, f"{text} Fused attention never holds the weights: memory is linear.")
    return Verdict(law([fused], QUADRATIC), text)


def _common(found: Found) -> int:
    """The greatest length at which peak memory was measured both ways; 0 without one."""
    rows = select(found, "memory", mixer="attention")
    both = {row["length"] for row in rows if row["fused"]} & {
        row["length"] for row in rows if not row["fused"]
    }
    return max(both, default=0)


def cache(found: Found) -> Verdict:
    """Agrees where the bytes of the state grow linearly with the context, and a step's time grows with it."""
    bytes_ = select(found, "exponent", of="state", mixer="attention")
    if not bytes_:
        return missing("The state against context")
    rows = {row["context"]: row for row in select(found, "step", mixer="attention", batch=1)}
    low, high = min(rows), max(rows)
    text = (
        f"The cache holds {size(rows[low]['state_bytes'])} after {length(low)} tokens and "
        f"{size(rows[high]['state_bytes'])} after {length(high)}: exponent {interval(estimate(bytes_[0]))}."
    )
    timed = [context for context, row in rows.items() if "seconds" in row]
    if len(timed) > 1:
        first, last = rows[min(timed)], rows[max(timed)]
        grown = stats.ratio(last["seconds"], first["seconds"])
        text += (
            f" A token takes {times(grown.value)} as long after {length(max(timed))} as after {length(low)}."
        )
    other = [row for row in select(found, "step", mixer="s6", batch=1) if row["context"] == high]
    if other:
        text += f" Mamba holds {size(other[0]['state_bytes'])} at any context."
    return Verdict(law([estimate(bytes_[0])], LINEAR), text)


def heads(found: Found) -> Verdict:
    """Agrees where the heads of a layer of a trained model differ by more than 0.1 nats."""
    demo, rows = select(found, "demo", mixer="attention"), select(found, "apart", mixer="attention")
    if not demo or not rows:
        return missing("A trained Transformer")
    listed = ", ".join(f"layer {row['layer'] + 1}: {interval(estimate(row))}" for row in rows)
    accuracy = demo[0]["accuracy"]
    text = (
        f"Divergence between heads in nats, {listed}; 0 is the same, {log(2):.2f} nothing in common. The "
        f"model names {share(accuracy)} of the tokens right."
    )
    if accuracy < LEARNT:
        return Verdict(NOISE, f"{text} It has not learnt the task, so its heads say little.")
    return Verdict(together([above(estimate(row), APART) for row in rows]), text)


CLAIMS = (
    Claim(
        "transformer-parallel",
        "transformer",
        "All positions at once",
        "A Transformer processes all positions at once, an RNN one after the other.",
        "Time per token of one pass over T tokens, beside the time of one step after T tokens; the same for "
        "all four, batch of one.",
        parallel,
    ),
    Claim(
        "transformer-reach",
        "transformer",
        "Any distance in one step",
        "In a Transformer every position is one step away from every other.",
        "Norm of the gradient of the last loss by the input k steps earlier, of whole models of equal size "
        "at their first weights; five sets of weights, float64.",
        reach,
    ),
    Claim(
        "transformer-quadratic",
        "transformer",
        "Quadratic time",
        "The cost of attention grows with the square of the length.",
        "Time of attention alone against length, fused and with its T x T weights in memory, in turns.",
        quadratic,
    ),
    Claim(
        "transformer-memory",
        "transformer",
        "Quadratic memory",
        "Attention needs memory that grows with the square of the length.",
        "Peak memory of a training step in a process of its own, with fused attention and with its weights "
        "in memory.",
        memory,
    ),
    Claim(
        "transformer-cache",
        "transformer",
        "The KV cache grows",
        "While it generates, a Transformer holds a cache that grows with every token.",
        "Bytes of the state and time of a generated token against context, batch of one; caches filled with "
        "random keys and values.",
        cache,
    ),
    Claim(
        "transformer-heads",
        "transformer",
        "Heads look at different things",
        "Different heads look at different things.",
        "A Transformer is trained here on a small selective copying task; Jensen-Shannon divergence between "
        "the attention of two heads, over pairs, positions and fresh sequences. Different: above 0.1 nats.",
        heads,
    ),
)
