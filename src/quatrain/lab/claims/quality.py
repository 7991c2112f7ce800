"""What people say about quality."""

from quatrain.lab.claims.claim import AGREES, DISAGREES, NOISE, Claim, Found, Verdict
from quatrain.lab.claims.recorded import Scores, absent
from quatrain.lab.claims.stats import over
from quatrain.lab.claims.words import NAMES, digits, length

LEVEL = 0.01  # of a loss: closer ones are level where one seed was trained


def twice(found: Found) -> Verdict:
    """Agrees where S6 with P parameters predicts at least as well as a Transformer with 2 P, equal tokens."""
    scores = Scores(found, "wikitext2")
    by: dict[tuple[str, int], list[float]] = {}
    for row in scores.alike():
        by.setdefault((row["mixer"], int(row.get("params") or 0)), []).append(float(row["value"]))
    mine = min((key for key in by if key[0] == "s6"), key=lambda key: key[1], default=None)
    large = max((key for key in by if key[0] == "attention"), key=lambda key: key[1], default=None)
    if mine is None or large is None or large[1] < 1.5 * mine[1]:
        return absent("WikiText-2 at P and 2 P parameters")
    listed = ", ".join(
        f"{NAMES.get(m, m)} with {length(p)}: {digits(over(v).value, 3)}" for (m, p), v in sorted(by.items())
    )
    text = f"Perplexity at equal tokens, small scale: {listed}{scores.source()}."
    a, b = over(by[mine]), over(by[large])
    if len(by[mine]) > 1 and len(by[large]) > 1:
        word = AGREES if a.high < b.low else DISAGREES if a.low > b.high else NOISE
    else:
        word = NOISE if abs(a.value / b.value - 1) < LEVEL else AGREES if a.value < b.value else DISAGREES
    return Verdict(word, text)


def equal(found: Found) -> Verdict:
    """Agrees where S6 predicts better than the Transformer of equal size, beyond the level of noise."""
    scores = Scores(found, "wikitext2")
    by: dict[str, list[float]] = {}
    least = min((int(row.get("params") or 0) for row in scores.rows), default=0)
    for row in scores.alike():
        if int(row.get("params") or 0) <= 1.1 * least:
            by.setdefault(row["mixer"], []).append(float(row["value"]))
    if "s6" not in by or "attention" not in by:
        return absent("WikiText-2 at equal parameters")
    a, b = over(by["s6"]), over(by["attention"])
    gap = a.value / b.value - 1
    listed = ", ".join(
        f"{NAMES.get(mixer, mixer)} {digits(over(values).value, 3)}" for mixer, values in by.items()
    )
    text = f"Perplexity at equal parameters and tokens, small scale: {listed}{scores.source()}."
    several = min(len(by["s6"]), len(by["attention"])) > 1
    near = (a.low < b.high and b.low < a.high) if several else abs(gap) < LEVEL
    return Verdict(NOISE if near else AGREES if gap < 0 else DISAGREES, text)


CLAIMS = (
    Claim(
        "quality-twice",
        "quality",
        "As good as a Transformer twice its size",
        "Mamba is as good as a Transformer of twice its size.",
        "S6 with P parameters beside Transformers with P and 2 P on WikiText-2 at equal tokens; small scale; "
        "from records.",
        twice,
    ),
    Claim(
        "quality-equal",
        "quality",
        "Better at equal size",
        "At equal size Mamba models language better than a Transformer.",
        "All four at equal parameters and tokens on WikiText-2; small scale; from records.",
        equal,
    ),
)
