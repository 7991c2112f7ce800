"""The comparison in words, written from its numbers: what a person reads in half a minute."""

import math
from typing import NamedTuple

from quatrain.report import numbers
from quatrain.report.evidence import (
    LEVEL,
    Difference,
    apart,
    leaders,
    level,
    over_items,
    over_seeds,
    over_text,
)
from quatrain.report.gather import Comparison, Entry, list_of, number, table_of
from quatrain.report.measure import NATS
from quatrain.report.numbers import NBSP, listed

UNEVEN = 1.15  # times as long, or as short, as planned, from which on the page warns


class Summary(NamedTuple):
    """A headline, facts as (label, sentence), and what is missing or wrong."""

    headline: str
    facts: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]


def ranking(comparison: Comparison) -> list[Entry]:
    """The models that have a test result, best first."""
    return [entry for entry in comparison.entries if entry.status == "ok" and entry.merit < math.inf]


def quality(entry: Entry) -> str:
    """The test result of a line in the unit that people compare: bits per byte of a text where known."""
    bits, found = entry.mean("test_bits_per_byte"), entry.mean(entry.measure.key)
    if bits is not None:
        characters = entry.mean("test_bits_per_character")
        beside = "" if characters is None else f" ({numbers.loss(characters)} per character)"
        return f"{numbers.loss(bits)} {entry.texts.get('bits', 'bits per byte')}{beside}"
    return entry.measure.words(found or 0.0)


def _difference(found: Difference, entry: Entry) -> str:
    """A difference with its interval, in the unit of what decides."""
    measure, plus = entry.measure, numbers.PLUS_MINUS
    if measure.percent:
        return f"{100 * found.mean:.1f} {plus} {100 * found.half:.1f} points"
    unit = "nats" if measure == NATS else measure.title
    return f"{numbers.loss(found.mean)} {plus} {numbers.loss(found.half)} {unit}"


def _headline(comparison: Comparison, order: list[Entry]) -> str:
    name = str(table_of(comparison.about, "data").get("name") or "the test part")
    if not order:
        return "No model has a test result yet."
    first = order[0]
    if len(order) == 1:
        return f"{first.style.name} is the only model with a test result: {quality(first)} on {name}."
    tied = [entry for entry in order[1:] if level(first, entry)]
    if tied:
        names = listed([entry.style.name for entry in (first, *tied)])
        if all(entry.merit == first.merit for entry in tied):
            return f"{names} are level on {name}: {quality(first)} each."
        between = apart(first, tied[-1])
        return (
            f"{names} are level on {name}: {quality(first)} for the best, {between} apart. Too close to call."
        )
    second = order[1]
    so_far = "" if len(order) == len(comparison.entries) else "Of the models that finished, "
    does = f"predicts {name} best" if comparison.task in ("lm", "forecast") else f"is best on {name}"
    return (
        f"{so_far}{first.style.name} {does}: {quality(first)} on the test part, {apart(first, second)} "
        f"{'less' if first.measure.lower else 'more'} than {second.style.name} in second place."
    )


def _confidence(comparison: Comparison, order: list[Entry]) -> tuple[str, str] | None:
    if len(order) < 2:
        return None
    first, second = order[:2]
    test, text = over_seeds(first, second), over_text(first, second)
    if test is not None:
        verdict = "beyond noise" if test.clear else "within noise"
        return "How sure", (
            f"{test.n} seeds each. {second.style.name} is behind {first.style.name} by "
            f"{_difference(test, first)} (paired, 95{NBSP}%): {verdict}."
        )
    parts = ["One seed each: a quick look."]
    if text is not None:
        verdict = "more than the choice of the text explains" if text.clear else "within noise"
        parts.append(
            f"Over {text.n} stretches of the test text {second.style.name} is behind {first.style.name} by "
            f"{_difference(text, first)} (paired, 95{NBSP}%): {verdict}."
        )
    noise = over_items(first, second)
    rule = f"Below {numbers.percent(LEVEL)} this page calls models level, by rule of thumb."
    if noise is not None:
        rule = (
            f"With {first.mean('test_items') or 0:.0f} test sequences, a difference below "
            f"{100 * noise:.1f} points can be chance; this page calls such models level."
        )
    lead = f"a lead of {apart(first, second)} over {second.style.name}"
    parts.append(f"The noise between seeds was not measured, so {lead} is a hint, no proof. {rule}")
    return "How sure", " ".join(parts)


def _equal_time(comparison: Comparison, order: list[Entry]) -> tuple[str, str] | None:
    """Who leads where all trained anew for the same time."""
    timed = [entry for entry in comparison.timed if entry.status == "ok" and entry.merit < math.inf]
    if not timed or not order:
        return None
    first = leaders(timed)
    seconds = number(comparison.about, "time_per_model")
    each = f" of {numbers.duration(seconds)}" if seconds else ""
    if len(first) > 1:
        names = listed([entry.style.name for entry in first])
        return "With equal time", (
            f"Trained anew for the same time{each}, {names} are level: {quality(timed[0])} for the best."
        )
    also = " as well" if leaders(order) == [order[0]] and order[0].key == first[0].key else ""
    return "With equal time", (
        f"Trained anew for the same time{each}, {first[0].style.name} is best{also}: {quality(first[0])}."
    )


def _ends(order: list[Entry], key: str) -> tuple[Entry, float, Entry, float] | None:
    """The entries with the smallest and the largest value of a column, None where fewer than two have it."""
    known = sorted(
        ((value, entry) for entry in order if (value := entry.mean(key)) is not None), key=lambda p: p[0]
    )
    return (known[0][1], known[0][0], known[-1][1], known[-1][0]) if len(known) > 1 else None


def _speed(comparison: Comparison, order: list[Entry]) -> tuple[str, str] | None:
    ends = _ends(order, "tokens_per_second")
    if not ends:
        return None
    slow, least, fast, most = ends
    return "Fastest to train", (
        f"{fast.style.name}, {numbers.count(most)} {comparison.words.step}s/s: "
        f"{numbers.times(most / least)} the speed of {slow.style.name} ({numbers.count(least)})."
    )


def _latency(comparison: Comparison, order: list[Entry]) -> tuple[str, str] | None:
    ends = _ends(order, "ms_long")
    if not ends:
        return None
    cheap, least, dear, most = ends
    at, show = numbers.context(comparison.contexts[1]), numbers.significant
    step = comparison.words.step
    return f"Cheapest {step} at {at}", (
        f"{cheap.style.name}, {show(least)}{NBSP}ms for each new {step} after {at} of context; "
        f"{dear.style.name} needs "
        f"{show(most)}{NBSP}ms, {numbers.times(most / least)} as long."
    )


def _memory(comparison: Comparison, order: list[Entry]) -> tuple[str, str] | None:
    parts = []
    ends = _ends(order, "state_long")
    if ends:
        small, least, large, most = ends
        grows = [
            e.style.name
            for e in order
            if (e.mean("state_long") or 0) > 1.5 * (e.mean("state_short") or math.inf)
        ]
        parts.append(
            f"After {numbers.context(comparison.contexts[1])} {comparison.words.step}s a sequence keeps "
            f"{numbers.size(least)} in "
            f"{small.style.name} and {numbers.size(most)} in {large.style.name}."
        )
        if 0 < len(grows) < len(order):
            parts.append(f"Only that of {listed(grows)} grows with the context.")
    ends = _ends(order, "peak_memory_bytes")
    if ends:
        small, least, large, most = ends
        parts.append(
            f"Training peaks at {numbers.size(least)} ({small.style.name}) to {numbers.size(most)} "
            f"({large.style.name})."
        )
    return ("Memory", " ".join(parts)) if parts else None


def _against_baselines(comparison: Comparison, order: list[Entry]) -> tuple[str, str] | None:
    if not comparison.baselines or not order:
        return None
    best = comparison.baselines[0]
    if best.merit == math.inf:
        return None
    losers = [entry for entry in order if entry.merit >= best.merit]
    what = f"the best trivial baseline ({best.style.name}, {quality(best)})"
    if not losers:
        every = {1: "It beats", 2: "Both models beat"}.get(
            len(order), f"All {numbers.spelled(len(order))} models beat"
        )
        return "Baselines", f"{every} {what}."
    names = listed([entry.style.name for entry in losers])
    if len(losers) == len(order):
        return (
            "Baselines",
            f"No model beats {what}: with this budget nothing useful was learned beyond "
            f"{'counting' if comparison.task == 'lm' else 'it'}.",
        )
    return "Baselines", f"{names} {'does' if len(losers) == 1 else 'do'} not beat {what}; the others do."


def beaten_by(comparison: Comparison, entry: Entry) -> list[Entry]:
    """The baselines that a model does not beat on the test part."""
    if entry.merit == math.inf or entry.status != "ok":
        return []
    return [base for base in comparison.baselines if base.merit <= entry.merit]


def _warnings(comparison: Comparison, order: list[Entry]) -> list[str]:
    found = []
    if not comparison.about:
        found.append(
            "The record of the comparison itself is missing: machine, data and settings are unknown."
        )
    if not comparison.end:
        found.append("This comparison has not finished; the page shows what was measured so far.")
    elif comparison.end.get("complete") is False:
        found.append("This comparison was stopped before it was complete; the page shows what was measured.")
    found += [
        f"{e.style.name} {e.status}: {e.note or 'no reason recorded'}."
        for e in comparison.entries
        if e.status not in ("ok", "unfinished")
    ]
    absent = [entry.style.name for entry in comparison.entries if entry.status == "unfinished"]
    if absent:
        found.append(f"No result for {listed(absent)}.")
    found += [f"{e.style.name}: {e.note}." for e in comparison.entries if e.status == "ok" and e.note]
    found += _uneven(comparison)
    rates = sorted(
        rate for rate in list_of(comparison.about, "learning_rates") if isinstance(rate, int | float)
    )
    if len(rates) > 2:
        for end, rate, more in (("lowest", rates[0], "lower"), ("highest", rates[-1], "higher")):
            edge = [
                e.style.name
                for e in order
                if any(number(r, "lr") == rate for r in comparison.of("result", e.key))
            ]
            if edge:
                found.append(
                    f"{listed(edge)} chose the {end} learning rate of the grid ({numbers.rate(rate)}): "
                    f"a {more} one might do better."
                )
    return found


def _uneven(comparison: Comparison) -> list[str]:
    """Models that were trained for another time than they should: the calibration did not foresee it."""
    planned = number(comparison.about, "time_per_model")
    if not planned:
        return []
    entries = comparison.entries if comparison.alike == "time" else comparison.timed
    off = []
    for entry in entries:
        tokens, speed = entry.mean("tokens"), entry.mean("tokens_per_second")
        seconds = tokens / speed if tokens and speed else None
        if seconds is not None and not 1 / UNEVEN <= seconds / planned <= UNEVEN:
            off.append(f"{entry.style.name} {numbers.duration(seconds)}")
    if not off:
        return []
    return [
        f"Equal training time should be {numbers.duration(planned)}, but by the median step it was "
        f"{listed(off)}: other work on this machine changed its speed, so read that table with care."
    ]


def summarise(comparison: Comparison) -> Summary:
    """Write the summary of a comparison; facts that no number supports are left out."""
    order = ranking(comparison)
    facts = (
        _confidence(comparison, order),
        _equal_time(comparison, order),
        _against_baselines(comparison, order),
        _speed(comparison, order),
        _latency(comparison, order),
        _memory(comparison, order),
    )
    return Summary(
        _headline(comparison, order),
        tuple(fact for fact in facts if fact),
        tuple(_warnings(comparison, order)),
    )
