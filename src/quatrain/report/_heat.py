"""Small maps as SVG: one colour, the value as opacity, so that one drawing serves light, dark and print."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

Row = Mapping[str, Any]
_LEVELS = 12  # of opacity


def grid(rows: Sequence[Row], colour: str, key: str, title: str, caption: str) -> str:
    """A figure with a map for each row: ``name``, ``values`` (a list of rows in [0, 1]), ``letters``."""
    maps = "".join(
        f'<div class="map"><p>{escape(str(row["name"]))}</p>'
        f"{heat(row['values'], row['letters'], colour)}</div>"
        for row in rows
    )
    return (
        f'<figure id="{key}"><h3>{escape(title)}</h3><div class="maps">{maps}</div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def heat(values: Sequence[Sequence[float]], letters: Sequence[str], colour: str) -> str:
    """One map with its letters below: a path for each level of opacity, which keeps it small."""
    paths: dict[int, str] = {}
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            level = round(min(1.0, max(0.0, value)) * _LEVELS)
            if level:
                paths[level] = paths.get(level, "") + f"M{x} {y}h1v1h-1z"
    width, height = len(values[0]), len(values)
    drawn = "".join(
        f'<path d="{d}" fill-opacity="{level / _LEVELS:.2f}"/>' for level, d in sorted(paths.items())
    )
    text = "".join(
        f'<text x="{x + 0.5}" y="{height + 1.25}">{escape(letter)}</text>' for x, letter in enumerate(letters)
    )
    return (
        f'<svg viewBox="0 0 {width} {height + 1.7:.1f}" role="img" '
        f'aria-label="map of {height} rows and {width} columns"><g fill="{colour}">{drawn}</g>'
        f'<rect width="{width}" height="{height}" class="frame"/>'
        f'<g class="letters">{text}</g></svg>'
    )
