"""Tokenizers: what is encoded comes back, bytes and characters are counted, foreign letters are named."""

import json

import numpy as np
import pytest

from quatrain import cli
from quatrain.config.schema import from_dict
from quatrain.data.config import DataConfig
from quatrain.data.prepare import prepare
from quatrain.data.tokenizer import COMPLEMENT, Bytes, Dna, learn, measures, rebuild
from quatrain.data.tokens import TokenFile
from quatrain.errors import DataError

POEM = "床前明月光。疑是地上霜。\n舉頭望明月。低頭思故鄉。\n"


def config_of(source, **values) -> DataConfig:
    return from_dict(DataConfig, {"source": str(source), **values})


def ids(tokenizer, *chunks: bytes) -> list[int]:
    return [int(token) for piece in tokenizer.encode(chunks) for token in piece]


def spelled(tokenizer, tokens) -> bytes:
    return b"".join(tokenizer.spelled[token] for token in tokens)


def test_bytes_and_characters_of_tokens():
    sizes, starts = measures(Bytes().spelled)
    text = np.frombuffer(POEM.encode(), dtype=np.uint8)
    assert (sizes[text].sum(), starts[text].sum()) == (len(POEM.encode()), len(POEM))


def test_dna_has_five_letters_and_a_start_of_record():
    dna = Dna()
    assert ids(dna, b">chr1 of x\nACgt", b"N\nRYU\r\n;c\nA") == [5, 0, 1, 2, 3, 4, 4, 4, 3, 5, 0]
    assert spelled(dna, [0, 1, 2, 3, 4]) == b"ACGTN"
    assert [dna.spelled[COMPLEMENT[at]] for at in range(6)] == [b"T", b"G", b"C", b"A", b"N", b""]
    with pytest.raises(DataError, match="line 3: 'Z': must be one of ACGTN"):
        ids(dna, b">a\nAC\n", b"AZ\n")


def test_fasta_is_recognised_and_foreign_letters_leave_nothing_behind(tmp_path):
    import gzip

    with gzip.open(tmp_path / "a.fna.gz", "wb") as file:
        file.write(b">a\n" + b"ACGT" * 50 + b"\n")
    tokens = prepare(config_of(tmp_path / "a.fna.gz"), tmp_path / "out")
    assert isinstance(tokens, TokenFile)
    assert (tokens.vocab, tokens.tokens[:6].tolist(), tokens.tokenizer.name) == (6, [5, 0, 1, 2, 3, 0], "dna")
    (tmp_path / "b.fa").write_text(">a\nACGTX\n")
    with pytest.raises(DataError, match=r"data source .*b.fa': line 2: 'X': must be one of ACGTN"):
        prepare(config_of(tmp_path / "b.fa"), tmp_path / "other")
    assert not (tmp_path / "other").exists()


class TestBpe:
    def test_what_is_encoded_comes_back_however_it_is_cut(self):
        bpe = learn([POEM.encode() * 20], 300)
        assert bpe.vocab == 300
        text = (POEM * 3 + "new: ünïcode 🙂 and tabs\t\n").encode()
        assert spelled(bpe, ids(bpe, text)) == text
        assert ids(bpe, text) == ids(bpe, *(text[at : at + 7] for at in range(0, len(text), 7)))
        assert len(ids(bpe, POEM.encode())) < len(POEM.encode()) / 2
        sizes, starts = measures(bpe.spelled)
        tokens = ids(bpe, text)
        assert (sizes[tokens].sum(), starts[tokens].sum()) == (len(text), len(text.decode()))
        again = rebuild("bpe", bpe.json)
        assert (again.spelled, ids(again, text)) == (bpe.spelled, tokens)

    def test_it_is_learnt_from_the_training_part_alone(self, tmp_path):
        (tmp_path / "a.txt").write_text("ab cd ab cd\n" * 500 + "zyzyzyzy zyzyzyzy\n" * 200)
        config = config_of(tmp_path / "a.txt", tokenizer="bpe", bpe_vocab=400, fractions=[0.5, 0.2, 0.3])
        file = prepare(config, tmp_path / "out")
        assert not any(b"zy" in token for token in file.tokenizer.spelled)
        assert file.tokens.dtype == np.uint16
        assert spelled(file.tokenizer, file.tokens) == (tmp_path / "a.txt").read_bytes()
        assert prepare(config, tmp_path / "out").digest == file.digest

    def test_a_given_tokenizer_json(self, tmp_path):
        (tmp_path / "a.txt").write_text(POEM * 20)
        (tmp_path / "t.json").write_text(learn([POEM.encode()], 280).json)
        file = prepare(config_of(tmp_path / "a.txt", tokenizer=str(tmp_path / "t.json")), tmp_path / "out")
        assert spelled(file.tokenizer, file.tokens) == (POEM * 20).encode()

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "cannot be read: No such file"),
            ("{}", "is no tokenizer.json"),
            ("WordPiece", "must be a byte-level tokenizer"),
        ],
    )
    def test_tokenizers_that_will_not_do(self, content, message, tmp_path):
        (tmp_path / "a.txt").write_text(POEM)
        if content == "WordPiece":
            values = json.loads(learn([POEM.encode()], 280).json)
            content = json.dumps(values | {"decoder": None})
        if content is not None:
            (tmp_path / "t.json").write_text(content)
        with pytest.raises(DataError, match=message):
            prepare(config_of(tmp_path / "a.txt", tokenizer=str(tmp_path / "t.json")), tmp_path / "out")

    def test_a_text_that_is_not_utf8(self, tmp_path):
        (tmp_path / "a.txt").write_bytes(b"abc \xff\n" * 50)
        with pytest.raises(
            DataError, match=r"byte 0xff is not UTF-8; --data\.tokenizer bytes reads any file"
        ):
            prepare(config_of(tmp_path / "a.txt", tokenizer="bpe"), tmp_path / "out")

    def test_trained_resumed_scored_and_generated_from_the_checkpoint_alone(self, tmp_path, capsys):
        (tmp_path / "a.txt").write_text(POEM * 60)
        run = str(tmp_path / "run")
        small = (
            "--model.width 16 --model.layers 1 --train.steps 6 --train.sequence 16 --train.batch-tokens 64"
        )
        args = [str(tmp_path / "a.txt"), "--mixer", "gru", "--out", run, *small.split()]
        args += ["--data.tokenizer", "bpe", "--data.bpe-vocab", "300"]
        assert cli.main(["train", *args]) == 0
        assert cli.main(["train", "--resume", run]) == 0
        capsys.readouterr()
        assert cli.main(["eval", run]) == 0
        out = capsys.readouterr().out
        assert " per byte, " in out
        assert " per character" in out
        (tmp_path / "run" / "data").rename(tmp_path / "elsewhere")
        assert cli.main(["generate", run, "--prompt", "明月", "--max-tokens", "5"]) == 0
        assert cli.main(["eval", run, str(tmp_path / "a.txt"), "--limit", "50"]) == 0


def test_dna_is_trained_and_generated(tmp_path, capsys):
    (tmp_path / "a.fa").write_text(">a\n" + "ACGGT" * 300)
    run = str(tmp_path / "run")
    small = "--model.width 16 --model.layers 1 --train.steps 6 --train.sequence 16 --train.batch-tokens 64"
    assert cli.main(["train", str(tmp_path / "a.fa"), "--mixer", "rnn", "--out", run, *small.split()]) == 0
    capsys.readouterr()
    assert cli.main(["generate", run, "--prompt", "ACGG", "--max-tokens", "20"]) == 0
    assert set(capsys.readouterr().out.strip()) <= set("ACGTN")


def test_doctor_names_every_op_and_extra(capsys):
    from quatrain.cli.doctor import EXTRAS, NEEDED
    from quatrain.kernels import OPS

    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    for name in (*OPS, *EXTRAS, *NEEDED):
        assert name in out
    assert "nothing:" not in out
