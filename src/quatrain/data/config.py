"""What data a run reads and how it takes it. Importing this module loads no torch and no numpy."""

from dataclasses import dataclass
from typing import Annotated, Literal

from quatrain.config.check import check


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which data, for which task, and how it is cut. Raises ConfigError for values out of range."""

    source: Annotated[str, "a file, directory, glob, - for stdin, or python: Python's own library"] = "python"
    fractions: Annotated[
        tuple[float, ...], "training, validation and test part; a split that the data names itself goes first"
    ] = (0.85, 0.05, 0.10)
    task: Annotated[
        Literal["auto", "lm", "classify", "forecast", "tag", "transcribe"],
        "auto: recognised from the data and said",
    ] = "auto"
    target: Annotated[tuple[str, ...], "columns to forecast (all), or the one with the label (label)"] = ()
    tokenizer: Annotated[
        str,
        "of a text: auto (dna for FASTA, else bytes), bytes, dna, bpe (learnt from the training part), "
        "or a tokenizer.json",
    ] = "auto"
    bpe_vocab: Annotated[int, "tokens of a byte-pair encoding that is learnt from the text"] = 4096
    inputs: Annotated[
        Literal["difference", "level"],
        "what a forecast reads of a column: its change since the row before, or its level",
    ] = "difference"
    others: Annotated[bool, "a forecast also reads the columns that it does not forecast"] = True
    reverse_complement: Annotated[
        Literal["auto", "on", "off"],
        "train on the other strand of DNA too, half of the time; auto: where windows of DNA are drawn",
    ] = "auto"
    horizon: Annotated[int, "steps ahead that a forecast reaches"] = 24
    season: Annotated[int, "steps of a season, for the seasonal-naive baseline and MASE; 1: none"] = 24
    calendar: Annotated[bool, "give a forecast the time of day, of the week and of the year"] = False
    audio: Annotated[Literal["mel", "raw"], "audio as 40 log-mel energies every 10 ms, or as its samples"] = (
        "mel"
    )

    def __post_init__(self) -> None:
        check(self.source != "", "data.source", self.source, "must name a text")
        three = len(self.fractions) == 3 and all(0 < part < 1 for part in self.fractions)
        check(
            three and abs(sum(self.fractions) - 1) < 1e-6,
            "data.fractions",
            list(self.fractions),
            "must be three positive fractions that sum to 1",
        )
        check(self.tokenizer != "", "data.tokenizer", self.tokenizer, "must name a tokenizer")
        check(self.bpe_vocab >= 257, "data.bpe_vocab", self.bpe_vocab, "must be at least 257")
        check(self.horizon >= 1, "data.horizon", self.horizon, "must be at least 1")
        check(self.season >= 1, "data.season", self.season, "must be at least 1")
