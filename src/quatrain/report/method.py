"""How the comparison was made, in words, and on what: the last two parts of the page."""

from quatrain.report import numbers
from quatrain.report.gather import Comparison, Row, list_of, number, table_of
from quatrain.report.measure import NATS, measures, words
from quatrain.report.numbers import NBSP

Pairs = list[tuple[str, str]]


def _data(data: Row) -> str:
    splits = table_of(data, "splits")
    size, tokens, vocab = (number(data, key) for key in ("bytes", "tokens", "vocab"))
    what = str(data.get("description") or data.get("name") or "not recorded").rstrip(".")
    parts = [what[:1].upper() + what[1:] + "."]
    if number(data, "sequences"):
        return " ".join([*parts, *_sequences(data, splits)])
    if size and tokens and vocab:
        parts.append(f"{numbers.size(size)}, {numbers.count(tokens)} tokens, vocabulary {vocab:.0f}.")
    named = (("train", "training"), ("valid", "validation"), ("test", "test"))
    lengths = [
        f"{numbers.count(value)} {name}" for key, name in named if (value := number(splits, key)) is not None
    ]
    if lengths:
        parts.append(f"Split by contiguous ranges: {numbers.listed(lengths)} tokens.")
    if data.get("digest"):
        parts.append(f"Digest {data['digest']}.")
    return " ".join(parts)


def _sequences(data: Row, splits: Row) -> list[str]:
    """What a sequence file holds."""
    count, steps, channels = (number(data, key) or 0.0 for key in ("sequences", "steps", "channels"))
    vocab = number(data, "vocab") or 256  # rows from before byte pairs do not say
    token = "a byte a step" if vocab == 256 else f"one of {numbers.count(vocab)} byte pairs a step"
    each = f"{channels:.0f} number{'' if channels == 1 else 's'} a step" if channels else token
    held = f"{numbers.count(count)} sequences" if count > 1 else "One series"
    parts = [f"{held}, {numbers.count(steps)} steps in all, {each}."]
    named = (("train", "training"), ("valid", "validation"), ("test", "test"))
    lengths = [
        f"{numbers.count(value)} {name}" for key, name in named if (value := number(splits, key)) is not None
    ]
    horizon = number(data, "horizon")
    if horizon:
        targets = numbers.listed([str(name) for name in list_of(data, "targets")][:8])
        parts.append(f"Forecast: {targets}, {horizon:.0f} steps ahead.")
        parts.append(f"Split by contiguous ranges: {numbers.listed(lengths)} steps.")
    else:
        parts.append(
            f"{number(data, 'classes') or 0:.0f} labels. Parts: {numbers.listed(lengths)} sequences."
        )
    parts.append(f"Numbers are normalised by the training part alone.{' ' if data.get('digest') else ''}")
    if data.get("digest"):
        parts.append(f"Digest {str(data['digest'])[:16]}.")
    return [part.strip() for part in parts if channels or not part.startswith("Numbers")]


def _protocol(about: Row) -> str:
    target = number(about, "params_target")
    size = f" ({numbers.count(target)})" if target else ""
    batch, length = number(about, "batch"), number(about, "sequence")
    step = words(about).step
    mean = " on average" if step == "step" and about.get("task") != "forecast" else ""
    shape = f" in batches of {batch:.0f} sequences of {length:.0f} {step}s{mean}" if batch and length else ""
    return (
        f"Every model has the same number of non-embedding parameters{size} within 2{NBSP}%, reads the "
        f"same {'tokens' if step == 'token' else 'sequences'} in "
        f"the same order{shape}, and is trained with the same optimiser, schedule and grid of learning rates."
    )


def _selection(about: Row) -> str:
    rates = [numbers.rate(rate) for rate in list_of(about, "learning_rates") if isinstance(rate, int | float)]
    fraction, seeds = number(about, "rung_fraction"), list_of(about, "seeds")
    grid = f"The learning rates {numbers.listed(rates)} are" if rates else "Each learning rate is"
    until = (
        f"the first {numbers.percent(fraction)} of the tokens" if fraction else "the first part of the tokens"
    )
    measure = measures(about)[0]
    by = "with the lowest validation loss"
    if measure != NATS:
        until = until.replace("tokens", "steps")
        by = f"with the {'lowest' if measure.lower else 'highest'} {measure.says} on the validation part"
    many = f"{len(seeds)} seeds ({numbers.listed([str(seed) for seed in seeds])})." if len(seeds) > 1 else ""
    return (
        f"{grid} trained on {until}; the one {by} goes on to the end. The test "
        f"part is "
        f"measured once, for that one. {many or 'One seed: a quick look.'}"
    )


def _equal_time(comparison: Comparison) -> str:
    """How the models of the second table were trained; empty where there is none."""
    seconds = number(comparison.about, "time_per_model")
    if not seconds:
        return ""
    each = numbers.duration(seconds)
    if comparison.alike == "time":
        return f"Every model trains for {each}: as many steps as the calibration says it makes in that time."
    found = [
        f"{entry.style.name} {numbers.duration(took)}"
        for entry in comparison.timed
        if (took := entry.mean("train_seconds")) is not None
    ]
    fact = f" In fact they took {numbers.listed(found)}." if found else ""
    return (
        f"A part of the budget trains every model anew for the same time, {each}, the mean of what one run "
        f"at equal tokens should take by the calibration. Each makes as many steps as fit into it by the "
        f"median step of its run at equal tokens, with a schedule that ends there, the learning rate chosen "
        f"before, and the same data in the same order, of which a faster model reads more.{fact}"
    )


def _noise(comparison: Comparison) -> str:
    """What the paired tests are."""
    return (
        "Two models are compared in pairs. Over seeds: a t interval of the differences between runs of the "
        "same seed, which read the same data in the same order; it covers the randomness of training. Over "
        "the test text: the mean losses of up to 256 stretches of the same text, with the covariance of "
        "neighbouring stretches taken in (Newey and West); it covers which text was drawn, and says "
        "nothing of what another seed would give."
    )


def _far(comparison: Comparison) -> str:
    """How the loss by position was measured; empty where it was not."""
    for row in comparison.rows.get("far", []):
        keys = ("length", "sequence", "tail", "windows")
        length, sequence, tail, windows = (number(row, key) for key in keys)
        if length and sequence and tail and windows:
            return (
                f"{windows:.0f} windows of {length:,.0f} tokens of the test part, each from an empty state. "
                f"Their last {tail:,.0f} tokens are read a second time with {sequence - tail:,.0f} tokens "
                f"before them, as in training: the difference on the same tokens is what the far past brings."
            )
    return ""


def _budget(comparison: Comparison) -> str:
    about, end = comparison.about, comparison.end
    budget, tokens = number(about, "budget_seconds"), number(about, "tokens_per_model")
    parts, step = [], comparison.words.step
    if budget and tokens:
        parts.append(
            f"The budget of {numbers.duration(budget)} covers the training of all models at all learning "
            f"rates. A short "
            f"calibration on this machine turned it into {numbers.count(tokens)} {step}s per model; from "
            f"then on only "
            f"{step}s counted, so an interrupted comparison resumes exactly."
        )
    spent, extra = number(end, "training_seconds"), number(end, "evaluation_seconds")
    if spent is not None:
        parts.append(f"Training took {numbers.duration(spent)} in fact.")
    if extra is not None:
        parts.append(f"Evaluation and measurements come on top: {numbers.duration(extra)}.")
    return " ".join(parts) or "Not recorded."


def _sampling(comparison: Comparison) -> str:
    for row in comparison.rows.get("result", []):
        items, every = number(row, "test_items"), number(row, "test_total_items")
        if items and every:
            noun = "windows" if comparison.task == "forecast" else "sequences"
            share = "all" if items == every else f"{numbers.count(items)} of the"
            return (
                f"The test result is measured on {share} {numbers.count(every)} {noun} of the test part, the "
                f"same ones for every model and baseline."
            )
        used, whole = number(row, "test_tokens"), number(row, "test_total_tokens")
        if used and whole and used < whole:
            return (
                f"The test loss is measured on {numbers.count(used)} of the {numbers.count(whole)} tokens "
                f"of the test part "
                f"({numbers.percent(used / whole)}), the same ones for every model and baseline."
            )
        if used and whole:
            return f"The test loss is measured on the whole test part, {numbers.count(whole)} tokens."
    return "Not recorded."


_TRIVIAL = {
    "majority": "the label that is most frequent in training, always",
    "persistence": "the last value goes on",
    "seasonal-naive": "the values of the last season come again",
    "blank": "nothing is said",
}


def _baselines(comparison: Comparison, names: list[str]) -> str:
    if comparison.measure == NATS:
        return (
            f"Fitted by counting on the training part: {numbers.listed(names)}. A model that "
            "does not beat them has learned nothing that counting does not give."
        )
    meant = [f"{name} ({_TRIVIAL[name]})" if name in _TRIVIAL else name for name in names]
    return f"Answers that need no model: {numbers.listed(meant)}, judged on the same sequences."


def method(comparison: Comparison) -> Pairs:
    """Headed paragraphs of the method section."""
    about = comparison.about
    names = [f"{base.style.name}" for base in comparison.baselines]
    models = [
        f"{comparison.style(str(row.get('mixer'))).name}: {row['summary']}."
        for row in comparison.rows.get("model", [])
        if row.get("summary")
    ]
    pairs = [
        ("Data", _data(table_of(about, "data"))),
        ("Fairness", _protocol(about)),
        ("Choice of learning rate", _selection(about)),
        ("Budget", _budget(comparison)),
        ("Test", _sampling(comparison)),
        (
            "Speed and memory",
            f"Training speed is {comparison.words.step}s of a step over the median time of a step, in which "
            f"other work on the machine shows less than in the sum; peak memory is the largest the training "
            f"process held. Latency is one {comparison.words.step} at a time, batch of one, after a context "
            f"of that length.",
        ),
    ]
    pairs += [
        (name, text)
        for name, text in (
            ("Equal training time", _equal_time(comparison)),
            ("Noise", _noise(comparison) if len(comparison.entries) > 1 else ""),
            ("Loss by position", _far(comparison)),
        )
        if text
    ]
    if names:
        pairs.append(
            (
                "Baselines",
                _baselines(comparison, names),
            )
        )
    if models:
        pairs.append(("Models", " ".join(models)))
    return pairs


def footer(comparison: Comparison) -> Pairs:
    """Machine, versions, commit, config, date: what it takes to repeat the numbers; unknown ones left out."""
    return origin(comparison.about)


def origin(about: Row) -> Pairs:
    """`footer` from the row that says where its numbers were made."""
    machine, versions = table_of(about, "machine"), table_of(about, "versions")
    memory, cores, threads = (number(machine, key) for key in ("memory_bytes", "cores", "threads"))
    parts = [
        str(machine.get("cpu") or ""),
        f"{cores:.0f} cores" if cores else "",
        f"{threads:.0f} thread{'s' * (threads != 1)} used" if threads else "",
        f"{numbers.size(memory)} memory" if memory else "",
        f"device {machine['device']}" if machine.get("device") else "",
        str(machine.get("os") or ""),
    ]
    pairs = [
        ("Machine", ", ".join(part for part in parts if part)),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("Commit", str(about.get("commit") or "")),
        ("Config digest", str(about.get("config_digest") or "")),
        ("Comparison", str(about.get("id") or "")),
        ("Started", str(about.get("started") or "")),
        ("Command", str(about.get("command") or "")),
    ]
    return [(name, text) for name, text in pairs if text]
