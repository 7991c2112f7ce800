"""The recurrent scans' CUDA kernel on a CPU: all blocks of a group at once, their copies in any order."""

from dataclasses import replace

import pytest
import torch
from tests.kernels.emulation import Together, emulating, needed
from tests.test_kernels import WIDE_PARAMETERS, check_budget, example, strided

from quatrain.kernels import OPS, Case, _recurrent_cuda
from quatrain.kernels._recurrent_cuda import _launch, _plan
from quatrain.kernels.gru_scan import cuda as gru
from quatrain.kernels.lstm_scan import cuda as lstm
from quatrain.kernels.rnn_scan import cuda as rnn

pytestmark = needed
SCANS = {"rnn_scan": rnn.scan, "lstm_scan": lstm.scan, "gru_scan": gru.scan}


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    ops = {"recurrent_cuda": _recurrent_cuda.forward, "recurrent_cuda_backward": _recurrent_cuda.backward}
    residents = (132, 66, 44, 33, *(24 - size for size in range(5, 17)))
    with emulating(tmp_path_factory.mktemp("e"), Together, ops, residents=lambda device: residents):
        yield


CASES = [
    pytest.param(name, case, dtype, id=f"{name}-{case.name}-{str(dtype)[6:]}")
    for name in SCANS
    for cases in [[c for c in OPS[name].cases if c.flags.get("reset") != "before"]]
    for i, case in enumerate(cases)
    for dtype in (torch.bfloat16, torch.float32, torch.float16)
    if dtype is torch.bfloat16 or i in (len(cases) // 2, len(cases) - 1)
]


@pytest.mark.parametrize(("name", "case", "dtype"), CASES)
def test_matches_the_definition(emulator, name, case, dtype):
    check_budget(OPS[name], SCANS[name], example(OPS[name], case), dtype)


def force(
    monkeypatch, units, cluster, rows, groups, *, grid=False, held=99, shared=99, chunks=(1, 1), down=0
):
    """Plans with these numbers instead of the cheapest; few tiles held, so that every place is read."""

    def plan(problem):
        made = _plan.fit(problem, units, cluster, grid, rows, groups, chunks, down)
        assert made is not None
        held_now = min(held, made.held)
        shared_now = min(shared, made.tiles[1] - held_now)
        places = 16 if made.polled else 2  # all of them are used more than once
        made = replace(made, held=held_now, shared=shared_now, places=places)
        return replace(made, shared_bytes=_plan.shared_bytes(problem, made))

    monkeypatch.setattr(_launch, "plan", plan)


CLUSTERS = {  # units, cluster, rows, groups
    "three blocks": ((16, 3, 3, 2), {}),
    "warps over columns": ((16, 3, 4, 1), {"down": 1}),
    "shared weights": ((16, 3, 2, 3), {"held": 0}),
    "weights from everywhere": ((16, 3, 3, 2), {"held": 1, "shared": 1}),
    "streamed weights": ((32, 2, 9, 1), {"held": 0, "shared": 0}),
    "a grid": ((16, 1, 3, 2), {"grid": True}),
    "a grid that shares columns": ((16, 3, 3, 2), {"grid": True}),
    "a grid in chunks": ((16, 1, 6, 2), {"grid": True, "chunks": (3, 3), "held": 1}),
    "chunks in a ring": ((16, 1, 3, 2), {"grid": True, "chunks": (3, 1)}),
    "chunks for clusters of two": ((16, 2, 3, 2), {"grid": True, "chunks": (2, 1), "held": 1}),
    "a polled grid": ((16, 1, 5, 2), {"grid": True, "chunks": (0, 0)}),
    "a polled grid that shares columns": ((16, 3, 9, 1), {"grid": True, "chunks": (0, 0)}),
    "a polled grid of clusters of two": ((16, 2, 3, 2), {"grid": True, "chunks": (0, 0)}),
    "a polled grid of large operands": ((16, 1, 40, 1), {"grid": True, "chunks": (0, 0), "down": 1}),
}


@pytest.mark.parametrize("how", CLUSTERS)
@pytest.mark.parametrize("name", SCANS)
def test_blocks_that_work_together(emulator, name, how, monkeypatch):
    """Each way of exchanging operands and keeping weights; sequences share rows and blocks end in padding."""
    numbers, flags = CLUSTERS[how]
    force(monkeypatch, *numbers, **flags)
    monkeypatch.setattr(Together, "late", len(how) % 2)
    form = ("lengths", "cu_seqlens", None)[len(how) % 3]
    width = 60 if "of two" in how else 37
    dims = {"B": 1, "T": 41, "D": width} if form == "cu_seqlens" else {"B": 11, "T": 9, "D": width}
    optional = ("bias", "h0", "c0")[0 if name == "gru_scan" else 1 : 3 if name == "lstm_scan" else 2]
    case = Case(dims, (*optional, *([form] if form else [])))
    dtype = (torch.bfloat16, torch.float32, torch.float16)[len(how) // 2 % 3]
    check_budget(OPS[name], SCANS[name], example(OPS[name], case), dtype)


def given(name, case, dtype=torch.bfloat16):
    return {
        k: x.to(dtype) if torch.is_tensor(x) and x.is_floating_point() else x for k, x in drawn(name, case)
    }


def drawn(name, case):
    return example(OPS[name], case).items()


@pytest.mark.parametrize("name", SCANS)
def test_a_layer_of_512_units_as_it_is_planned(emulator, name, monkeypatch):
    """16 blocks of a cluster, or 8 with a part of the weights in shared memory: the plans of the table.

    What is kept of the gates is narrow, as it is for whole batches.
    """
    monkeypatch.setattr(_launch, "MUCH", 0)
    case = Case({"B": 9, "T": 3, "D": 512}, ("h0",))
    check_budget(OPS[name], SCANS[name], example(OPS[name], case), torch.bfloat16)


@pytest.mark.parametrize("name", SCANS)
def test_strides_and_wide_parameters(emulator, name):
    case = OPS[name].cases[-1] if name != "gru_scan" else OPS[name].cases[8]
    check_budget(OPS[name], SCANS[name], example(OPS[name], case), torch.float32, layout=strided)
    check_budget(OPS[name], SCANS[name], example(OPS[name], case), torch.bfloat16, keep=WIDE_PARAMETERS[name])


@pytest.mark.parametrize("form", ["lengths", "cu_seqlens"])
def test_empty_sequences_and_bad_indices(emulator, form):
    """An empty sequence keeps its state; indices that lie outside read and write nothing there."""
    torch.manual_seed(0)
    rows = 4 if form == "lengths" else 1
    x = torch.randn(rows, 6, 4 * 5).bfloat16().requires_grad_()
    weight = torch.randn(4 * 5, 5).bfloat16()
    h0, c0 = torch.randn(2, 4, 5, requires_grad=True)
    index = torch.tensor([0, 6, 2, 0] if form == "lengths" else [0, 0, 4, 6, 6])
    y, h, c = lstm.scan(x, weight, h0, c0, **{form: index})
    assert torch.equal(h[0], h0[0])
    assert torch.equal(c[3], c0[3])
    dh0, dc0 = torch.autograd.grad(h.sum() + 2 * c.sum(), (h0, c0))
    assert torch.equal(dh0[3], torch.ones(5))
    assert torch.equal(dc0[0], torch.full((5,), 2.0))
    wrong = torch.tensor([-7, 1 << 40, 3, 9] if form == "lengths" else [-3, 1 << 40, 2, 9, -1])
    y, h, c = lstm.scan(x, weight, h0, c0, **{form: wrong})
    torch.autograd.grad(y.float().sum() + h.sum(), x)


def test_saturated_gates(emulator):
    """Where gates are nearly 0 or 1 their slopes must not be differences of rounded numbers."""
    for name, run in SCANS.items():
        arguments = dict(drawn(name, Case({"B": 2, "T": 7, "D": 6}, ("h0", "c0"))))
        arguments["x"] *= 8
        check_budget(OPS[name], run, arguments, torch.float32)
        check_budget(OPS[name], run, arguments, torch.bfloat16)


@pytest.mark.parametrize("name", SCANS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_nan_stays_nan_in_its_sequence_alone(emulator, name, dtype, monkeypatch):
    """Also in what is kept, and where numbers say themselves that they are there."""
    monkeypatch.setattr(_launch, "MUCH", 0)
    force(monkeypatch, 16, 1, 3, 1, grid=True, chunks=(0, 0))
    arguments = given(name, Case({"B": 3, "T": 5, "D": 20}, ("h0",)), dtype)
    all_bits = torch.tensor(-1, dtype=torch.int32).view(torch.float32)
    arguments["x"][1, 2] = all_bits.to(dtype) if dtype is torch.bfloat16 else all_bits
    x = arguments["x"].requires_grad_()
    y = SCANS[name](**arguments)[0]
    dx = torch.autograd.grad(y.float().sum(), x)[0]
    for result in (y, dx):
        assert result[[0, 2]].isfinite().all()
    assert y[1, 2:].isnan().all()
    assert y[1, :2].isfinite().all()
    assert dx[1, :3].isnan().all()


def test_blocks_that_never_start_leave_nan_and_an_error(emulator, monkeypatch):
    """Another process holds a part of the GPU: the grid's barrier is never met."""
    force(monkeypatch, 16, 1, 2, 2, grid=True)
    arguments = given("lstm_scan", Case({"B": 4, "T": 5, "D": 37}, ("h0",)))
    device = arguments["x"].device
    monkeypatch.setattr(Together, "together", 2)
    monkeypatch.setattr(_launch, "PATIENCE", 500)
    for chunks in ((1, 1), (0, 0)):
        force(monkeypatch, 16, 1, 2, 2, grid=True, chunks=chunks)
        y, h, c = lstm.scan(**arguments)
        for result in (y, h, c):
            assert result.isnan().all()
        with pytest.raises(RuntimeError, match="waited too long"):
            _recurrent_cuda.check(device)
        _recurrent_cuda.check(device)
    lstm.scan(**arguments)
    with pytest.raises(RuntimeError, match="waited too long"):  # raised by whatever comes next
        lstm.scan(**arguments)
    monkeypatch.setattr(Together, "together", 1 << 30)
    y, _, _ = lstm.scan(**arguments)
    assert y.isfinite().all()


def test_compiled_and_checked_by_torch(emulator):
    arguments = given("gru_scan", Case({"B": 2, "T": 4, "D": 5}, ("bias", "h0")), torch.float32)
    tensors = [arguments[name].requires_grad_() for name in ("x", "weight", "bias", "h0")]
    args = ("gru", *tensors, None, None, None, True)
    torch.library.opcheck(
        torch.ops.quatrain.recurrent_cuda.default,
        args,
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_static"),
    )


def test_a_second_derivative_is_refused(emulator):
    x = torch.randn(1, 2, 8, requires_grad=True)
    y, *_ = lstm.scan(x, torch.randn(8, 2))
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(y.sum(), x, create_graph=True)
