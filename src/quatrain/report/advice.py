"""Which model to choose for this data, budget, latency and memory, and what would change that.

Templates over the records: each sentence stands on numbers that are on the page, and is left out where they
are missing. What the tests of `quatrain.report.evidence` do not separate is never ranked.
"""

import math
from functools import partial

from quatrain.report import numbers
from quatrain.report.evidence import apart, leaders, level
from quatrain.report.gather import Comparison, Entry, list_of, number
from quatrain.report.measure import NATS
from quatrain.report.numbers import NBSP, listed
from quatrain.report.reach import reaches

_CHEAPER = 1.3  # times less, from which on a cost is worth a sentence


def advise(comparison: Comparison) -> list[str]:
    """The sentences of the closing paragraph; empty where no model has a result."""
    order = _tested(comparison.entries)
    if not order:
        return []
    best = leaders(order)
    chosen = _chosen(comparison, best)
    sentences = [
        _against_counting(comparison, order),
        _choice(comparison, order, best, chosen),
        _time(comparison, best),
        *_costs(comparison, order, chosen),
        _growth(comparison, order, chosen),
        _far(comparison, chosen),
        _data(comparison),
        _seeds(comparison, order),
    ]
    return [sentence for sentence in sentences if sentence]


def _tested(entries: tuple[Entry, ...]) -> list[Entry]:
    return [entry for entry in entries if entry.status == "ok" and entry.merit < math.inf]


def _names(entries: list[Entry]) -> str:
    return listed([entry.style.name for entry in entries])


def _cheapest(entries: list[Entry], key: str) -> Entry | None:
    known = [(value, at) for at, entry in enumerate(entries) if (value := entry.mean(key)) is not None]
    return entries[min(known)[1]] if known else None


def _chosen(comparison: Comparison, best: list[Entry]) -> Entry:
    """The model to choose: the best one, or of several that are level the one whose tokens cost least."""
    return _cheapest(best, "ms_long") or best[0]


def _against_counting(comparison: Comparison, order: list[Entry]) -> str:
    if not comparison.baselines:
        return ""
    bar, base = comparison.baselines[0].merit, comparison.baselines[0].style.name
    if bar == math.inf or any(entry.merit < bar for entry in [*order, *_tested(comparison.timed)]):
        return ""
    only = "which only counts" if comparison.measure == NATS else "which needs no model"
    return (
        f"No model beats {base}, {only}: with this budget, that is the choice. A longer budget is "
        f"what would change it; the rest of this paragraph compares models that are not worth their cost yet."
    )


def _choice(comparison: Comparison, order: list[Entry], best: list[Entry], chosen: Entry) -> str:
    if len(order) == 1:
        return f"{order[0].style.name} is the only model with a result, so there is nothing to choose from."
    alike = "training time" if comparison.alike == "time" else f"{comparison.words.step}s"
    if len(best) == 1:
        return (
            f"With equal {alike}, choose {chosen.style.name}: it predicts best, "
            f"{apart(chosen, order[1])} ahead of {order[1].style.name}."
        )
    ms = chosen.mean("ms_long")
    if len(best) == len(order):
        who = "both models" if len(best) == 2 else f"all {numbers.spelled(len(best))} models"
    else:
        who = _names(best)
    sentence = f"With equal {alike}, {who} predict alike: the differences are within noise."
    if ms is None:
        return f"{sentence} Choose among them by what they cost."
    at = numbers.context(comparison.contexts[1])
    return (
        f"{sentence} Choose {chosen.style.name}, whose {comparison.words.step}s cost least of these after "
        f"{at} of context, or any other by what matters to you."
    )


def _time(comparison: Comparison, best: list[Entry]) -> str:
    """Who wins where training time is what one pays."""
    timed = _tested(comparison.timed)
    if len(timed) < 2:
        return ""
    first = leaders(timed)
    seconds = number(comparison.about, "time_per_model")
    each = f" ({numbers.duration(seconds)} each)" if seconds else ""
    lead = f"If training time rather than {comparison.words.step}s is what you pay{each},"
    if {entry.key for entry in first} == {entry.key for entry in best}:
        if len(first) == 1:
            return f"{lead} {_names(first)} is best as well."
        return f"{lead} the same models lead, again too close to tell apart."
    if len(first) > 1:
        return f"{lead} {_names(first)} lead, too close to tell apart."
    read = {entry.key: entry.mean("tokens") for entry in timed}
    mine, theirs = read[first[0].key], read.get(best[0].key)
    if mine and theirs and mine > 1.05 * theirs:
        more = f"{numbers.times(mine / theirs)} the {comparison.words.step}s of {best[0].style.name}"
        return f"{lead} {_names(first)} is best: it reads {more} in that time."
    return f"{lead} {_names(first)} is best."


def _costs(comparison: Comparison, order: list[Entry], chosen: Entry) -> list[str]:
    """What a lower latency or a smaller state costs in loss."""
    at = numbers.context(comparison.contexts[1])
    rules = (
        (
            "ms_long",
            f"If latency decides, after {at} of context",
            "takes",
            partial(_ms, comparison.words.step),
        ),
        ("state_long", f"If memory per open sequence decides, at {at}", "keeps", numbers.size),
    )
    found = []
    for key, lead, verb, show in rules:
        cheap, mine = _cheapest(order, key), chosen.mean(key)
        least = cheap.mean(key) if cheap else None
        if cheap is None or least is None or mine is None:
            continue
        if cheap is chosen:
            found.append(f"{lead}, the choice stays: {chosen.style.name} {verb} least ({show(least)}).")
        elif mine >= _CHEAPER * least:
            price = "predicts as well" if _alike(cheap, chosen) else _price(cheap, chosen)
            both = f"{show(least)} where {chosen.style.name} {verb} {show(mine)}"
            found.append(f"{lead}, {cheap.style.name} {verb} {both}, and {price}.")
    return found


def _ms(step: str, value: float) -> str:
    return f"{numbers.significant(value)}{NBSP}ms a {step}"


def _alike(one: Entry, other: Entry) -> bool:
    better, worse = sorted((one, other), key=lambda entry: entry.merit)
    return level(better, worse)


def _price(worse: Entry, better: Entry) -> str:
    if worse.measure != NATS:
        return f"is {apart(better, worse)} {'worse' if worse.merit > better.merit else 'better'}"
    key = worse.measure.key
    more = (worse.mean(key) or 0.0) / (better.mean(key) or 1.0) - 1
    return f"has a loss {numbers.percent(abs(more))} {'higher' if more > 0 else 'lower'}"


def _growth(comparison: Comparison, order: list[Entry], chosen: Entry) -> str:
    """Where the chosen model slows down with the context, from which context on another one is faster."""
    mine = _latencies(comparison, chosen)
    others = [(entry, _latencies(comparison, entry)) for entry in order if entry is not chosen]
    for context, ms in sorted(mine.items()):
        faster = [entry for entry, theirs in others if theirs.get(context, ms) < ms]
        if faster and context > min(mine) and ms > 1.5 * mine[min(mine)]:
            at, name = numbers.context(context), chosen.style.name
            step = comparison.words.step
            rest = f"from {at} {step}s on, {_names(faster[:1])} makes a {step} faster"
            return f"{name} slows down as the context grows: {rest}."
    return ""


def _latencies(comparison: Comparison, entry: Entry) -> dict[float, float]:
    rows = comparison.of("step_cost", entry.key)
    pairs = [(number(row, "context"), number(row, "ms_per_token")) for row in rows]
    return {context: ms for context, ms in pairs if context is not None and ms is not None}


def _far(comparison: Comparison, chosen: Entry) -> str:
    """Who uses text from beyond the training length."""
    found = reaches(comparison)
    if not found:
        return ""
    lead = f"If contexts above the {found[0].sequence:,.0f} tokens of training matter,"
    using = sorted((one for one in found if one.uses), key=lambda one: -one.gain)
    if not using:
        return f"{lead} none uses what lies further back: train on longer sequences (--sequence)."
    names, verb = listed([one.name for one in using]), "uses" if len(using) == 1 else "use"
    most = f"{using[0].name} most, " * (len(using) > 1) + f"{using[0].gain:.3f} nats"
    mine = next((one for one in found if one.name == chosen.style.name), None)
    rest = ""
    if mine is not None and not mine.uses:
        end = "gets worse there" if mine.loses else "gains nothing there"
        rest = f", and {mine.name} {end} unless it is trained on longer sequences (--sequence)"
    return f"{lead} {names} {verb} them as trained ({most}){rest}."


def _data(comparison: Comparison) -> str:
    """Whether more training would still bring new text."""
    epochs = number(comparison.about, "epochs")
    what = "text" if comparison.measure == NATS else "data"
    if epochs is None or comparison.alike == "time":
        return ""
    if epochs < 1:
        share = numbers.percent(epochs)
        return (
            f"Each model has read {share} of the training {what} once: a longer budget may change the order."
        )
    times = f"about {numbers.significant(epochs, 2)} times" if epochs >= 1.5 else "about once"
    return f"Each model has read the training {what} {times}: more {what} may help more than a longer budget."


def _seeds(comparison: Comparison, order: list[Entry]) -> str:
    """What one seed leaves open."""
    if len(list_of(comparison.about, "seeds")) > 1 or len(order) < 2:
        return ""
    much = "move each loss by about a percent" if comparison.measure == NATS else "change the order"
    return f"One seed was trained: another may {much}; --seeds 3 measures that."
