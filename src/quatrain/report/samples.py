"""What each model answered, to be looked at: texts, classes, tags, transcripts, a forecast."""

from collections.abc import Callable, Iterable
from html import escape
from typing import Any

from quatrain.report import numbers
from quatrain.report.gather import Comparison, Row, list_of, number

_SAMPLE = 4000  # characters of one sample that the page shows
_WIDTH, _HEIGHT = 300.0, 130.0  # of a forecast's picture
_ITEM_HEIGHT = 34.0  # of a sequence's course

TITLES = {
    "text": ("What each one writes", "The same prompt for all (underlined), then the model's own text."),
    "classes": (
        "What each one says",
        "The same sequences of the test part for all: the true class, the answer and its probability.",
    ),
    "tags": ("What each one says", "The same sequences of the test part for all; wrong tags are underlined."),
    "transcripts": (
        "What each one hears",
        "The same recordings of the test part for all: what is said, and what the model makes of it.",
    ),
    "forecast": (
        "What each one forecasts",
        "The same place in the test part for all: the series (grey), the mean of the forecast (line), and "
        "between which quantiles it lies (bands: the outer and the inner pair).",
    ),
}


def forms(comparison: Comparison) -> str:
    """What the samples hold; of a text where there are none."""
    rows = comparison.rows.get("sample", [])
    return next((str(row["form"]) for row in rows if row.get("form") in TITLES), "text")


def samples(comparison: Comparison) -> str:
    """A card for each model, as HTML; every text from the records is escaped."""
    cards = []
    for entry in comparison.entries:
        for row in comparison.of("sample", entry.key)[:3]:
            show = _FORMS.get(str(row.get("form") or "text"), _text)
            cards.append(
                f'<article class="sample" style="border-top-color:{entry.style.colour}"><h3>'
                f"{escape(entry.style.name)}</h3>{show(row, entry.style.colour)}</article>"
            )
    return (
        f'<div class="samples">{"".join(cards)}</div>'
        if cards
        else '<p class="absent">No answer was recorded.</p>'
    )


def _text(row: Row, _: str) -> str:
    prompt, text = (str(row.get(key) or "")[:_SAMPLE] for key in ("prompt", "text"))
    return f'<pre tabindex="0"><span class="prompt">{escape(prompt)}</span>{escape(text)}</pre>'


def _items(row: Row) -> list[Row]:
    return [item for item in list_of(row, "items") if isinstance(item, dict)]


def _read(item: Row, colour: str) -> str:
    """What a sequence is: its text, or the course of its values."""
    if item.get("text"):
        return f"<blockquote>{escape(str(item['text'])[:_SAMPLE])}</blockquote>"
    values = _finite(list_of(item, "values"))
    if len(values) < 2:
        return ""
    line = _line(values, 0, len(values), min(values), max(values), _ITEM_HEIGHT)
    return (
        f'<svg viewBox="0 0 {_WIDTH:.0f} {_ITEM_HEIGHT:.0f}" role="img" aria-label="the sequence">'
        f'<path d="{line}" fill="none" stroke="{colour}" stroke-width="1.2"/></svg>'
    )


def _classes(row: Row, colour: str) -> str:
    found = ""
    for item in _items(row):
        truth, answer, chance = str(item.get("truth")), str(item.get("answer")), number(item, "probability")
        right = truth == answer
        says = f'<b class="{"right" if right else "wrong"}">{escape(answer)}</b>'
        share = f" ({numbers.percent(chance)})" if chance is not None else ""
        also = "" if right else f", true: <b>{escape(truth)}</b>"
        mark = "\N{CHECK MARK}" if right else "\N{MULTIPLICATION X}"
        found += f"<li>{_read(item, colour)}<p>{mark} {says}{escape(share)}{also}</p></li>"
    return f'<ul class="answers">{found}</ul>'


def _tags(row: Row, colour: str) -> str:
    found = ""
    for item in _items(row):
        truth, answer = list_of(item, "truth"), list_of(item, "answer")
        tags = " ".join(
            f'<span class="{"right" if not true or true == said else "wrong"}"'
            f' title="{escape(str(true))}">{escape(str(said))}</span>'
            for true, said in zip(truth, answer, strict=False)
        )
        right = sum(true == said for true, said in zip(truth, answer, strict=False) if true)
        tagged = sum(bool(true) for true in truth)
        true = " ".join(escape(str(tag) or numbers.DASH) for tag in truth)
        share = f"{right} of {tagged} right"
        found += f'<li>{_read(item, colour)}<p class="tags">{tags}</p><p>{share}; true: {true}</p></li>'
    return f'<ul class="answers">{found}</ul>'


def _transcripts(row: Row, colour: str) -> str:
    found = ""
    for item in _items(row):
        truth, answer = str(item.get("truth") or ""), str(item.get("answer") or "")
        right = truth == answer
        said = escape(answer) or "<i>nothing</i>"
        also = "" if right else f"<br>true: <b>{escape(truth)}</b>"
        mark = "\N{CHECK MARK}" if right else "\N{MULTIPLICATION X}"
        kind = "right" if right else "wrong"
        found += f'<li>{_read(item, colour)}<p>{mark} <b class="{kind}">{said}</b>{also}</p></li>'
    return f'<ul class="answers">{found}</ul>'


def forecast_card(row: Row, colour: str) -> str:
    """A small picture: the past and what came, the mean, and bands between quantiles."""
    past, truth, mean = (_finite(list_of(row, key)) for key in ("past", "truth", "mean"))
    levels = [_finite(values) for values in list_of(row, "quantiles") if isinstance(values, list | tuple)]
    levels = [values for values in levels if len(values) == len(mean)]
    if len(mean) < 1 or not past:
        return '<p class="absent">No forecast was recorded.</p>'
    everything = [*past, *truth, *mean, *(value for values in levels for value in values)]
    low, high = min(everything), max(everything)
    steps, at = len(past) + len(mean), len(past) - 1

    def line(values: list[float], first: int) -> str:
        return _line(values, first, steps, low, high, _HEIGHT)

    bands = ""
    for inner in range(len(levels) // 2):
        below, above = [past[-1], *levels[inner]], [past[-1], *levels[-1 - inner]]
        back = _line(above[::-1], at + len(above) - 1, steps, low, high, _HEIGHT, -1).replace("M", "L", 1)
        bands += f'<path d="{line(below, at)}{back}Z" fill="{colour}" opacity="0.16"/>'
    name = escape(str(row.get("column") or "value"))
    return (
        f'<svg viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" aria-label="forecast of {name}">{bands}'
        f'<path d="{line([*past, *truth], 0)}" fill="none" stroke="currentColor" opacity="0.55"/>'
        f'<path d="{line([past[-1], *mean], at)}" fill="none" stroke="{colour}" stroke-width="2"/></svg>'
        f"<p>{name}: {numbers.significant(low)} to {numbers.significant(high)}; {len(past)} steps, then "
        f"{len(mean)} forecast</p>"
    )


def _finite(values: Iterable[Any]) -> list[float]:
    return [float(value) for value in values if isinstance(value, int | float)]


def _line(
    values: list[float], first: int, steps: int, low: float, high: float, height: float, way: int = 1
) -> str:
    """An SVG path of values at the steps from ``first`` on."""
    room, span = 3.0, (high - low) or 1.0
    points = [
        f"{(first + way * place) / max(1, steps - 1) * _WIDTH:.1f} "
        f"{height - room - (value - low) / span * (height - 2 * room):.1f}"
        for place, value in enumerate(values)
    ]
    return "M" + "L".join(points)


_FORMS: dict[str, Callable[[Row, str], str]] = {
    "text": _text,
    "classes": _classes,
    "tags": _tags,
    "transcripts": _transcripts,
    "forecast": forecast_card,
}
