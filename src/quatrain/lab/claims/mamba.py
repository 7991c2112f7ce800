"""What people say of Mamba."""

from statistics import fmean

from quatrain.lab.claims import rnn, stats
from quatrain.lab.claims.claim import (
    AGREES,
    CONSTANT,
    DISAGREES,
    NOISE,
    Claim,
    Found,
    Row,
    Verdict,
    above,
    estimate,
    law,
    missing,
    select,
    together,
)  # fmt: skip
from quatrain.lab.claims.lstm import LEARNT
from quatrain.lab.claims.recorded import SOLVED, UNSOLVED, Scores, absent, need
from quatrain.lab.claims.words import interval, length, power, share, size, times

_FAR = 16  # times the trained length, where models that learnt a task part


def constant(found: Found) -> Verdict:
    """Agrees where neither time nor bytes of a generated token grow with the context that was read."""
    rows = {row["context"]: row for row in select(found, "far", mixer="s6")}
    fit = select(found, "exponent", of="far", mixer="s6")
    if len(rows) < 2 or not fit:
        return missing("Generation after long contexts")
    low, high = min(rows), max(rows)
    bytes_ = {row["state_bytes"] for row in rows.values()}
    text = (
        f"A token takes {1000 * rows[low]['median']:.2f} ms after {length(low)} tokens and "
        f"{1000 * rows[high]['median']:.2f} ms after {length(high)} (exponent {interval(estimate(fit[0]))}); "
        f"the state holds {size(rows[low]['state_bytes'])} after the first and "
        f"{size(rows[high]['state_bytes'])} after the last."
    )
    cache = select(found, "step", mixer="attention", batch=1)
    if cache:
        row = max(cache, key=lambda one: one["context"])
        grown = row["state_bytes"] / row["context"] * high
        text += f" A Transformer of this size would hold {size(grown)} there, counted."
    words = [law([estimate(fit[0])], CONSTANT), AGREES if len(bytes_) == 1 else DISAGREES]
    return Verdict(together(words), text)


def system(found: Found) -> Verdict:
    """Agrees where S4D's outputs step by step are those of its convolution, up to rounding."""
    rows = select(found, "equal")
    if not rows:
        return missing("S4D both ways")
    exact = [row for row in rows if "float64" in row["dtype"]]
    word = AGREES if exact and all(row["difference"] <= rnn.EXACT for row in exact) else DISAGREES
    listed = ", ".join(f"{row['dtype']} {power(row['difference'])}" for row in rows)
    text = f"Over {rows[0]['length']} steps the two differ, relative to the largest output, by: {listed}."
    return Verdict(word, text)


def selection(found: Found) -> Verdict:
    """Agrees where S6 solves selective copying and S4D, the same block without selection, does not."""
    copying, induction = Scores(found, "selective_copying"), Scores(found, "induction_heads")
    if not need(copying, ("s6", "s4d")):
        return absent("selective copying")
    words = _solved(copying, copying.longest())
    text = f"Selective copying: {copying.listed(share)}{copying.source()}."
    if induction:
        near = induction.trained()
        text += f" Induction heads at {length(near)}, as trained: {induction.listed(share, near)}"
        if far := induction.listed(share, _FAR * near):
            text += f"; at {length(_FAR * near)}: {far}"
        text += f"{induction.source()}."
        if None not in (induction.mean("s6", near), induction.mean("s4d", near)):
            words += _solved(induction, near)
    return Verdict(together(words), text)


def _solved(scores: Scores, at: int) -> list[str]:
    with_, without = scores.mean("s6", at), scores.mean("s4d", at)
    assert with_ is not None
    assert without is not None
    return [AGREES if with_ >= SOLVED else DISAGREES, AGREES if without <= UNSOLVED else DISAGREES]


def step_sizes(found: Found) -> Verdict:
    """Agrees where more than half of the channels of the first layer take larger steps on content, beyond the
    interval of that share; disagrees where fewer than half do.
    """
    demo, rows = select(found, "demo", mixer="s6"), select(found, "channels", mixer="s6")
    if not demo or not rows:
        return missing("A trained Mamba")
    row, accuracy = rows[0], demo[0]["accuracy"]
    one = estimate(row)
    text = (
        f"{share(one.value)} of {row['channels']} channels ({share(one.low)} to {share(one.high)}) take "
        f"larger steps on content than on blanks: {times(row['highest'])} as large in the highest tenth, "
        f"{times(row['median'])} in the median, {times(row['lowest'])} in the lowest tenth. The model names "
        f"{share(accuracy)} of the tokens right after {demo[0]['steps']} steps."
    )
    if accuracy < LEARNT:
        return Verdict(NOISE, f"{text} It has not learnt the task, so its step sizes say little.")
    return Verdict(above(one, 0.5), text)


def fused(found: Found) -> Verdict:
    """Agrees where the fused scan takes less time and less memory than the materialised one."""
    rows: dict[bool, dict[int, Row]] = {True: {}, False: {}}
    for row in select(found, "op", op="scan"):
        rows[row["fused"]][row["length"]] = row
    both = sorted(set(rows[True]) & set(rows[False]))
    if not both:
        return missing("The scan both ways")
    at = both[-1]
    one, other = rows[True][at], rows[False][at]
    faster = stats.ratio(other["seconds"], one["seconds"])
    smaller = other["bytes"] / max(1, one["bytes"])
    text = (
        f"At {length(at)} steps of 256 channels and 16 state numbers the fused scan is {interval(faster, 1)} "
        f"times as fast, takes {size(one['bytes'])} in the place of {size(other['bytes'])}, and has to move "
        f"{size(one['moved'])} in the place of {size(other['moved'])} (counted)."
    )
    return Verdict(together([above(faster, 1.0), AGREES if smaller > 1 else DISAGREES]), text)


def training(found: Found) -> Verdict:
    """Agrees where time and memory of training grow with an exponent in the linear band."""
    return rnn.linear(found, "s6")


def long(found: Found) -> Verdict:
    """Agrees where S6 still answers right at the longest context of induction heads, beyond training."""
    scores = Scores(found, "induction_heads")
    mine = scores.at("s6")
    if not mine:
        return absent("induction heads")
    far = max(mine)
    value = fmean(mine[far])
    seeds = f" ({share(min(mine[far]))} to {share(max(mine[far]))} over seeds)" if len(mine[far]) > 1 else ""
    trained = length(scores.trained())
    text = f"Trained at {trained} tokens, Mamba names {share(value)} right{seeds} at {length(far)}"
    held = [at for at in mine if at >= scores.trained() and fmean(mine[at]) >= SOLVED]
    if held and max(held) < far:
        text += f", and at least {share(SOLVED)} up to {length(max(held))}"
    return Verdict(AGREES if value >= SOLVED else DISAGREES, f"{text}{scores.source()}.")


CLAIMS = (
    Claim(
        "mamba-linear",
        "mamba",
        "Linear training cost",
        "Training a Mamba costs time and memory linear in the length.",
        rnn.CLAIMS[1].method,
        training,
    ),
    Claim(
        "mamba-constant",
        "mamba",
        "Constant cost of a token, no cache",
        "Mamba generates every token in constant time and memory, however long the context, without a KV "
        "cache.",
        "The model really reads 1,048,576 tokens; at contexts on the way its state is kept, and steps from "
        "all of them are timed in turns.",
        constant,
    ),
    Claim(
        "mamba-ssm",
        "mamba",
        "A state space from control theory",
        "A state-space model is a linear system that can be run as a recurrence or as a convolution.",
        "Outputs of S4D, the time-invariant block, step by step against one long convolution.",
        system,
    ),
    Claim(
        "mamba-selection",
        "mamba",
        "Selection",
        "Because its parameters depend on the input, Mamba chooses what to remember; without that it cannot.",
        "S6 and S4D, the same block without selection, on selective copying and induction heads; from "
        "records.",
        selection,
    ),
    Claim(
        "mamba-long",
        "mamba",
        "Up to a million tokens",
        "Mamba uses contexts of up to a million tokens.",
        "Induction heads, trained at 256 tokens and tested at powers of two up to 1,048,576; from records.",
        long,
    ),
    Claim(
        "mamba-steps",
        "mamba",
        "Small steps on noise, large ones on content",
        "Mamba lets noise pass with small steps and writes content down with large ones.",
        "A Mamba of one layer is trained here on a small selective copying task; softplus(dt) is read over "
        "fresh sequences, channel by channel, where its convolution holds content and where it holds blanks "
        "alone.",
        step_sizes,
    ),
    Claim(
        "mamba-fused",
        "mamba",
        "Made for the hardware",
        "Mamba's scan is hardware-aware: the large states never leave the fast memory.",
        "The fused scan against one that keeps decays, drives and states of all steps in memory, in turns; "
        "peak memory in processes of their own; bytes that have to be moved counted from the definitions.",
        fused,
    ),
)
