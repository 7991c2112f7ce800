"""One look per architecture, the same in every chart, legend and table.

The six colours keep a contrast of at least 3:1 on both page backgrounds, so one value serves light and
dark, and stay apart under protanopia, deuteranopia and tritanopia (test_report.py computes both). Dash and
point shape repeat the distinction for print and for eyes that see no colour.
"""

from collections.abc import Iterable
from typing import NamedTuple

LIGHT, DARK = "#ffffff", "#16181d"  # page backgrounds; page.css uses the same two


class Style(NamedTuple):
    """How one architecture looks: ``dash`` is a stroke pattern in pixels, ``shape`` a Vega point symbol."""

    name: str
    colour: str
    dash: tuple[int, ...]
    shape: str


STYLES = {
    "rnn": Style("RNN", "#e54bb4", (2, 2), "triangle-up"),
    "lstm": Style("LSTM", "#0c756e", (7, 3), "square"),
    "gru": Style("GRU", "#8838ff", (5, 2, 1, 2), "triangle-right"),
    "attention": Style("Transformer", "#2b93f5", (1, 0), "circle"),
    "s6": Style("Mamba (S6)", "#c62f04", (10, 3, 2, 3), "diamond"),
    "s4d": Style("S4D", "#b98b0d", (4, 2), "triangle-down"),
}
BASELINE = Style("baseline", "#85888d", (2, 3), "cross")

# For mixers this table does not know yet (a hybrid, a later architecture): given out in the order of the
# comparison. Colours that stay as far from all others as these three do are not left at this contrast.
_HOURGLASS, _BOW_TIE = "M-.8,-.8H.8L-.8,.8H.8Z", "M-.8,-.8V.8L.8,-.8V.8Z"
SPARE = (
    Style("", "#a818c0", (12, 3), "triangle-left"),
    Style("", "#3ca860", (6, 2, 1, 2, 1, 2), _HOURGLASS),
    Style("", "#606cf0", (1, 3), _BOW_TIE),
)

# Outlines of the Vega symbols above for the legends, in a box of 12 x 12 pixels.
OUTLINES = {
    "circle": "M2.5 6a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0Z",
    "square": "M3 3H9V9H3Z",
    "diamond": "M6 1.5L10 6L6 10.5L2 6Z",
    "triangle-up": "M6 2L10 9.5H2Z",
    "triangle-down": "M6 10L2 2.5H10Z",
    "triangle-right": "M10 6L2.5 10V2Z",
    "triangle-left": "M2 6L9.5 2V10Z",
    _HOURGLASS: "M2.8 2.8H9.2L2.8 9.2H9.2Z",
    _BOW_TIE: "M2.8 2.8V9.2L9.2 2.8V9.2Z",
    "cross": "M4.7 2H7.3V4.7H10V7.3H7.3V10H4.7V7.3H2V4.7H4.7Z",
}


def styles(mixers: Iterable[str]) -> dict[str, Style]:
    """The style of each mixer; one that is not in the table keeps its own name and takes a spare look."""
    found: dict[str, Style] = {}
    spare = 0
    for mixer in mixers:
        if mixer in STYLES:
            found[mixer] = STYLES[mixer]
        elif mixer not in found:
            turns, at = divmod(spare, len(SPARE))  # a colour that comes again has another dash and shape
            look = SPARE[(at + turns) % len(SPARE)]
            found[mixer] = look._replace(name=mixer, colour=SPARE[at].colour)
            spare += 1
    return found
