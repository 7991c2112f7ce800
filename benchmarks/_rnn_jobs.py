"""Jobs of gpu_rnn_model.py: functions of plain values that check or time one thing, run in a child."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from _budget import excess
from _jobs import say
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from quatrain.infer._decoder import Decoder
from quatrain.kernels import OPS, Case, _recurrent_cuda
from quatrain.mixers.lstm import LSTM
from quatrain.model.config import ModelConfig
from quatrain.model.lm import LanguageModel
from quatrain.model.loss import chunked_cross_entropy

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
TOKENS = 32  # of one graph


def ready(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
        _recurrent_cuda.check(torch.device("cuda", 0))


def once(run: Callable[[], object], device: str) -> float:
    """ms of one call."""
    if device == "cpu":
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begun.record()
    run()
    ended.record()
    ready(device)
    return begun.elapsed_time(ended)


def alternating(runs: dict[str, Callable[[], object]], device: str, count: int) -> dict[str, float]:
    """Median ms of each, in turns."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(count):
        for name, run in runs.items():
            found[name].append(once(run, device))
    return {name: median(each) for name, each in found.items()}


def captured(run: Callable[[], object], device: str) -> Callable[[], object]:
    """``run`` as a CUDA graph; on a CPU itself."""
    if device == "cpu":
        return run
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()

    def replay(kept: object = run) -> None:  # a graph keeps none of the memory that ``run`` brought along
        graph.replay()

    return replay


def check_step(kind: str, dtype: str, sizes: tuple[int, int, int], impl: str, device: str) -> dict[str, Any]:
    """The worst error of a result of one step, as a multiple of what the error budget allows."""
    op, narrow = OPS["recurrent_step"], DTYPES[dtype]
    case = Case(dict(zip("BID", sizes, strict=True)), ("in_bias", "bias"), {"kind": kind})
    drawn = op.example(case, torch.Generator().manual_seed(0))

    def cast(to: torch.dtype) -> dict[str, Any]:
        return {k: x.to(device, narrow).to(to) if isinstance(x, Tensor) else x for k, x in drawn.items()}

    rounding = {} if narrow is torch.float32 else {"operand_dtype": narrow}
    with torch.no_grad():
        got = op.run(cast(narrow), impl)
        exact = op.reference(**cast(torch.float64))
        plain = op.reference(**cast(torch.float32), **rounding)
    worst = max(excess(g, p, e) for g, p, e in zip(got, plain, exact, strict=True))
    return {"ok": worst <= 1, "worst": round(worst, 3)}


class TorchModel(nn.Module):
    """The language model on torch.nn.LSTM: the same embedding, tied head and loss, weights copied."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        width, layers = model.config.width, model.config.layers
        self.embedding = nn.Embedding(model.config.vocab, width)
        self.lstm = nn.LSTM(width, width, layers, batch_first=True)
        with torch.no_grad():
            self.embedding.weight.copy_(model.embedding.weight)
            for index, block in enumerate(model.backbone.blocks):
                mixer: Any = block.mixer
                named = {"weight_ih": mixer.in_proj.weight, "weight_hh": mixer.recurrent}
                named |= {"bias_ih": mixer.in_proj.bias, "bias_hh": torch.zeros_like(mixer.in_proj.bias)}
                for name, value in named.items():
                    getattr(self.lstm, f"{name}_l{index}").copy_(value)

    def loss(self, tokens: Tensor, targets: Tensor, *, keep_state: bool = True) -> tuple[Tensor, None]:
        x, _ = self.lstm(self.embedding(tokens))
        return chunked_cross_entropy(x, self.embedding.weight, targets), None


def new_model(vocab: int, width: int, layers: int, impl: str, device: str) -> LanguageModel:
    torch.manual_seed(0)
    config = ModelConfig(
        vocab=vocab, width=width, layers=layers, pattern="lstm", form="stack", mixer={"lstm": {"impl": impl}}
    )
    with torch.device(device):
        return LanguageModel(config)


def check_training(width: int, layers: int, sizes: tuple[int, int], impl: str, device: str) -> dict[str, Any]:
    """Loss and gradients in bfloat16 err by at most twice what torch.nn.LSTM in bfloat16 does."""
    torch.backends.cudnn.allow_tf32 = False
    model = new_model(50, width, layers, impl, device).to(torch.bfloat16)
    peer = TorchModel(model).to(device)  # float32, of the rounded weights
    tokens = torch.randint(0, 50, (sizes[0], sizes[1] + 1), device=device)

    def run(one: Any) -> list[Tensor]:
        loss, _ = one.loss(tokens[:, :-1], tokens[:, 1:], keep_state=False)
        wanted = (
            [block.mixer.recurrent for block in one.backbone.blocks] + [one.embedding.weight]
            if isinstance(one, LanguageModel)
            else [getattr(one.lstm, f"weight_hh_l{i}") for i in range(layers)] + [one.embedding.weight]
        )
        return [x.detach().double() for x in (loss, *torch.autograd.grad(loss, wanted))]

    ours, exact = run(model), run(peer)
    plain = run(peer.to(torch.bfloat16))
    ready(device)
    worst = 0.0
    for got, p, e in zip(ours, plain, exact, strict=True):
        allowed = 2 * (p - e).norm() + 2**-9 * e.norm()
        worst = max(worst, float(((got - e).norm() / allowed).nan_to_num(torch.inf)))
    return {"ok": worst <= 1, "worst": round(worst, 3)}


def bandwidth(device: str) -> float:
    """Bytes a second that a copy of 1 GiB reads and writes."""
    size = 1 << 30 if device == "cuda" else 1 << 24
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    ms = alternating({"": lambda: target.copy_(source)}, device, 7)[""]
    return 2e3 * size / ms


def decode(batch: int, width: int, layers: int, device: str) -> dict[str, Any]:
    """us a token: ours as a graph and without one, torch.nn.LSTM's, and of reading the weights."""
    torch.manual_seed(0)
    found: dict[str, float] = {}
    with torch.no_grad():
        stack = [LSTM(width=width).to(device, torch.bfloat16) for _ in range(layers)]
        x = torch.randn(batch, width, device=device, dtype=torch.bfloat16)

        def ours() -> Tensor:
            y, states = x, [mixer.initial_state(batch) for mixer in stack]
            for _ in range(TOKENS):
                for index, mixer in enumerate(stack):
                    y, states[index] = mixer.step(y, states[index])
            return y

        runs: dict[str, Callable[[], object]] = {"quatrain": ours}
        for name in ("bfloat16", "float16") if device == "cuda" else ("bfloat16",):
            peer = nn.LSTM(width, width, layers).to(device, DTYPES[name]).eval()

            def theirs(peer: nn.LSTM = peer, dtype: torch.dtype = DTYPES[name]) -> Tensor:
                y = x.to(dtype)[None]
                state = tuple(torch.zeros(layers, batch, width, device=device, dtype=dtype) for _ in "hc")
                for _ in range(TOKENS):
                    y, state = peer(y, state)
                return y

            runs[f"cudnn {name}"] = theirs
        alternating(runs, device, 2)
        for name, ms in alternating(runs, device, 5).items():
            found[f"{name}, eager"] = 1e3 * ms / TOKENS
        graphs: dict[str, Callable[[], object]] = {}
        for name, run in runs.items():
            try:
                graphs[name] = captured(run, device)
            except RuntimeError as error:
                say(f"{name}: not captured: {str(error)[:200]}")
        for name, ms in alternating(graphs, device, 21).items():
            found[f"{name}, graph"] = 1e3 * ms / TOKENS
        weights = sum(p.numel() * p.element_size() for mixer in stack for p in mixer.parameters())
        rate = bandwidth(device)
    found["reading the weights"] = 1e6 * weights / rate
    return {"us": found, "copy_gb_s": round(rate / 1e9), "weights_mb": round(weights / 1e6, 1)}


def decode_model(batch: int, width: int, layers: int, device: str) -> dict[str, Any]:
    """us a token of a whole model through the decoder, and the kernels of one token."""
    model = new_model(256, width, layers, "auto", device).to(torch.bfloat16).eval()
    token = torch.zeros(batch, dtype=torch.int64, device=device)
    decoder = Decoder(model, model.initial_state(batch))

    def run() -> None:
        for _ in range(TOKENS):
            decoder(token)

    with torch.no_grad():
        run()
        eager = median(once(run, device) for _ in range(9))
        kernels: list[str] = []
        if device == "cuda":
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
                decoder(token)
                torch.cuda.synchronize()
            on_gpu = torch.autograd.DeviceType.CUDA
            kernels = [event.name[:60] for event in trace.events() if event.device_type == on_gpu]
        graph = captured(run, device)
        ms = median(once(graph, device) for _ in range(21))
    us = {"quatrain, eager": 1e3 * eager / TOKENS, "quatrain, graph": 1e3 * ms / TOKENS}
    return {"us": us, "kernels": kernels}


def train(
    who: str, dtype: str, autocast: bool, vocab: int, width: int, layers: int, sizes: tuple[int, int],
    impl: str, device: str,
) -> dict[str, Any]:  # fmt: skip
    """ms of a training step, of ours or of the model on torch.nn.LSTM."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    ours = new_model(vocab, width, layers, impl, device)
    model: Any = ours if who == "quatrain" else TorchModel(ours).to(device)
    if not autocast:
        model.to(DTYPES[dtype])
    rate = 1e-4 if dtype != "float16" else 0.0  # float16 lacks the range of the moments: timed, not trained
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, fused=device == "cuda")
    tokens = torch.randint(0, vocab, (sizes[0], sizes[1] + 1), device=device)
    losses: list[Tensor] = []

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, DTYPES[dtype], enabled=autocast):
            loss, _ = model.loss(tokens[:, :-1], tokens[:, 1:], keep_state=False)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())

    warm = once(lambda: [step() for _ in range(2)], device)
    ms = median(once(step, device) for _ in range(5))
    peak = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0
    return {
        "ms": round(ms, 3), "tokens_per_s": round(1e3 * sizes[0] * sizes[1] / ms), "peak_gb": round(peak, 2),
        "warm_ms": round(warm), "losses": [round(float(losses[i]), 4) for i in (0, -1)],
        "parameters": sum(p.numel() for p in model.parameters()),
    }  # fmt: skip


def packed(
    width: int, sequences: int, steps: int, shortest: int, impl: str, peer: bool, device: str
) -> dict[str, Any]:
    """ms forward and backward of a layer on a packed batch, on a full one, and of torch.nn.LSTM packed."""
    torch.manual_seed(0)
    lengths = torch.randint(shortest, steps + 1, (sequences,))
    total = int(lengths.sum())
    bounds = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0))).to(device)
    layer = LSTM(width=width, impl=impl).to(device, torch.bfloat16)
    made = {"device": device, "dtype": torch.bfloat16}

    def run(x: Tensor, cu_seqlens: Tensor | None) -> None:
        y, _ = layer(x, cu_seqlens=cu_seqlens, keep_state=False)
        torch.autograd.grad(y, [x, *layer.parameters()], y.detach())

    ragged = torch.randn(1, total, width, **made).requires_grad_()
    full = torch.randn(sequences, steps, width, **made).requires_grad_()
    runs: dict[str, Callable[[], object]] = {"packed": lambda: run(ragged, bounds)}
    runs["full"] = lambda: run(full, None)
    alternating(runs, device, 2)
    found = alternating(runs, device, 5)
    if peer:
        lstm = nn.LSTM(width, width, batch_first=True).to(device, torch.bfloat16)
        both = pack_padded_sequence(full, lengths, batch_first=True, enforce_sorted=False)

        def theirs() -> None:
            y, _ = lstm(both)
            torch.autograd.grad(y.data, list(lstm.parameters()), y.data.detach())

        once(theirs, device)
        found["cudnn packed"] = once(theirs, device)
    share = total / (sequences * steps)
    return {"ms": found, "share": round(share, 4), "over": round(found["packed"] / found["full"] / share, 3)}


JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    "check_step": check_step, "check_training": check_training, "decode": decode,
    "decode_model": decode_model, "train": train, "packed": packed,
}  # fmt: skip
