"""Compare the architectures on real files, each as a new user would, and publish what came out.

    python benchmarks/real_data.py DATA_DIR WORK_DIR [NAME ...] [--budget 10m] [--evaluation 60s]

DATA_DIR is the folder of data sets that ``convert_data.py`` reads; what it makes of them and the comparisons
go to WORK_DIR. Without names all of `CASES` run, a quarter of an hour each. Stopped
and called again, it goes on. Each ends as results/real-NAME.jsonl and .md. JapaneseVowels and GunPoint are
read from the package aeon (``pip install --no-deps aeon``), of which only the data files are used.
"""

import argparse
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import convert_data
from publish import publish

FOUR, FIVE = "rnn,lstm,attention,s6", "rnn,lstm,gru,attention,s6"


class Case(NamedTuple):
    """One comparison: the file in WORK_DIR/data (``aeon:`` of that package), its settings, and the floor."""

    source: str
    params: str
    mixers: str = FOUR
    more: tuple[str, ...] = ()
    floor: str = ""


_WIKITEXT = "all four beat an order-2 Markov model (2.70 bits per byte)"
_OT = ("--target", "OT", "--data.others", "false", "--data.fractions", "0.6,0.2,0.2")
_ETT = "the best two beat seasonal-naive"
_RATES = ("--learning-rates", "1e-3,3e-3,1e-2")
_WORDS = (*_RATES, "--tokenizer", "bpe", "--data.bpe_vocab", "8192", "--dropout", "0.5")

CASES = {
    "wikitext2-bytes": Case("wikitext2.txt", "1M", floor=_WIKITEXT),
    "wikitext2-bpe": Case("wikitext2.txt", "1M", more=("--tokenizer", "bpe"), floor=_WIKITEXT),
    "tang-poems": Case(
        "tang_poems_3000.txt",
        "1M",
        more=("--tokenizer", "bpe", "--sequence", "64", "--batch", "32"),
        floor="a sample and bits per character are shown",
    ),
    "ecoli": Case("NC_008253.fna", "1M", floor="beside order-k Markov; order 0 has 1.9999 bits"),
    "etth1-24": Case("ETTh1.csv", "100K", FIVE, (*_OT, "--horizon", "24"), _ETT),
    "etth1-96": Case("ETTh1.csv", "100K", FIVE, (*_OT, "--horizon", "96"), _ETT),
    "digits": Case("digits", "250K", FIVE, _RATES, "95 % for the best"),
    "digits-speaker": Case("digits-speaker", "250K", FIVE, _RATES, "one whole speaker held out: reported"),
    "digits-strings": Case(
        "digits-strings/strings.jsonl", "500K", FIVE, _RATES, "digit error rate of 10 % or less for the best"
    ),
    "sst2": Case("sst2.csv", "100K", FIVE, _WORDS, "78 % for the best; majority 50.9 %"),
    "mnist1d": Case("mnist1d.csv", "100K", FIVE, _RATES, "90 % for the GRU (91 published)"),
    "japanese-vowels": Case("aeon:JapaneseVowels", "50K", FIVE, _RATES, "95 % for the best"),
    "gunpoint": Case("aeon:GunPoint", "50K", FIVE, _RATES, "95 % for the best"),
}


def main() -> int:
    """Run what the arguments ask for. Returns 1 where one comparison failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--budget", default="10m")
    parser.add_argument("--evaluation", default="60s", help="most time for all but training, roughly")
    parser.add_argument("--equal", default="both", choices=("tokens", "time", "both"))
    parser.add_argument("--threads", default="")
    parser.add_argument("--dry", action="store_true", help="print the commands alone")
    asked = parser.parse_args()
    unknown = [name for name in asked.names if name not in CASES]
    if unknown:
        parser.error(f"NAME = {unknown[0]!r}: must be one of {', '.join(CASES)}")
    if not asked.dry:
        convert(asked.data, asked.work / "data")
    failed = 0
    for name in asked.names or CASES:
        failed += not run(name, asked)
    return 1 if failed else 0


def convert(data: Path, out: Path) -> None:
    """Everything in formats that the command reads, unless that was done before."""
    if (out / "done").exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    for make in (convert_data.mnist1d, convert_data.ett, convert_data.labelled, convert_data.texts):
        make(data, out)
    convert_data.digits(data, out)
    parts = [out / f"wikitext2.{part}.txt" for part in ("train", "valid", "test")]
    (out / "wikitext2.txt").write_bytes(b"".join(path.read_bytes() for path in parts))
    (out / "done").touch()


def run(name: str, asked: argparse.Namespace) -> bool:
    """One comparison and its results; whether it ended well."""
    case, out = CASES[name], asked.work / "runs" / name
    command = ["compare", str(source_of(case, asked.work / "data")), "--out", str(out)]
    command += [
        "--budget",
        asked.budget,
        "--evaluation",
        asked.evaluation,
        "--params",
        case.params,
        "--mixers",
        case.mixers,
        *case.more,
    ]
    if case.source == "wikitext2.txt":
        command += ["--data.fractions", fractions(asked.work / "data")]
    if asked.equal != "both":
        command += ["--equal", asked.equal]
    if asked.threads:
        command += ["--threads", asked.threads]
    sys.stdout.write(f"{name}: quatrain {' '.join(command)}\n")
    sys.stdout.flush()
    if asked.dry:
        return True
    if subprocess.run([sys.executable, "-m", "quatrain", *command], check=False).returncode:
        sys.stdout.write(f"{name}: failed\n")
        return False
    publish(out, f"real-{name}", f"To reach: {case.floor}." if case.floor else "")
    return True


def source_of(case: Case, data: Path) -> Path:
    """The file or folder of a case; what the package aeon ships is copied beside the others."""
    if not case.source.startswith("aeon:"):
        return data / case.source
    found, name = find_spec("aeon"), case.source.removeprefix("aeon:")
    if found is None or found.origin is None:
        raise SystemExit(f"{name}: needs the data files of aeon: pip install --no-deps aeon")
    for part in ("TRAIN", "TEST"):  # the second is found beside the first
        file = Path(found.origin).parent / "datasets" / "data" / name / f"{name}_{part}.ts"
        shutil.copyfile(file, data / file.name)
    return data / f"{name}_TRAIN.ts"


def fractions(data: Path) -> str:
    """The published split of the joined file, by bytes."""
    sizes = [(data / f"wikitext2.{part}.txt").stat().st_size for part in ("train", "valid", "test")]
    valid, test = (size / sum(sizes) for size in sizes[1:])
    return f"{1 - valid - test!r},{valid!r},{test!r}"


if __name__ == "__main__":
    raise SystemExit(main())
