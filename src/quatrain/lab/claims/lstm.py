"""What people say of the LSTM."""

from itertools import pairwise

from quatrain.lab.claims import rnn
from quatrain.lab.claims.claim import (
    AGREES,
    DISAGREES,
    NOISE,
    Claim,
    Found,
    Row,
    Verdict,
    above,
    estimate,
    larger,
    missing,
    select,
    together,
)  # fmt: skip
from quatrain.lab.claims.recorded import Scores, absent, need
from quatrain.lab.claims.words import digits, interval, share

LEARNT = 0.95  # token accuracy from which on a small model is worth looking into
USUAL = 1.0  # the bias of the forget gate that people start with
CONSTANT_ERROR = 1 / 6  # of the adding problem: what saying 1 always has, the variance of the sum
KEPT, STEPS = 0.9, 100  # an undistorted value: so much of it after so many steps


def gradient(found: Found) -> Verdict:
    """Agrees where a larger forget bias lets gradients fall more slowly, and both the usual one and the
    largest one more slowly than an RNN of radius 0.9.
    """
    rows = sorted(select(found, "rate", mixer="lstm"), key=lambda row: row.get("bias") or 0.0)
    rates = {float(row["bias"]): estimate(row) for row in rows if row.get("bias") is not None}
    if len(rates) < 2:
        return missing("The gradient against distance")
    biases = sorted(rates)
    order = [larger(rates[high], rates[low]) for low, high in pairwise(biases)]
    listed = ", ".join(f"{interval(rates[bias], 3)} at bias {bias:g}" for bias in biases)
    far = ", ".join(digits(rates[bias].value ** 100) for bias in biases)
    text = f"One step further back multiplies the gradient by {listed}; over 100 steps: {far}."
    peer = [row for row in select(found, "rate", mixer="rnn") if row.get("radius") == 0.9]
    if peer:
        order += [above(rates[bias], estimate(peer[0]).value) for bias in {USUAL, biases[-1]} & {*biases}]
        text += f" An RNN of spectral radius 0.9: {estimate(peer[0]).value:.3f} a step."
    return Verdict(together(order), text)


def cell(found: Found) -> Verdict:
    """Agrees where most of a written value is still in the cell after 100 steps with the usual bias 1."""
    usual = [row for row in select(found, "retention", trained=False) if row["bias"] == USUAL]
    if not usual:
        return missing("What a cell keeps")
    kept = _after(usual)
    text = (
        f"Of a value written at first weights, {_kept(kept)} is left after {kept['k']} steps at forget bias 1"
    )
    open_ = [row for row in select(found, "retention", trained=False) if row["bias"] == 3.0]
    if open_:
        text += f" and {_kept(_after(open_))} at bias 3"
    trained = select(found, "retention", trained=True)
    if trained:
        last = _after(trained)
        text += (
            f"; after training on selective copying the median cell keeps {_kept(last)} over {last['k']} "
            f"blanks, the best tenth at least {share(last['best'])}"
        )
    word = AGREES if kept["kept"] >= KEPT else DISAGREES
    if word == DISAGREES:
        text += ". The cell can keep a value only where its gate is open, and at first it is not open enough"
    return Verdict(word, f"{text}.")


def _after(rows: list[Row]) -> Row:
    """The row of the number of steps that is nearest to a hundred."""
    return min(rows, key=lambda row: abs(int(row["k"]) - STEPS))


def _kept(row: Row) -> str:
    value = float(row["kept"])
    return share(value) if value >= 0.001 else digits(value)


def gates(found: Found) -> Verdict:
    """Agrees where, in a trained model, the input gate opens more on content than on blanks."""
    demo = select(found, "demo", mixer="lstm")
    rows = {row["name"]: row for row in select(found, "contrast", mixer="lstm")}
    if not demo or "input" not in rows:
        return missing("A trained LSTM")
    accuracy = demo[0]["accuracy"]
    listed = ", ".join(
        f"{name} gate {row['content']:.2f} on content and {row['blank']:.2f} on blanks"
        for name, row in rows.items()
    )
    text = (
        f"{listed} (means over cells; input: {interval(estimate(rows['input']))} times). The model names "
        f"{share(accuracy)} of the tokens right after {demo[0]['steps']} steps."
    )
    text = text[:1].upper() + text[1:]
    if accuracy < LEARNT:
        return Verdict(NOISE, f"{text} It has not learnt the task, so its gates say little.")
    return Verdict(above(estimate(rows["input"]), 1.0), text)


def long(found: Found) -> Verdict:
    """Agrees where the LSTM errs by at most 0.01 on the adding problem and the RNN by half of what saying 1
    always does, or more: an RNN below that has learnt most of it.
    """
    adding, copying = Scores(found, "adding"), Scores(found, "copy_memory")
    if not need(adding, ("lstm", "rnn")):
        return absent("the adding problem")
    lstm, other = adding.farthest("lstm"), adding.farthest("rnn")
    assert lstm is not None
    assert other is not None
    text = (
        f"Adding problem over {adding.longest()} steps, mean squared error: {adding.listed(digits)}; saying "
        f"1 always has {digits(CONSTANT_ERROR)}{adding.source()}."
    )
    learnt = other < CONSTANT_ERROR / 2
    if learnt:
        text += f" The RNN, too, learnt it: {share(1 - other / CONSTANT_ERROR)} of the variance."
    if copying:
        text += f" Copy memory: {copying.listed(digits)}{copying.source()}."
    return Verdict(AGREES if lstm <= 0.01 and not learnt else DISAGREES, text)


CLAIMS = (
    Claim(
        "lstm-gradient",
        "lstm",
        "Gates let gradients through",
        "The gates of an LSTM keep gradients from vanishing.",
        "As for the RNN, at forget biases 0, 1 and 3; one layer, five sets of weights, float64. Kept: with a "
        "larger bias they fall more slowly, and with the usual bias of 1 and the largest one more slowly "
        "than in an RNN of radius 0.9.",
        gradient,
    ),
    Claim(
        "lstm-cell",
        "lstm",
        "The cell carries a value undistorted",
        "The cell state is a conveyor belt: a value written into it travels on undistorted.",
        "1 is added to one cell, the model reads on with and without it, and the difference in that cell is "
        "what is left; median over cells. Undistorted: at least 90 % after 100 steps at the usual bias of 1.",
        cell,
    ),
    Claim(
        "lstm-gates",
        "lstm",
        "Three gates decide",
        "Three gates decide what is written, what is kept and what is shown.",
        "An LSTM is trained here on a small selective copying task; its gates are read over fresh sequences, "
        "on content tokens and on blanks.",
        gates,
    ),
    Claim(
        "lstm-long",
        "lstm",
        "Learns long dependences",
        "An LSTM learns dependences over hundreds of steps where an RNN does not.",
        "Adding problem and copy memory, trained; from records. Learnt: an LSTM that errs by at most 0.01; "
        "not learnt: an RNN that errs by half of what saying 1 always does, or more.",
        long,
    ),
    Claim(
        "lstm-cost",
        "lstm",
        "Linear cost",
        "The cost of an LSTM grows linearly with the length.",
        rnn.CLAIMS[1].method,
        lambda found: rnn.linear(found, "lstm"),
    ),
)
