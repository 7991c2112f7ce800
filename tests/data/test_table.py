"""CSV by numpy's parser and by ``csv``: the same numbers, the same refusals; Parquet; times."""

import csv
import gzip
import io

import numpy as np
import pytest

from quatrain.data.readers import table
from quatrain.data.readers.table import moments, open_table
from quatrain.errors import DataError


def read(path, numbers, strings=()):
    blocks = list(open_table(path).blocks(numbers, strings))
    words = [[cell for block in blocks for cell in block.strings[at]] for at in range(len(strings))]
    firsts = [block.first for block in blocks]
    assert firsts == [1 + sum(len(b.numbers) for b in blocks[:at]) for at in range(len(blocks))]
    return np.concatenate([block.numbers for block in blocks]), words


def big(rows=120_000):
    draw = np.random.default_rng(0)
    numbers = draw.normal(size=(rows, 2)) * 10.0 ** draw.integers(-8, 8, size=(rows, 1))
    text = "when,a,b\n" + "".join(f"t{k},{a!r},{b:.3g}\n" for k, (a, b) in enumerate(numbers.tolist()))
    return text, np.array([[a, float(f"{b:.3g}")] for a, b in numbers.tolist()])


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("quoted", [False, True])
def test_a_table_of_several_pieces_is_read_bit_for_bit(ending, quoted, tmp_path):
    text, want = big()
    if quoted:  # from the first quotation mark on, csv reads
        text = text.replace("t70000,", '"t\n70000",')
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(text.replace("\n", ending).encode()))
    numbers, (words,) = read(path, ["a", "b"], ["when"])
    np.testing.assert_array_equal(numbers, want)
    assert words[69_999:70_001] == ["t69999", ("t" + ending + "70000") if quoted else "t70000"]
    assert len(words) == 120_000


def test_both_ways_agree_on_odd_tables(tmp_path):
    for text in (
        "a,b\n1,2\n\n3,4\n",
        "a,b\n 1 ,2\n+3,-4e-3",
        "a;b\n1;2\n3;4\n",
        "a,b,\n1,2,\n3,4,\n",
        "\ufeffa,b\n1,2\n",
        "a\n1\n2\n3",
        '"a","b"\n"1","2"\n',
        "a,b\n1_000,2\n",
        "a,b\n#1,2\n",
        "a,b\n1,2,3\n",
        "a,b\n1,2,3\n4\n",
        "a,b\n1,inf\n",
        "a,b\n1,\n",
    ):
        path = tmp_path / "a.csv"
        path.write_text(text)
        rows = list(csv.reader(io.StringIO(text.lstrip("\ufeff")), delimiter=";" if ";" in text else ","))
        head, *rest = [row for row in rows if row]
        try:
            want = [
                [float(row[at]) for at in range(min(2, len(head)))] for row in rest if len(row) == len(head)
            ]
            sound = len(want) == len(rest) and np.isfinite(want).all()
        except ValueError:
            sound = False
        names = head[:2]
        if sound:
            np.testing.assert_array_equal(read(path, names)[0], want, err_msg=text)
        else:
            with pytest.raises(DataError, match=r"a\.csv, row \d"):
                read(path, names)


def test_what_is_wrong_far_down_is_named_by_row_and_column(tmp_path):
    text, _ = big()
    lines = text.splitlines(keepends=True)
    path = tmp_path / "a.csv"
    for wrong, message in (
        ("t,1,word\n", "row 100000, column 'b' = 'word': must be a finite number"),
        ("t,1,nan\n", "row 100000, column 'b' = 'nan': must be a finite number"),
        ("t,1\n", "row 100000: 2 cells, the header has 3"),
        ("t,1,2,3\n", "row 100000: 4 cells, the header has 3"),
    ):
        path.write_text("".join((*lines[:100_000], wrong, *lines[100_001:])))
        with pytest.raises(DataError, match=message):
            read(path, ["a", "b"], ["when"])
    path.write_bytes("".join(lines[:100_000]).encode() + b"t\xff,1,2\n")
    with pytest.raises(DataError, match="is not UTF-8"):
        read(path, ["a"], ["when"])


def test_times_at_once_are_those_one_by_one(tmp_path):
    for cells in (
        ["2016-07-01 00:00:00", "2016-07-01 01:00:00"],
        ["2016-07-01T00:00", "1969-12-31T23:59"],
        ["2016-07-01", "2016-07-02"],
        ["2016-07-01 00:00:00.25", "2016-07-01 00:00:00.50"],
        ["2016-07-01 00:00:00+02:00", "2016-07-01 01:00:00+02:00"],
        ["2016-07-01", "2016-07-01 01:00"],
        ["1", "2.5", "-3e2"],
    ):
        want = np.concatenate([moments([cell], "t", tmp_path, 1) for cell in cells])
        slow = [table._moment(cell) for cell in cells]
        np.testing.assert_array_equal(moments(cells, "t", tmp_path, 1), want)
        np.testing.assert_array_equal(want, slow)
    with pytest.raises(DataError, match="row 8, column 't' = '2016-13-01': must be a time"):
        moments(["2016-07-01", "2016-13-01"], "t", tmp_path, 7)
