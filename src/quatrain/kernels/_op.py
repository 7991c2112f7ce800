"""The one place where a kernel implementation is chosen."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from quatrain.errors import NoKernelError

Arguments = dict[str, Any]  # argument name -> tensor, None (absent optional tensor) or flag


@dataclass(frozen=True)
class Case:
    """One configuration of an op that tests and benchmarks run.

    Attributes:
        dims: sizes by their letter, e.g. ``{"B": 2, "T": 63, "E": 5, "N": 4}``.
        optional: optional tensor arguments that are present, index tensors included.
        flags: keyword flags, e.g. ``{"softplus": True}``.
    """

    dims: Mapping[str, int]
    optional: tuple[str, ...] = ()
    flags: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Short readable identity, used as a test id and in benchmark rows."""
        sizes = "".join(f"{k}{v}" for k, v in self.dims.items())
        return "-".join([sizes, *self.optional, *(f"{k}={v}" for k, v in self.flags.items())])


@dataclass(frozen=True)
class Impl:
    """One way to compute an op.

    Attributes:
        name: unique within the op, e.g. ``"torch"``, ``"cpp"``, ``"triton"``.
        fn: same arguments (by keyword) and results as the op's reference.
        why_not: reason it cannot run on these arguments, or ``None`` if it can; reads metadata only.
    """

    name: str
    fn: Callable[..., tuple[Tensor, ...]]
    why_not: Callable[[Arguments], str | None] = lambda arguments: None


@dataclass(frozen=True)
class Op:
    """A kernel op: one meaning (the reference), several implementations.

    Attributes:
        name: name of the public function.
        reference: the readable definition; in float64 it is the truth.
        impls: implementations in order of preference.
        example: fresh float64 CPU arguments for a case (every argument the reference takes, by name).
        cases: what the kernel test and the benchmark iterate over.
        outputs: names of the results, in order.
        operand_rounding: the definition rounds operands inside its recurrence; its reference takes an
            ``operand_dtype``.
        slack: error allowed, as a multiple of the plain reference's error.
    """

    name: str
    reference: Callable[..., tuple[Tensor, ...]]
    impls: tuple[Impl, ...]
    example: Callable[[Case, torch.Generator], Arguments]
    cases: tuple[Case, ...]
    outputs: tuple[str, ...]
    operand_rounding: bool = False
    slack: float = 2.0

    def choose(self, arguments: Arguments, impl: str = "auto") -> Impl:
        """Return the implementation that :meth:`run` would use, without running it.

        The definition runs only if asked for by the name ``"reference"``: it is slow.

        Raises:
            NoKernelError: ``impl`` is unknown, or every candidate declined; the message
                lists each candidate with its reason.
        """
        if impl == "reference":
            return Impl("reference", self.reference)
        declined: dict[str, str] = {}
        for candidate in self.impls:
            if impl not in ("auto", candidate.name):
                continue
            reason = candidate.why_not(arguments)
            if reason is None:
                return candidate
            declined[candidate.name] = reason
        known = ", ".join(("auto", *(c.name for c in self.impls), "reference"))
        detail = "; ".join(f"{n}: {r}" for n, r in declined.items()) or f"must be one of {known}"
        raise NoKernelError(f"{self.name}: impl = {impl!r}: no implementation runs ({detail})")

    def run(self, arguments: Arguments, impl: str = "auto") -> tuple[Tensor, ...]:
        """Run the chosen implementation on checked arguments, autocast off: an op has its own precision."""
        fn = self.choose(arguments, impl).fn
        device = next(x for x in arguments.values() if isinstance(x, Tensor)).device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return fn(**arguments)
        return fn(**arguments)
