"""Small pictures for a page without a chart library: heat maps as PNG, lines and bars as SVG and HTML.

Everything over time is as wide as its box, with nothing beside it, so that step t stands at the same place in
every picture below each other; the words lie on top. Heat maps are one colour with the value as opacity: one
picture serves light, dark and print, and the script reads the value back from it.
"""

import math
import struct
import zlib
from base64 import b64decode, b64encode
from collections.abc import Sequence
from html import escape

from quatrain.report.numbers import significant

_HEIGHT = 100.0  # of a drawing's own coordinates


def heat(data: str, rows: int, columns: int, colour: str) -> str:
    """``rows`` x ``columns`` bytes in base64 as the address of a PNG: ``colour``, the byte its opacity."""
    values = b64decode(data)
    if len(values) != rows * columns:
        raise ValueError(f"a picture of {rows} x {columns} from {len(values)} bytes")
    lines = b"".join(b"\0" + values[at * columns : (at + 1) * columns] for at in range(rows))
    rgb = bytes.fromhex(colour.lstrip("#"))
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)),
        (b"PLTE", rgb * 256),
        (b"tRNS", bytes(range(256))),
        (b"IDAT", zlib.compress(lines, 9)),
        (b"IEND", b""),
    )
    file = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in parts)
    return "data:image/png;base64," + b64encode(file).decode()


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def path(values: Sequence[float], low: float, high: float) -> str:
    """An SVG path of values at the middles of equal steps, 0 to 1000 wide; ``high`` at the top."""
    span, steps = (high - low) or 1.0, len(values)
    heights = [_HEIGHT * (1 - (min(max(value, low), high) - low) / span) for value in values]
    points = [f"{(step + 0.5) / steps * 1000:.1f} {height:.1f}" for step, height in enumerate(heights)]
    return "M" + ("L".join(points) if steps > 1 else f"0 {points[0].split()[1]}H1000")


def lines(courses: Sequence[tuple[Sequence[float], str, str]], low: float, high: float, label: str) -> str:
    """Lines over time, as wide as their box: (values, colour, dash pattern), the last on top."""
    drawn = "".join(
        f'<path d="{path(values, low, high)}" stroke="{colour}"'
        + (f' stroke-dasharray="{dash}"' if dash else "")
        + "/>"
        for values, colour, dash in courses
    )
    return (
        f'<svg class="lines" viewBox="0 -2 1000 {_HEIGHT + 4:.0f}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}">{drawn}</svg>'
    )


def columns(values: Sequence[float | None], high: float, label: str) -> str:
    """A bar for each step from 0 up; nothing where there is no value."""
    steps, d = len(values), ""
    for step, value in enumerate(values):
        if value is not None:
            left, right = step / steps * 1000, (step + 0.86) / steps * 1000
            top = _HEIGHT * (1 - min(value / high, 1.0))
            d += f"M{left:.1f} {_HEIGHT:.0f}V{top:.1f}H{right:.1f}V{_HEIGHT:.0f}"
    return (
        f'<svg class="columns" viewBox="0 0 1000 {_HEIGHT:.0f}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}"><path d="{d}"/></svg>'
    )


def ticks(steps: int, most: int = 8) -> list[int]:
    """Round step numbers, counted from 1, for the line below."""
    rough = max(1.0, steps / most)
    power = 10 ** math.floor(math.log10(rough))
    stride = int(next(power * unit for unit in (1, 2, 5, 10) if power * unit >= rough))
    return [1, *range(stride if stride > 1 else 2, steps + 1, stride)]


class LogAxis:
    """A logarithmic axis as per cent of a box's width."""

    def __init__(self, low: float, high: float) -> None:
        self.low = math.floor(math.log10(max(low, 1e-6)) * 2) / 2
        self.high = max(math.ceil(math.log10(max(high, 1e-6)) * 2) / 2, self.low + 1)

    def at(self, value: float) -> float:
        """Where a value stands, 0 to 100; what lies outside stands at the end."""
        where = (math.log10(max(value, 1e-9)) - self.low) / (self.high - self.low)
        return round(100 * min(max(where, 0.0), 1.0), 2)

    def marks(self) -> list[tuple[float, str]]:
        """Powers of ten within it, with their names."""
        powers = range(math.ceil(self.low), math.floor(self.high) + 1)
        stride = 1 if len(powers) <= 6 else 2
        return [(self.at(10.0**power), _power(power)) for power in powers[::stride]]


def _power(power: int) -> str:
    if power < 0:
        return significant(10.0**power, 1)
    return f"{10**power:,}" if power < 4 else {4: "10K", 5: "100K"}.get(power, f"10^{power}")


def axis(scale: LogAxis) -> str:
    """The names of a logarithmic axis, as HTML."""
    return "".join(mark(at, name) for at, name in scale.marks())


def mark(at: float, name: str) -> str:
    """A name at a place of an axis, 0 to 100; at its ends it stays within."""
    end = ' class="first"' if at < 2 else ' class="last"' if at > 96 else ""
    return f'<i{end} style="left:{at:.2f}%">{name}</i>'
