"""Finite numbers as a person reads them: few digits, a unit, no trailing noise."""

import math

NBSP, TIMES, DASH, PLUS_MINUS = (
    "\N{NO-BREAK SPACE}",
    "\N{MULTIPLICATION SIGN}",
    "\N{EN DASH}",
    "\N{PLUS-MINUS SIGN}",
)


def significant(value: float, digits: int = 3) -> str:
    """``value`` to so many significant digits, without exponent between 1e-4 and 1e7: 0.2134 -> 0.213."""
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{digits - 1}e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    rounded = float(f"{value:.{digits - 1}e}")
    places = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:.{places}f}"


def loss(value: float) -> str:
    """A loss or bits per byte: three decimals, which is finer than the noise between two seeds."""
    return f"{value:.3f}"


def count(value: float) -> str:
    """A plain count: 1234567 -> 1.23M."""
    for scale, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= 0.9995 * scale:
            return significant(value / scale) + letter
    return significant(value) if value % 1 else f"{value:.0f}"


def size(value: float) -> str:
    """Bytes in powers of 1024: 33554432 -> 32.0 MiB."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if abs(value) >= 1024**power:
            return significant(value / 1024**power) + NBSP + unit
    return f"{value:.0f}{NBSP}B"


def context(value: float) -> str:
    """A context length: 16384 -> 16K, 100 -> 100."""
    return f"{value / 1024:.0f}K" if value >= 1024 and value % 1024 == 0 else f"{value:.0f}"


def duration(seconds: float) -> str:
    """0.0123 -> 12.3 ms, 48.3 -> 48.3 s, 252 -> 4 min 12 s."""
    if seconds < 1:
        return significant(1000 * seconds) + NBSP + "ms"
    if seconds < 100:
        return significant(seconds) + NBSP + "s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 120:
        return f"{minutes // 60}{NBSP}h {minutes % 60}{NBSP}min"
    return f"{minutes}{NBSP}min" + (f" {rest}{NBSP}s" if rest else "")


def seconds(value: float) -> str:
    """Seconds as a plain number: 48.31 -> 48.3."""
    return significant(value)


def rate(value: float) -> str:
    """A learning rate: 0.001 -> 1e-3, 0.0003 -> 3e-4."""
    if value <= 0:
        return f"{value:g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def percent(fraction: float) -> str:
    """0.031 -> 3.1 %."""
    return f"{100 * fraction:.2g}{NBSP}%" if abs(fraction) < 0.0995 else f"{100 * fraction:.0f}{NBSP}%"


def times(ratio: float) -> str:
    """How many times as much: 4.23 -> 4.2 (with a multiplication sign)."""
    return significant(ratio, 2) + TIMES


def listed(names: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1] if names else ""


def spelled(value: int) -> str:
    """Small counts as words: 4 -> four."""
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    return words[value] if value < len(words) else str(value)
