"""What only a GPU shows of the recurrent scans' kernel: clusters, grids, graphs, streams, compilation."""

import pytest
import torch
from tests.test_kernels import WIDE_PARAMETERS, check_budget, example, strided

from quatrain.kernels import OPS, Case, _nvrtc, _recurrent_cuda, lstm_scan
from quatrain.kernels._recurrent_cuda import _launch, _plan
from quatrain.kernels.gru_scan import cuda as gru
from quatrain.kernels.lstm_scan import cuda as lstm
from quatrain.kernels.rnn_scan import cuda as rnn

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]
SCANS = {"rnn_scan": rnn.scan, "lstm_scan": lstm.scan, "gru_scan": gru.scan}
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def on_gpu(name, case, dtype=torch.bfloat16):
    drawn = example(OPS[name], case)
    return {
        key: x.to("cuda", dtype if x.is_floating_point() else None) if torch.is_tensor(x) else x
        for key, x in drawn.items()
    }


@pytest.mark.parametrize("width", [1, 7, 33, 64, 130, 512, 1024])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SCANS)
def test_widths(name, dtype, width):
    case = Case({"B": 10, "T": 9, "D": width}, ("h0", "lengths"))
    check_budget(OPS[name], SCANS[name], example(OPS[name], case), dtype, "cuda")


@pytest.mark.parametrize("name", SCANS)
def test_more_sequences_than_rows(name):
    case = Case({"B": 700, "T": 5, "D": 256}, ("h0", "lengths"))
    check_budget(OPS[name], SCANS[name], example(OPS[name], case), torch.bfloat16, "cuda")


@pytest.mark.parametrize("name", SCANS)
def test_strides_and_wide_parameters(name):
    case = OPS[name].cases[-1] if name != "gru_scan" else OPS[name].cases[8]
    check_budget(OPS[name], SCANS[name], example(OPS[name], case), torch.float32, "cuda", layout=strided)
    check_budget(
        OPS[name], SCANS[name], example(OPS[name], case), torch.bfloat16, "cuda", keep=WIDE_PARAMETERS[name]
    )


# units, blocks of a cluster, grid, rows, groups, chunks, warps over rows of the weights
PLANS = [
    (64, 1, False, 4, 3),
    (16, 4, False, 3, 2),
    (16, 4, False, 3, 2, (1, 1), 1),
    (16, 1, True, 6, 2),
    (16, 1, True, 6, 2, (0, 0)),
    (16, 4, True, 6, 2),
    (16, 1, True, 6, 2, (4, 2)),
    (16, 2, True, 6, 2, (0, 0)),
]


@pytest.mark.parametrize("numbers", PLANS)
@pytest.mark.parametrize("name", SCANS)
def test_ways_of_exchange(name, numbers, monkeypatch):
    monkeypatch.setattr(_launch, "plan", lambda problem: _plan.fit(problem, *numbers))
    case = Case({"B": 11, "T": 19, "D": 60}, ("h0", "lengths"))
    for dtype in DTYPES:
        check_budget(OPS[name], SCANS[name], example(OPS[name], case), dtype, "cuda")


@pytest.mark.parametrize("width", [64, 512, 1024])
def test_runs_are_equal_compiled_and_not(width):
    given = on_gpu("lstm_scan", Case({"B": 16, "T": 50, "D": width}, ("h0", "c0")))
    leaves = [x.requires_grad_() for x in given.values() if torch.is_tensor(x)]

    def run(call):
        y, h, c = call(**given, impl="cuda")
        return y, h, c, *torch.autograd.grad(y.float().sin().sum() + h.sin().sum() + c.sum(), leaves)

    once, again = run(lstm_scan), run(lstm_scan)
    compiled = run(torch.compile(lambda **kw: lstm_scan(**kw), fullgraph=True))
    for a, b, c in zip(once, again, compiled, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@pytest.mark.parametrize("width", [512, 1024])
def test_a_captured_graph_follows_its_inputs(width):
    given = on_gpu("lstm_scan", Case({"B": 16, "T": 50, "D": width}))
    lstm_scan(**given, impl="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, h, _ = lstm_scan(**given, impl="cuda")
    given["x"].copy_(torch.randn_like(given["x"]))
    graph.replay()
    want_y, want_h, _ = lstm_scan(**given, impl="cuda")
    assert torch.equal(y, want_y)
    assert torch.equal(h, want_h)


@pytest.mark.parametrize("width", [512, 1024])
def test_two_streams_at_once(width):
    given = on_gpu("lstm_scan", Case({"B": 16, "T": 400, "D": width}))
    want = lstm_scan(**given, impl="cuda")[0]
    torch.cuda.synchronize()
    found = []
    for stream in [torch.cuda.Stream() for _ in range(2)] * 3:
        with torch.cuda.stream(stream):
            found.append(lstm_scan(**given, impl="cuda")[0])
    torch.cuda.synchronize()
    _recurrent_cuda.check(torch.device("cuda", 0))
    for y in found:
        assert torch.equal(y, want)


def test_padding_is_packing_is_separate():
    torch.manual_seed(0)
    lengths = torch.tensor([50, 0, 17, 33], device="cuda")
    weight = torch.randn(256, 64, device="cuda", dtype=torch.bfloat16) / 8
    x = torch.randn(4, 50, 256, device="cuda", dtype=torch.bfloat16)
    padded, h, _ = lstm_scan(x, weight, lengths=lengths, impl="cuda")
    rows = [x[i, :n] for i, n in enumerate(lengths.tolist())]
    bounds = torch.cat((lengths.new_zeros(1), lengths.cumsum(0)))
    packed, h_packed, _ = lstm_scan(torch.cat(rows)[None], weight, cu_seqlens=bounds, impl="cuda")
    assert torch.equal(h, h_packed)
    at = 0
    for i, row in enumerate(rows):
        assert torch.equal(padded[i, : len(row)], packed[0, at : at + len(row)])
        assert not padded[i, len(row) :].any()
        if len(row):
            assert torch.equal(lstm_scan(row[None], weight, impl="cuda")[0][0], padded[i, : len(row)])
        at += len(row)


def test_a_long_sequence():
    """65,536 steps: the second half from the state in between is the second half of the whole."""
    given = on_gpu("lstm_scan", Case({"B": 2, "T": 1 << 16, "D": 32}))
    x, weight = given["x"], given["weight"]
    y, h, c = lstm_scan(x, weight, impl="cuda")
    _, h1, c1 = lstm_scan(x[:, : 1 << 15], weight, impl="cuda")
    y2, h2, c2 = lstm_scan(x[:, 1 << 15 :], weight, h1, c1, impl="cuda")
    assert torch.equal(y[:, 1 << 15 :], y2)
    assert torch.equal(h, h2)
    assert torch.equal(c, c2)


@pytest.mark.parametrize("chunks", [(0, 0), (1, 1)])
def test_blocks_that_never_meet_leave_nan_and_an_error(monkeypatch, chunks):
    """More blocks than the launch has: their barrier is never met, and the device stays usable."""
    monkeypatch.setattr(_launch, "PATIENCE", 20_000_000)

    def plan(problem):
        return _plan.fit(problem, 16, 1, True, 1, 1, chunks)

    given = on_gpu("lstm_scan", Case({"B": 1, "T": 20, "D": 64}))
    monkeypatch.setattr(_launch, "plan", plan)
    want = lstm_scan(**given, impl="cuda")[0]
    kernels = _nvrtc.Kernels
    launch = kernels.launch

    def one_less(self, name, blocks, *args, **flags):
        launch(self, name, blocks - 1, *args, **flags)

    monkeypatch.setattr(kernels, "launch", one_less)
    y, _, _ = lstm_scan(**given, impl="cuda")
    torch.cuda.synchronize()
    assert y[..., :48].isnan().all()
    with pytest.raises(RuntimeError, match="waited too long"):
        _recurrent_cuda.check(torch.device("cuda", 0))
    monkeypatch.setattr(kernels, "launch", launch)
    assert torch.equal(lstm_scan(**given, impl="cuda")[0], want)
