"""How the recurrent scans' CUDA kernel is spread over a GPU: arithmetic, on any machine."""

import pytest

from quatrain.kernels._recurrent_cuda._plan import KINDS, SHARED_BYTES, Problem, candidates, plan

H100 = (132, 66, 42, 30, 22, 18, 15, 15, 12, 9, 8, 8, 7, 7, 7, 7)  # clusters of 1, 2, .. blocks at once
TABLE = [(16, 512), (64, 512), (16, 1024), (64, 1024), (64, 2048), (1, 1024)]


def problems(width, sequences, size=2, residents=H100):
    return [
        Problem(kind, width, sequences, size, back, residents)
        for kind in KINDS.values()
        for back in (False, True)
    ]


@pytest.mark.parametrize(("batch", "width"), TABLE)
def test_every_plan_fits(batch, width):
    for problem in problems(width, batch):
        for made in candidates(problem):
            assert made.blocks * made.units >= width
            assert made.shared_bytes <= SHARED_BYTES
            assert made.blocks * made.groups <= problem.resident(made.cluster) * made.cluster
            assert made.cluster == made.blocks or made.blocks % made.cluster == 0
            assert made.threads <= 256
            assert made.held * made.tiles[0] * 4 <= 160
            assert made.chunks[0] % made.chunks[1] == 0
            assert made.tiles[1] % made.chunks[0] == 0


@pytest.mark.parametrize("width", [1, 7, 16, 33, 100, 512, 768, 1000, 1024, 2048, 4096])
@pytest.mark.parametrize("sequences", [1, 17, 1000])
def test_any_width_and_batch_has_a_plan(width, sequences):
    for problem in problems(width, sequences):
        made = plan(problem)
        assert not isinstance(made, str), made


def test_weights_of_the_table_stay_on_the_chip():
    """Nearly all, but for an LSTM of 2048 units, whose weights are larger than shared memory."""
    for batch, width in TABLE:
        for problem in problems(width, batch):
            made = plan(problem)
            if width < 2048:
                assert made.held + made.shared >= 0.9 * made.tiles[1]


def test_a_reason_where_nothing_fits():
    reason = plan(Problem(KINDS["lstm"], 4096, 64, 4, True, (8, 4, 2, 2)))
    assert "D = 4096" in reason
    assert "8" in reason


def test_the_fastest_measured_plans_are_planned():
    """Of the rows that were measured last on an H100 where another way of exchange is near."""
    for kind, width, back, want in (
        ("lstm", 1024, True, (32, 16, 2, True)),
        ("lstm", 2048, False, (16, 32, 2, True)),
        ("lstm", 512, True, (64, 5, 8, False)),
        ("rnn_tanh", 1024, False, (32, 16, 1, True)),
        ("rnn_tanh", 2048, True, (64, 16, 2, True)),
    ):
        made = plan(Problem(KINDS[kind], width, 64, 2, back, H100))
        assert (made.units, made.rows, made.cluster, made.polled) == want


def test_rows_are_not_wasted():
    """A batch that fits is spread evenly over all groups, one sequence a row."""
    made = plan(Problem(KINDS["lstm"], 512, 64, 2, False, H100))
    assert 64 <= made.groups * made.rows < 64 + made.rows


def test_sequences_of_different_lengths_share_rows():
    """A row for each sequence would wait for the longest; full sequences take all the rows that there are."""
    full = Problem(KINDS["lstm"], 512, 256, 2, True, H100)
    ragged = Problem(KINDS["lstm"], 512, 256, 2, True, H100, ragged=True)
    assert plan(full).groups * plan(full).rows == 256
    assert plan(ragged).groups * plan(ragged).rows < 150
