"""What each task minimises: a table from the task to the mean loss of a batch."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from quatrain.model.config import QUANTILES
from quatrain.model.loss import IGNORE, chunked_cross_entropy
from quatrain.model.sequence import SequenceModel

_CELLS = 2**22  # forecast values whose loss is taken at a time; more are thinned out evenly


def objective(
    model: SequenceModel,
    inputs: Tensor,
    targets: Tensor,
    lengths: Tensor | None = None,
    target_lengths: Tensor | None = None,
) -> Tensor:
    """Mean loss of a batch, a scalar in float32 or wider, for every task but lm (`LanguageModel.loss`).

    - classify: ``targets (B,)``; -log p(class) in nats, mean over sequences
    - tag: ``targets (B, T)``, -100 not scored; -log p(tag), mean over steps
    - transcribe: ``targets (B, L)`` with ``target_lengths (B,)``; connectionist temporal classification
      (Graves et al., ICML 2006), blank 0: -log p(labels) / labels, mean over sequences
    - forecast: ``targets (B, T + H, M)``, the target channels of the inputs' T steps and of H more; every
      step forecasts (Wen et al., arXiv:1711.11053): squared error of the mean, plus twice the mean pinball
      loss of the quantiles (Koenker and Bassett 1978), in units of the normalised series

    Raises ShapeError as `SequenceModel.hidden` does.
    """
    x, _ = model.hidden(inputs, lengths=lengths, keep_state=False)
    return OBJECTIVES[model.config.task](model, x, inputs, targets, lengths, target_lengths)


Objective = Callable[[SequenceModel, Tensor, Tensor, Tensor, Tensor | None, Tensor | None], Tensor]


def _classify(
    model: SequenceModel, x: Tensor, inputs: Tensor, targets: Tensor, lengths: Tensor | None, _: Tensor | None
) -> Tensor:
    return F.cross_entropy(_wide(model.read(x, inputs, lengths)), targets)


def _tag(
    model: SequenceModel, x: Tensor, inputs: Tensor, targets: Tensor, lengths: Tensor | None, _: Tensor | None
) -> Tensor:
    if lengths is not None:
        valid = torch.arange(targets.shape[1], device=targets.device) < lengths[:, None]
        targets = targets.masked_fill(~valid, IGNORE)
    bias = None if model.head is None else model.head.bias
    return chunked_cross_entropy(x, model.head_weight, targets, bias)


def _transcribe(
    model: SequenceModel,
    x: Tensor,
    inputs: Tensor,
    targets: Tensor,
    lengths: Tensor | None,
    target_lengths: Tensor | None,
) -> Tensor:
    logs = _wide(model.read(x, inputs)).log_softmax(-1).transpose(0, 1)  # (T, B, K)
    if lengths is None:
        lengths = torch.full((x.shape[0],), x.shape[1], device=x.device)
    if target_lengths is None:
        target_lengths = torch.full((targets.shape[0],), targets.shape[1], device=x.device)
    return F.ctc_loss(logs, targets, lengths, target_lengths, zero_infinity=True)


def _forecast(
    model: SequenceModel, x: Tensor, inputs: Tensor, targets: Tensor, lengths: Tensor | None, _: Tensor | None
) -> Tensor:
    config = model.config
    horizon, time = config.horizon, x.shape[1]
    ahead = targets[:, 1:].unfold(1, horizon, 1).transpose(2, 3)  # (B, T, H, M)
    thin = -(-x.shape[0] * time * config.outputs // _CELLS)
    keep = torch.arange(time - 1, -1, -thin, device=x.device).flip(0)
    return forecast_loss(model.forecasts(x[:, keep], inputs[:, keep]), ahead[:, keep])


def forecast_loss(forecast: Tensor, truth: Tensor) -> Tensor:
    """``forecast (..., 6)`` against ``truth (...)``: squared error of the mean, twice the pinball loss."""
    forecast = _wide(forecast)
    mean, quantiles = forecast[..., 0], forecast[..., 1:]
    levels = quantiles.new_tensor(QUANTILES)
    error = truth[..., None] - quantiles
    pinball = torch.maximum(levels * error, (levels - 1) * error).mean()
    return (mean - truth).square().mean() + 2 * pinball


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


OBJECTIVES: Mapping[str, Objective] = {
    "classify": _classify,
    "tag": _tag,
    "transcribe": _transcribe,
    "forecast": _forecast,
}
