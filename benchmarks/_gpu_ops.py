"""What surrounds the scan, and a whole Mamba block."""

from functools import partial

import torch
from _gpu import BF16, VOCAB, Row, both_ways, normal, row
from gpu_s6 import draw, milliseconds
from torch import Tensor

from quatrain.kernels import causal_conv, cross_entropy, rms_norm, s6_scan, s6_step
from quatrain.mixers.s6 import S6


def ops() -> list[Row]:
    rows = []
    big, copy = normal(1 << 30), torch.empty(1 << 30, device="cuda", dtype=BF16)
    ms = milliseconds(lambda: copy.copy_(big), 1)
    rows.append(row("copy", "torch", "2 GiB", "forward", ms, tb_per_s=round(2 * 2**31 / ms / 1e9, 3)))
    big = copy = None
    x, weight, bias = (
        normal(8, 2048, 2048),
        normal(2048, 4, dtype=torch.float32),
        normal(2048, dtype=torch.float32),
    )
    rows += both_ways(
        "causal_conv",
        "quatrain:nvrtc",
        "B8 T2048 E2048 W4 silu",
        lambda: causal_conv(x, weight, bias, silu=True)[0],
        [x, weight, bias],
    )
    rows += both_ways(
        "causal_conv",
        "quatrain:torch",
        "B8 T2048 E2048 W4 silu",
        lambda: causal_conv(x, weight, bias, silu=True, impl="torch")[0],
        [x, weight, bias],
        1,
    )
    del x
    for batch in (1, 64, 256):
        step = {
            "u": normal(batch, 1536),
            "delta": normal(batch, 1536),
            "a": -normal(1536, 16, dtype=torch.float32).exp(),
            "b": normal(batch, 16),
            "c": normal(batch, 16),
            "skip": normal(1536),
            "gate": normal(batch, 1536),
            "delta_bias": normal(1536),
            "h0": normal(batch, 1536, 16, dtype=torch.float32),
            "softplus": True,
        }
        compiled = torch.compile(s6_step, fullgraph=True)
        limit = 2 * step["h0"].numel() * 4
        for impl, run in (
            ("quatrain:nvrtc", s6_step),
            ("quatrain:torch", partial(s6_step, impl="torch")),
            ("torch.compile", compiled),
        ):
            with torch.no_grad():
                ms = milliseconds(lambda run=run, step=step: run(**step))
            rows.append(
                row(
                    "s6_step",
                    impl,
                    f"B{batch} E1536 N16",
                    "forward",
                    ms,
                    state_tb_per_s=round(limit / ms / 1e9, 3),
                )
            )
    x, residual, weight = normal(16, 2048, 768), normal(16, 2048, 768), normal(768)

    def norm_add() -> Tensor:
        return rms_norm(x + residual, weight)

    rows += both_ways("rms_norm+residual", "eager", "B16 T2048 D768", norm_add, [x, residual, weight])
    rows += both_ways(
        "rms_norm+residual", "torch.compile", "B16 T2048 D768", torch.compile(norm_add), [x, residual, weight]
    )
    logits, targets = normal(2560, VOCAB), torch.randint(0, VOCAB, (2560,), device="cuda")
    for impl in ("nvrtc", "torch"):
        rows += both_ways(
            "cross_entropy",
            f"quatrain:{impl}",
            f"R2560 V{VOCAB}",
            lambda impl=impl: cross_entropy(logits, targets, impl=impl),
            [logits],
            1,
        )
    loss = torch.compile(lambda x: torch.nn.functional.cross_entropy(x.float(), targets, reduction="none"))
    rows += both_ways("cross_entropy", "torch.compile", f"R2560 V{VOCAB}", lambda: loss(logits), [logits], 1)
    given = draw(1, 1536, 4096, BF16)
    with torch.no_grad():
        fast, slow = (
            milliseconds(lambda impl=impl: s6_scan(**given, impl=impl), 1) for impl in ("nvrtc", "torch")
        )
    rows.append(
        row("s6_scan", "quatrain:nvrtc", "B1 E1536 T4096", "forward", fast, times_torch=round(slow / fast, 1))
    )
    return rows


def block() -> list[Row]:
    layer = S6(width=1024).to("cuda", BF16)
    x = normal(8, 2048, 1024)
    rows = []
    for name, run in (("eager", layer), ("torch.compile", torch.compile(layer, fullgraph=True))):
        call = lambda run=run: run(x, keep_state=False)[0]  # noqa: E731
        rows += both_ways(
            "mamba block", f"quatrain:{name}", "D1024 B8 T2048", call, [x, *layer.parameters()], 1
        )
    return rows
