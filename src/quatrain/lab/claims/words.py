"""Numbers in the sentences of a verdict."""

from math import floor

from quatrain.lab.claims.stats import Estimate

NAMES = {
    "rnn": "RNN",
    "lstm": "LSTM",
    "gru": "GRU",
    "attention": "Transformer",
    "s6": "Mamba",
    "s4d": "S4D",
}


_RAISED = str.maketrans(
    "-0123456789",
    "\N{SUPERSCRIPT MINUS}\N{SUPERSCRIPT ZERO}\N{SUPERSCRIPT ONE}"
    "\N{SUPERSCRIPT TWO}\N{SUPERSCRIPT THREE}\N{SUPERSCRIPT FOUR}\N{SUPERSCRIPT FIVE}"
    "\N{SUPERSCRIPT SIX}\N{SUPERSCRIPT SEVEN}\N{SUPERSCRIPT EIGHT}\N{SUPERSCRIPT NINE}",
)


def power(value: float) -> str:
    """The nearest power of ten with one digit before it: 3.1e-12 -> 3 x 10^-12, 1e6 -> 10^6."""
    digit, exponent = f"{value:.0e}".split("e")
    raised = f"10{str(int(exponent)).translate(_RAISED)}"
    return (
        raised
        if digit == "1"
        else f"{digit}\N{NO-BREAK SPACE}\N{MULTIPLICATION SIGN}\N{NO-BREAK SPACE}{raised}"
    )


def digits(value: float, count: int = 2) -> str:
    """``value`` to so many significant digits: 0.01234 -> 0.012, 4321 -> 4,300; far from 1 as `power`."""
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e9:
        return power(value)
    rounded = float(f"{value:.{count - 1}e}")
    if abs(rounded) >= 10 ** (count - 1):
        return f"{rounded:,.0f}"
    return f"{rounded:.{count}g}"


def interval(one: Estimate, places: int = 2) -> str:
    """``1.02 (0.99 to 1.05)``."""
    value, low, high = (f"{round(number, places) + 0.0:.{places}f}" for number in one)  # no -0.00
    return f"{value} ({low} to {high})"


def times(value: float) -> str:
    """``3.4 times``."""
    return f"{digits(value)} times"


def share(value: float) -> str:
    """``99.8 %``; what is not all never rounds up to 100."""
    if 0.9995 <= value < 1:
        return f"{floor(1e4 * value) / 100:.2f} %"
    return f"{100 * value:.1f} %"


def size(value: float) -> str:
    """Bytes in powers of 1024."""
    for unit in ("B", "KiB", "MiB"):
        if abs(value) < 1024:
            return f"{digits(value, 3)} {unit}"
        value /= 1024
    return f"{digits(value, 3)} GiB"


def length(value: float) -> str:
    """A length: 16384 -> 16,384."""
    return f"{round(value):,}"


def spans(lengths: "list[int]") -> str:
    """``from 512 to 16,384``."""
    return f"from {length(min(lengths))} to {length(max(lengths))}"
