"""Training speed and peak memory of small language models on the CPU, beside torch.nn and mambapy.

Width 256, 4 layers, 256 symbols, B 8, T 1024, float32: forward, loss, backward and an AdamW step. Every model
runs in a process of its own, so that its peak memory is its own; rounds take turns over the models.
"""

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from _rows import row, save
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.model.config import ModelConfig
from quatrain.model.lm import LanguageModel

WIDTH, LAYERS, VOCAB, BATCH, TIME = 256, 4, 256, 8, 1024
OURS = ("s6", "lstm", "gru", "rnn", "attention", "s4d")


class Around(nn.Module):
    """An embedding before and a tied head behind ``core``."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.embedding, self.core = nn.Embedding(VOCAB, WIDTH), core

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.core(self.embedding(tokens))
        x = x[0] if isinstance(x, tuple) else x
        return F.cross_entropy((x @ self.embedding.weight.T).flatten(0, 1), targets.flatten())


def build(name: str) -> tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]:
    """A model by its row's name, and its loss."""
    if name.startswith("quatrain:"):
        model = LanguageModel(ModelConfig(vocab=VOCAB, width=WIDTH, layers=LAYERS, pattern=name[9:]))
        return model, lambda tokens, targets: model.loss(tokens, targets, keep_state=False)[0]
    if name == "mambapy":
        from mambapy.mamba import Mamba, MambaConfig

        peer = Around(Mamba(MambaConfig(d_model=WIDTH, n_layers=LAYERS)))
    else:
        peer = Around(getattr(nn, name.removeprefix("torch.nn."))(WIDTH, WIDTH, LAYERS, batch_first=True))
    return peer, peer.loss


def measure(name: str, steps: int) -> dict[str, float]:
    """Tokens per second by the median step, the first not counted, and this process's peak memory."""
    torch.manual_seed(0)
    torch.set_num_threads(torch.get_num_threads())
    model, loss_of = build(name)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    stream, taken = torch.randint(VOCAB, (BATCH, TIME + 1)), []
    for _ in range(steps + 1):
        began = perf_counter()
        optimiser.zero_grad()
        loss_of(stream[:, :-1], stream[:, 1:]).backward()
        optimiser.step()
        taken.append(perf_counter() - began)
    return {
        "tokens_per_second": BATCH * TIME / median(taken[1:]),
        "peak_memory_bytes": 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def main() -> None:
    """Measure all and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    if asked.one:
        steps = 1 if asked.one == "mambapy" else 6
        sys.stdout.write(json.dumps(measure(asked.one, steps)))
        return
    names = [f"quatrain:{mixer}" for mixer in OURS] + ["torch.nn.LSTM", "torch.nn.GRU", "torch.nn.RNN"]
    names += ["mambapy"] if importlib.util.find_spec("mambapy") is not None else []
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(asked.rounds):
        for name in names:
            if name == "mambapy" and turn:  # half a minute a step
                continue
            command = (sys.executable, __file__, "--one", name)
            found[name].append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    rows = []
    for name, rounds in found.items():
        speed = median(one["tokens_per_second"] for one in rounds)
        peak = max(one["peak_memory_bytes"] for one in rounds)
        sys.stdout.write(f"{name:20} {speed:10,.0f} tokens/s {peak / 2**20:8.0f} MiB\n")
        case = f"B{BATCH} T{TIME} width {WIDTH} layers {LAYERS}"
        more = {"peak_memory_bytes": round(peak)}
        rows.append(
            row("train", name, case, "float32", "training", value=round(speed), unit="tokens/s", **more)
        )
    save("cpu_train", rows)


if __name__ == "__main__":
    main()
