"""What a claim is, and the rules by which numbers become a verdict. No torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from quatrain.lab.claims.stats import Estimate

Row = Mapping[str, Any]
Rows = list[tuple[str, dict[str, Any]]]  # kind and fields, as the journal takes them
Found = Mapping[str, Sequence[Row]]  # kind -> rows

AGREES, DISAGREES, NOISE = "agrees", "disagrees", "within noise"
NOT_HERE, NOT_YET = "not measurable here", "not yet measured"
VERDICTS = (AGREES, DISAGREES, NOISE, NOT_HERE, NOT_YET)


class Verdict(NamedTuple):
    """One of `VERDICTS`, and the numbers behind it in a sentence."""

    word: str
    finding: str


@dataclass(frozen=True)
class Claim:
    """Something that people say of an architecture, and what the numbers say to it.

    Attributes:
        id: its name, as ``rnn-gradient``.
        group: the module it stands in: rnn, lstm, transformer, mamba, speed, quality or loses.
        title: a few words.
        belief: the sentence as people say it.
        method: how it is measured.
        judge: from the rows, by kind, to the verdict; needs no torch.
    """

    id: str
    group: str
    title: str
    belief: str
    method: str
    judge: Callable[[Found], Verdict]


class Band(NamedTuple):
    """What an exponent may be and still be called linear, quadratic or constant."""

    low: float
    high: float
    name: str


CONSTANT = Band(-0.15, 0.15, "constant")
LINEAR = Band(0.85, 1.15, "linear")
QUADRATIC = Band(1.8, 2.2, "quadratic")


def law(found: Sequence[Estimate], band: Band) -> str:
    """Agrees where every interval lies in the band, disagrees where one lies outside, else within noise."""
    if not found:
        return NOT_YET
    if any(one.outside(band.low, band.high) for one in found):
        return DISAGREES
    return AGREES if all(one.within(band.low, band.high) for one in found) else NOISE


def above(one: Estimate, least: float) -> str:
    """Agrees where the interval lies above ``least``, disagrees where it lies below, else within noise."""
    if one.low > least:
        return AGREES
    return DISAGREES if one.high < least else NOISE


def below(one: Estimate, most: float) -> str:
    """Agrees where the interval lies below ``most``, disagrees where it lies above, else within noise."""
    if one.high < most:
        return AGREES
    return DISAGREES if one.low > most else NOISE


def larger(one: Estimate, other: Estimate) -> str:
    """Agrees where the whole interval of ``one`` lies above that of ``other``, disagrees where below."""
    return AGREES if one.low > other.high else DISAGREES if one.high < other.low else NOISE


def together(words: Sequence[str]) -> str:
    """The verdict of several parts of one claim: one that disagrees decides, then noise."""
    for word in (NOT_YET, DISAGREES, NOISE):
        if word in words:
            return word
    return AGREES if words else NOT_YET


def estimate(row: Row) -> Estimate:
    """The ``value``, ``low`` and ``high`` of a row; an end that is None, an infinite one, lies beyond."""
    value = float(row["value"])
    low, high = row.get("low"), row.get("high")
    return Estimate(
        value, value if low is None else float(low), float("inf") if high is None else float(high)
    )


def select(rows: Found, kind: str, **fields: object) -> list[Row]:
    """Rows of a kind whose fields are these."""
    return [row for row in rows.get(kind, ()) if all(row.get(key) == value for key, value in fields.items())]


def missing(what: str) -> Verdict:
    """The verdict where the rows of a measurement are not there."""
    return Verdict(NOT_YET, f"{what} was not measured.")
