"""Cross-entropy of rows of logits."""

import torch
from torch import Tensor

from quatrain.errors import ShapeError
from quatrain.kernels._check import Checker
from quatrain.kernels._op import Arguments, Case, Impl, Op
from quatrain.kernels.cross_entropy import cuda, torch_loss
from quatrain.kernels.cross_entropy.reference import IGNORE as IGNORE
from quatrain.kernels.cross_entropy.reference import cross_entropy_reference


def cross_entropy(logits: Tensor, targets: Tensor, *, impl: str = "auto") -> Tensor:
    """log(sum_v exp(x_v)) - x_target of each row, in nats; 0 where the target is -100.

    Args:
        logits: (R, V).
        targets: (R,) int64, each in [0, V) or -100. Contents are checked on the CPU only; elsewhere a wrong
            one gives NaN or an error of the device, and nothing is read out of bounds.
        impl: ``"auto"``, an implementation's name, or ``"reference"``.

    Returns:
        (R,) in float32 or wider. Gradient of logits, in their dtype.

    Raises:
        ShapeError: an argument's shape, dtype or device is wrong, or a target on the CPU out of range.
        NoKernelError: ``impl`` cannot run these arguments.

    Cost: one exponential per logit, two with the gradient; reads the logits once and writes as many slopes.
    """
    check = Checker("cross_entropy", "logits", logits, "R V")
    if not isinstance(targets, Tensor):
        raise ShapeError(f"cross_entropy: targets: a {type(targets).__name__}: must be a tensor")
    if targets.dtype != torch.int64 or targets.shape != logits.shape[:1] or targets.device != logits.device:
        got = f"shape {tuple(targets.shape)} of {targets.dtype} on {targets.device}"
        rule = f"must be (R,) = ({check.sizes['R']},) of torch.int64 on {logits.device}"
        raise ShapeError(f"cross_entropy: targets: {got}: {rule}")
    if targets.device.type == "cpu":
        wrong = targets[((targets < 0) & (targets != IGNORE)) | (targets >= logits.shape[1])]
        if wrong.numel():
            rule = f"must lie in [0, {logits.shape[1]}) or be {IGNORE}"
            raise ShapeError(f"cross_entropy: targets: {int(wrong[0])}: {rule}")
    (loss,) = OP.run({"logits": logits, "targets": targets}, impl)
    return loss


def _example(case: Case, rng: torch.Generator) -> Arguments:
    rows, vocab = case.dims["R"], case.dims["V"]
    targets = torch.randint(0, vocab, (rows,), generator=rng)
    if case.flags.get("ignored", False):
        targets[::3] = IGNORE
    return {"logits": 3 * torch.randn(rows, vocab, generator=rng, dtype=torch.float64), "targets": targets}


OP = Op(
    name="cross_entropy",
    reference=cross_entropy_reference,
    impls=(Impl("nvrtc", cuda.run, cuda.why_not), Impl("torch", torch_loss.run)),
    example=_example,
    cases=(
        Case({"R": 1, "V": 1}),
        Case({"R": 5, "V": 7}),
        Case({"R": 3, "V": 5000}),
        Case({"R": 7, "V": 264}, (), {"ignored": True}),
    ),
    outputs=("loss",),
)
