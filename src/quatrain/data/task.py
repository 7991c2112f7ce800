"""The tasks: what a head says, what is minimised, how it is judged, and what any model has to beat.

A table that config, command line, tests and report iterate over. Data kinds are in
`quatrain.data.recognise`, heads in `quatrain.model.sequence`, losses in `quatrain.model.objective`, metrics
in `quatrain.data.metrics`, baselines in `quatrain.data.trivial`. Needs no torch.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A number a result is judged by.

    Attributes:
        name: key in records, e.g. ``"accuracy"``.
        says: what it is, in words for people.
        lower: whether less is better.
        percent: whether it is shown as a share of 100.
    """

    name: str
    says: str
    lower: bool = True
    percent: bool = False


@dataclass(frozen=True)
class Task:
    """One kind of answer about a sequence.

    Attributes:
        name: as in ``--task``.
        says: what the model answers, in words.
        unit: what the loss is measured in.
        metrics: the first one decides which checkpoint is the best.
        baselines: trivial answers that stand beside every result.
        labelled: whether a batch is whole labelled sequences, not windows of a long series.
    """

    name: str
    says: str
    unit: str
    metrics: tuple[Metric, ...]
    baselines: tuple[str, ...]
    labelled: bool = True


_ACCURACY = Metric("accuracy", "accuracy", lower=False, percent=True)
_F1 = Metric("f1", "macro F1", lower=False, percent=True)

TASKS = {
    task.name: task
    for task in (
        Task(
            "lm",
            "the next token",
            "nats per token",
            (Metric("nats", "nats per token"),),
            ("uniform", "unigram", "markov"),
            labelled=False,
        ),
        Task("classify", "the class of a sequence", "nats", (_ACCURACY, _F1), ("majority",)),
        Task(
            "forecast",
            "the next values of a series",
            "squared + pinball error",
            (
                Metric("mse", "MSE of the normalised series"),
                Metric("mae", "MAE of the normalised series"),
                Metric("rmse", "RMSE"),
                Metric("quantile", "mean quantile loss"),
                Metric("mase", "MASE"),
            ),
            ("persistence", "seasonal-naive"),
            labelled=False,
        ),
        Task("tag", "a tag for every step", "nats per step", (_ACCURACY, _F1), ("majority",)),
        Task(
            "transcribe",
            "the text of a recording",
            "nats per symbol",
            (
                Metric("cer", "character error rate", percent=True),
                Metric("wer", "word error rate", percent=True),
            ),
            ("blank",),
        ),
    )
}
