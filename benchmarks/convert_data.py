"""Convert the real data of the comparisons to formats that ``quatrain`` reads.

    python benchmarks/convert_data.py DATA_DIR OUT_DIR

Writes mnist1d.csv (its own split), ETTh1.csv (the published 12/4/4 months: fractions 0.6,0.2,0.2), digits/
(Free Spoken Digits, clips 13 and 14 of each speaker and digit held out, 12 for validation),
digits-speaker/ (theo held out), digits-strings/ (2 to 4 clips of a speaker joined), sst2.csv, trec.csv and
the texts, unpacked.
"""

import csv
import gzip
import json
import lzma
import shutil
import sys
import wave
from pathlib import Path

import numpy as np

ETT_ROWS = 20 * 30 * 24  # 12 + 4 + 4 months of 30 days
RATE = 8000
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def wav(path: Path, samples: np.ndarray) -> None:
    """Write 16-bit mono at 8 kHz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())


def part_of(clip: int) -> str:
    """The split of the ten clips (5 to 14) of a speaker and digit."""
    return "test" if clip >= 13 else "valid" if clip == 12 else "train"


def digits(data: Path, out: Path) -> None:
    """Free Spoken Digits as folders of recordings, by clip and by speaker, and joined to strings."""
    archive = np.load(data / "audio/fsdd_train_10_per_pair.npz")
    clips = {tuple(name.split("_")): archive[name] for name in archive.files}
    for (digit, speaker, clip), samples in clips.items():
        part = part_of(int(clip))
        wav(out / "digits" / part / digit / f"{speaker}_{clip}.wav", samples)
        held = "test" if speaker == "theo" else "valid" if int(clip) == 14 else "train"
        wav(out / "digits-speaker" / held / digit / f"{speaker}_{clip}.wav", samples)
    strings(clips, out / "digits-strings")


def strings(clips: dict, out: Path) -> None:
    """Two to four clips of one speaker and part, one after the other; the text is their digits."""
    draw = np.random.default_rng(0)
    rows = []
    speakers = sorted({speaker for _, speaker, _ in clips})
    for part, count in (("train", 3000), ("valid", 200), ("test", 400)):
        for number in range(count):
            speaker = speakers[number % len(speakers)]
            own = sorted(key for key in clips if key[1] == speaker and part_of(int(key[2])) == part)
            chosen = [own[i] for i in draw.integers(len(own), size=draw.integers(2, 5))]
            path = out / part / f"{number:04d}.wav"
            wav(path, np.concatenate([clips[key] for key in chosen]))
            text = "".join(digit for digit, _, _ in chosen)
            rows.append({"audio": str(path.relative_to(out)), "text": text, "split": part})
    (out / "strings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def mnist1d(data: Path, out: Path) -> None:
    """Rows of 40 numbers with their label; 500 training rows for validation."""
    archive = np.load(data / "mnist/mnist1d.npz")
    with open(out / "mnist1d.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "split", *(f"x{step}" for step in range(40))])
        for name, x, y in (("train", "x", "y"), ("test", "x_test", "y_test")):
            for index, (row, label) in enumerate(zip(archive[x], archive[y], strict=True)):
                part = "valid" if name == "train" and index % 8 == 7 else name
                writer.writerow([int(label), part, *(f"{value:.6g}" for value in row)])


def ett(data: Path, out: Path) -> None:
    """The rows of the published split."""
    lines = lzma.decompress((data / "ts/ETTh1.csv.xz").read_bytes()).splitlines(keepends=True)
    (out / "ETTh1.csv").write_bytes(b"".join(lines[: 1 + ETT_ROWS]))


def labelled(data: Path, out: Path) -> None:
    """Label first, then the sentence, to CSV; SST-2's development part is its test here."""
    sources = {
        "sst2": [("train", "cls/stsa.binary.train.xz"), ("test", "cls/stsa.binary.dev.xz")],
        "trec": [("", "cls/TREC.train.all.xz")],
    }
    for name, files in sources.items():
        with open(out / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["label", "text", "split"] if len(files) > 1 else ["label", "text"])
            for part, path in files:
                for line in (
                    lzma.decompress((data / path).read_bytes()).decode("utf-8", "replace").splitlines()
                ):
                    label, _, text = line.partition(" ")
                    if text:
                        writer.writerow([label, text, part] if part else [label, text])


def texts(data: Path, out: Path) -> None:
    """Unpack what is packed."""
    for path in sorted((data / "text").glob("*.xz")):
        (out / path.stem).write_bytes(lzma.decompress(path.read_bytes()))
    for path in sorted((data / "dna").glob("*.gz")):
        with gzip.open(path) as packed, open(out / path.stem, "wb") as file:
            shutil.copyfileobj(packed, file)


def main() -> int:
    """Convert everything that is there."""
    if len(sys.argv) != 3:
        sys.stderr.write(__doc__ or "")
        return 2
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    for convert in (mnist1d, ett, labelled, texts, digits):
        convert(data, out)
        sys.stdout.write(f"{convert.__name__} done\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
