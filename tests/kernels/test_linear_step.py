"""The decoding kernels where no gradient is recorded: every batch size, thread count and instruction set."""

import os
import subprocess
import sys
from math import inf

import pytest
import torch
from tests import needs
from tests.budget import check_errors, peak, rms
from tests.test_kernels import check_budget, example, strided
from torch.nn import functional as F

from quatrain.kernels import OPS, _core, linear_step, rms_norm
from quatrain.kernels._core.tape import Tape
from quatrain.kernels.linear_step import cpu, linear

pytestmark = needs.core

DTYPES = (torch.float32, torch.bfloat16)
CPP = {
    (name, i): case
    for name in ("linear_step", "rms_norm", "attention")
    for i, case in enumerate(OPS[name].cases)
    if name != "attention" or case.dims["T"] == 1
}


@pytest.fixture(params=[1, 2, 3, 8])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def noise(*shape, dtype, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)


def assert_linear(x, weight, add, got):
    """The error budget, forward."""
    wide = torch.float32
    arguments = [None if t is None else t.double() for t in (x, weight, add)]
    (exact,) = OPS["linear_step"].reference(*arguments)
    (plain,) = OPS["linear_step"].reference(*(None if t is None else t.to(wide) for t in (x, weight, add)))
    check_errors(got, plain, exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", range(1, 9))
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 17), (67, 31), (130, 64), (501, 333), (8, 1100)])
def test_every_batch_size_and_odd_sizes(dtype, batch, rows, width):
    x, weight = noise(batch, width, dtype=dtype), noise(rows, width, dtype=dtype, seed=1)
    for add in (None, noise(rows, dtype=dtype, seed=2), noise(batch, rows, dtype=dtype, seed=2)):
        got = cpu.quick(x, weight, add)
        assert got is not None
        assert got.dtype == dtype
        assert_linear(x, weight, add, got)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_may_lie_apart(dtype):
    """Parts of a wider projection, a tied head cut from a table, a residual that is a view."""
    both, table = noise(3, 90, dtype=dtype), noise(40, 70, dtype=dtype, seed=1)
    x, weight, add = both[:, 7:50], table[2::3, 5:48], noise(3, 99, dtype=dtype, seed=2)[:, 4 : 4 + 13]
    got = cpu.quick(x, weight, add)
    assert got is not None
    assert_linear(x, weight, add, got)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_do_not_change_a_number(dtype, threads):
    x, weight = noise(2, 257, dtype=dtype), noise(1031, 257, dtype=dtype, seed=1)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = linear_step(x, weight)
    torch.set_num_threads(before)
    assert torch.equal(linear_step(x, weight), alone)
    assert torch.equal(rms_norm(x.repeat(900, 1), weight[0]), rms_norm(x, weight[0]).repeat(900, 1))


@pytest.mark.parametrize("isa", _core.available())
@pytest.mark.parametrize(("name", "i"), CPP)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [lambda x: x, strided], ids=["dense", "strided"])
def test_every_instruction_set(isa, name, i, dtype, layout):
    op = OPS[name]
    if op.cases[i].dims["B"] > cpu.MOST_ROWS:
        pytest.skip("torch's")
    with _core.forced(isa):
        check_budget(op, op.impls[0].fn, example(op, CPP[name, i]), dtype, layout=layout)


@pytest.mark.parametrize("isa", _core.available())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("size", "heads", "groups", "width"), [(1, 1, 1, 1), (31, 2, 1, 5), (700, 6, 3, 64), (1025, 4, 4, 33)]
)
def test_attention_over_a_long_cache(isa, dtype, size, heads, groups, width, threads):
    """Several blocks of keys and pieces for the threads; windows and lengths that leave pieces empty."""
    op = OPS["attention"]
    for window, start, lengths in (
        (inf, None, None),
        (40, None, None),
        (3, [size // 2, size - 1], [size, size]),
        (inf, None, [0, (size + 1) // 2]),
    ):
        arguments = {
            "q": noise(2, 1, heads, width, dtype=torch.float64),
            "k": noise(2, size, groups, width, dtype=torch.float64, seed=1),
            "v": noise(2, size, groups, width, dtype=torch.float64, seed=2),
            "causal": True,
            "window": window,
            "q_start": None if start is None else torch.tensor(start),
            "k_lengths": None if lengths is None else torch.tensor(lengths),
            "cu_seqlens": None,
        }
        with _core.forced(isa):
            check_budget(op, op.impls[0].fn, arguments, dtype)


def test_attention_survives_large_scores_and_keeps_nan():
    q, k, v = (noise(1, t, 2, 8, dtype=torch.float32, seed=t) for t in (1, 70, 71))
    v = v[:, :70]
    fn = OPS["attention"].impls[0].fn
    (got,), (want,) = fn(q * 1e4, k, v), OPS["attention"].reference(q.double() * 1e4, k.double(), v.double())
    assert (got.double() - want).abs().max() < 1e-4
    assert fn(q, k.index_fill(1, torch.tensor([40]), torch.nan), v)[0].isnan().all()
    seen = fn(q, k.index_fill(1, torch.tensor([69]), torch.nan), v, k_lengths=torch.tensor([69]))[0]
    assert seen.isfinite().all()


def test_where_torch_is_right_torch_is_asked():
    x, weight = noise(2, 5, dtype=torch.float32), noise(3, 5, dtype=torch.float32, seed=1)
    assert cpu.quick(x, weight, None) is not None
    assert cpu.quick(x, weight.requires_grad_(), None) is None
    assert torch.equal(linear(x, weight), F.linear(x, weight))
    linear(x, weight).sum().backward()
    assert weight.grad is not None
    with torch.no_grad():
        assert cpu.quick(x, weight, None) is not None
        assert cpu.quick(noise(9, 5, dtype=torch.float32), weight, None) is None
        assert cpu.quick(x.double(), weight.double(), None) is None
        assert cpu.quick(x, weight.bfloat16(), None) is None
        assert cpu.quick(x, noise(3, 6, dtype=torch.float32), None) is None
        assert cpu.quick(x, weight, noise(4, dtype=torch.float32)) is None
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(x, weight).dtype == torch.bfloat16
    assert cpu.quick(x, weight.detach(), noise(2, 3, dtype=torch.float32)) is not None


def test_a_step_can_be_compiled_whole():
    weight = noise(3, 5, dtype=torch.float32, seed=1)

    @torch.compile(fullgraph=True, backend="eager")
    def step(x):
        return linear(rms_norm(x, weight[0]), weight)

    x = noise(2, 5, dtype=torch.float32)
    torch.testing.assert_close(step(x), linear(rms_norm(x, weight[0]), weight))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_small_steps_of_a_tape(dtype):
    tape, x = Tape(), noise(2, 37, dtype=dtype) * 30
    table, token = noise(5, 37, dtype=dtype, seed=3), torch.tensor([4, 0])
    up, total = noise(2, 37, dtype=dtype, seed=4), noise(2, 37, dtype=dtype, seed=5)
    embedded = tape.embed(token, table, torch.empty_like(x))
    told = tape.add_position(x, table, token, torch.empty_like(x))
    gated = tape.silu_gate(x, up, torch.empty_like(x))
    before = tape.copy(total, torch.empty_like(total))
    tape.sum(up, total)
    tape.run()
    eps = torch.finfo(dtype).eps
    assert torch.equal(embedded, table[token])
    assert torch.equal(told, x + table[token])
    assert torch.equal(total, before + up)
    want = F.silu(x.double()) * up.double()
    for norm in (peak, rms):
        assert norm(gated.double() - want) <= 2 * eps * norm(want)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_multiplies():
    code = """
import os, torch
from quatrain.kernels import linear_step
torch.set_num_threads(2)
x, w = torch.randn(1, 300), torch.randn(900, 300)
y = linear_step(x, w)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(linear_step(x, w), y) else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)
