"""Initialisation at the level of the model: the one place that decides it. A mixer draws its own weights
first.

- Embedding (and untied head): normal, std 0.02 in the residual form. With a tied head and a normalised last
  layer the first logits then have std 0.02 sqrt(D), so the first loss is that of a uniform guess (GPT-2). A
  plain stack has no norms to lift so small an input: std 0.1, about the uniform(-0.1, 0.1) of Merity et al.,
  arXiv:1708.02182.
- Input projection (numbers instead of tokens): as torch's `nn.Linear`, weights and bias. Head of another task
  than next tokens: as the embedding, bias 0; forecasts begin as persistence, classes as equally likely.
- Output projections of residual branches: divided by the square root of the number of branches in the whole
  model, so that the variance of the residual stream does not grow with depth (GPT-2; Mamba does the same).
  RNN, LSTM and GRU have no such projection, their outputs are bounded by 1 anyway.
- Everything else is left as torch's `nn.Linear` or the mixer's paper has it.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from quatrain.config.check import check

if TYPE_CHECKING:
    from quatrain.model.sequence import SequenceModel

# Names, below a block, of the matrices whose results are added to the residual stream.
OUTPUTS = ("mixer.out_proj.weight", "mlp.down.weight")


def initialise(model: "SequenceModel", seed: int) -> None:
    """Draw all weights anew from ``seed``, in place.

    Every layer has its own stream of random numbers, drawn on the CPU in the default dtype: the weights do
    not depend on the device, and those of a layer not on the layers beside it. Torch's global generator is
    left as it was. Raises ConfigError for a seed outside [0, 2**63).
    """
    check(0 <= seed < 2**63, "seed", seed, "must lie in [0, 2**63)")
    with torch.no_grad():
        for index, block in enumerate(model.backbone.blocks):
            with _stream(seed, f"layer {index}"):
                fresh = type(block)(model.config, block.kind)
            _copy(fresh, block)
        if model.backbone.norm is not None:
            model.backbone.norm.weight.fill_(1)
        with _stream(seed, "tables"):
            initialise_tables(model)
        scale_outputs(model)


def initialise_tables(model: "SequenceModel") -> None:
    """Draw embedding (or input projection) and untied head."""
    std = 0.02 if model.config.form == "residual" else 0.1
    with torch.no_grad():
        for table in (model.embedding, model.head):
            if table is None:
                continue
            drawn = torch.empty(table.weight.shape, device=_drawing_device(table.weight))
            if table is model.embedding and isinstance(table, nn.Linear):
                _draw_projection(table, drawn)
                continue
            table.weight.copy_(drawn.normal_(std=std))
            if isinstance(table, nn.Linear) and table.bias is not None:
                table.bias.zero_()


def _draw_projection(table: nn.Linear, drawn: torch.Tensor) -> None:
    """Uniform in [-1/sqrt(C), 1/sqrt(C)], as torch draws an `nn.Linear`; ``drawn`` is where it is drawn."""
    bound = table.in_features**-0.5
    table.weight.copy_(drawn.uniform_(-bound, bound))
    table.bias.copy_(torch.empty_like(drawn[:, 0]).uniform_(-bound, bound))


def scale_outputs(model: "SequenceModel") -> None:
    """Divide the output projections of residual branches by the square root of the number of branches."""
    blocks = model.backbone.blocks
    if model.config.form != "residual":
        return
    branches = sum(2 if block.mlp is not None else 1 for block in blocks)
    with torch.no_grad():
        for block in blocks:
            for name, parameter in block.named_parameters():
                if name in OUTPUTS:
                    parameter.div_(branches**0.5)


def _drawing_device(weight: torch.Tensor) -> torch.device:
    return weight.device if weight.is_meta else torch.device("cpu")


def _copy(source: nn.Module, target: nn.Module) -> None:
    drawn = dict(source.named_parameters())
    for name, parameter in target.named_parameters():
        parameter.copy_(drawn[name])


@contextmanager
def _stream(seed: int, name: str) -> Iterator[None]:
    """Inside, torch's CPU generator starts from (seed, name) and new modules are made on the CPU."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_rng_state(before)
