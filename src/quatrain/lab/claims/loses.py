"""Where each architecture is said to lose."""

from statistics import fmean

from quatrain.lab.claims import stats
from quatrain.lab.claims.claim import (
    AGREES,
    DISAGREES,
    NOISE,
    NOT_HERE,
    Claim,
    Found,
    Verdict,
    missing,
    select,
    together,
)  # fmt: skip
from quatrain.lab.claims.recorded import SOLVED, Scores, absent, base, called, need
from quatrain.lab.claims.stats import Estimate
from quatrain.lab.claims.words import NAMES, interval, length, share

SHORT = 256  # tokens: up to here a sequence is called short


def parity(found: Found) -> Verdict:
    """Agrees where RNN and LSTM generalise beyond the trained length, and Transformer and Mamba do not though
    they learnt it there: what was never learnt says nothing of longer strings.
    """
    scores = Scores(found, "parity")
    if not need(scores, ("rnn", "lstm", "attention", "s6")):
        return absent("parity")
    far = scores.longest()
    words = [AGREES if (scores.farthest(mixer) or 0) >= 0.99 else DISAGREES for mixer in ("rnn", "lstm")]
    unlearnt = []
    for mixer in ("attention", "s6"):
        words.append(AGREES if (scores.farthest(mixer) or 0) < 0.9 else DISAGREES)
        near = _trained_at(scores, mixer)
        if near is not None and near < 0.9:
            unlearnt.append(f"{NAMES[mixer]} {share(near)}")
            words.append(NOISE)
    lengths = f"Trained to {length(scores.trained())}, tested at {length(far)}"
    text = f"{lengths}: {scores.listed(share)}{scores.source()}."
    if unlearnt:
        text += (
            f" Not learnt at {length(scores.trained())} either: {', '.join(unlearnt)}; guessing is 50 %, so "
            "nothing follows about longer strings."
        )
    return Verdict(together(words), text)


def _trained_at(scores: Scores, mixer: str) -> float | None:
    """The mean at the greatest tested length that was trained on; None where only longer ones were tested."""
    found = scores.at(mixer)
    near = [at for at in found if at <= scores.trained() and at < max(found)]
    return fmean(found[max(near)]) if near else None


def recall(found: Found) -> Verdict:
    """Agrees where the Transformer recalls many keys, 99 % of them, and no model with a fixed state solves
    the task: a few per cent less, of one seed, would not be "cannot".
    """
    mqar, copying = Scores(found, "mqar"), Scores(found, "string_copying")
    if not need(mqar, ("attention", "s6")):
        return absent("MQAR")
    best = mqar.farthest("attention") or 0.0
    others = {model: mqar.farthest(model) or 0.0 for model in mqar.models() if base(model) != "attention"}
    text = f"MQAR: {mqar.listed(share)}{mqar.source()}."
    solved = [called(model) for model, value in others.items() if value >= SOLVED]
    if solved:
        text += f" Solved with a fixed state: {', '.join(solved)}."
    if others.get("s6-n64", 1.0) < others["s6"] - 0.02:
        text += " A larger state did worse than the usual one, so here training decides, not the size alone."
    if copying:
        at = copying.trained() if copying.mean("attention", copying.trained()) is not None else 0
        where = f" at {length(at)} steps, as trained" if at else ""
        text += f" Whole strings copied{where}: {copying.listed(share, at)}{copying.source()}."
    return Verdict(AGREES if best >= 0.99 and not solved else DISAGREES, text)


def audio(found: Found) -> Verdict:
    """Agrees where S4D is better than S6 on raw audio."""
    scores = Scores(found, "raw_audio")
    if not need(scores, ("s6", "s4d")):
        return absent("raw audio")
    s6, s4d = scores.farthest("s6") or 0.0, scores.farthest("s4d") or 0.0
    lower = any(row["metric"] in ("nats", "bits", "perplexity") for row in scores.rows)
    ahead = s4d < s6 if lower else s4d > s6
    listed = scores.listed(lambda value: f"{value:.3f}")
    unit = f"{scores.rows[0]['metric']} a sample" if lower else scores.rows[0]["metric"]
    text = f"Raw audio, {unit}: {listed}{scores.source()}."
    return Verdict(NOISE if abs(s4d - s6) < 0.01 * abs(s6) else AGREES if ahead else DISAGREES, text)


def short(found: Found) -> Verdict:
    """Agrees where, at the longest of the short sequences, RNN or LSTM train faster than both others."""
    rows = {(row["mixer"], row["length"]): row["seconds"] for row in select(found, "cost", mode="train")}
    lengths = sorted({at for _, at in rows if at <= SHORT}) or sorted({at for _, at in rows})[:1]
    if not lengths or any((mixer, lengths[0]) not in rows for mixer in ("rnn", "lstm", "attention", "s6")):
        return missing("Training at short lengths")
    at = lengths[-1]
    gains: dict[str, Estimate] = {}
    for mixer in ("rnn", "lstm"):
        for other in ("attention", "s6"):
            gains[f"{NAMES[mixer]} to {NAMES[other]}"] = stats.ratio(rows[other, at], rows[mixer, at])
    listed = ", ".join(f"{name} {interval(one)}" for name, one in gains.items())
    best = max(
        min(gains[f"{NAMES[m]} to {NAMES[o]}"].low for o in ("attention", "s6")) for m in ("rnn", "lstm")
    )
    worst = max(
        min(gains[f"{NAMES[m]} to {NAMES[o]}"].high for o in ("attention", "s6")) for m in ("rnn", "lstm")
    )
    word = AGREES if best > 1 else DISAGREES if worst < 1 else NOISE
    return Verdict(word, f"Training speed at {length(at)} tokens, equal parameters, as a ratio: {listed}.")


def ecosystem(found: Found) -> Verdict:
    """Never measurable: how many people use, document and repair something is not in any machine."""
    return Verdict(
        NOT_HERE,
        "How many people use, document and repair an architecture's tools cannot be measured on this "
        "machine.",
    )


CLAIMS = (
    Claim(
        "loses-parity",
        "loses",
        "Counting beyond the trained length",
        "Transformer and Mamba cannot carry a simple state, such as a parity, beyond the trained length; RNN "
        "and LSTM can.",
        "Parity, trained to 40 steps and tested to 256; from records. RNN and LSTM: at least 99 % right; "
        "Transformer and Mamba: below 90 % there, and learnt, at least 90 %, at the trained length.",
        parity,
    ),
    Claim(
        "loses-recall",
        "loses",
        "Recalling many things exactly",
        "A fixed state cannot recall many keys or copy a long string; attention can.",
        "Multi-query associative recall (8 keys and values among 128 tokens) and string copying; from "
        "records. Mamba has 16 state numbers a channel, s6-n2 2, s6-n64 64; lstm-256 is 256 wide, all others "
        "64. Solved: 95 % right.",
        recall,
    ),
    Claim(
        "loses-audio",
        "loses",
        "Raw audio",
        "On raw audio selection does harm: S4D is better than S6.",
        "The next sample of spoken recordings, mu-law of 8 bits, by S6 and by S4D with complex modes, equal "
        "widths and layers; from records.",
        audio,
    ),
    Claim(
        "loses-short",
        "loses",
        "Short sequences",
        "On short sequences a simple recurrence is faster than attention and Mamba.",
        f"Time of a training step at up to {SHORT} tokens, batch of one, models of equal size, in turns.",
        short,
    ),
    Claim(
        "loses-ecosystem",
        "loses",
        "A young ecosystem",
        "Mamba's ecosystem is young.",
        "Nothing on a machine measures it.",
        ecosystem,
    ),
)
