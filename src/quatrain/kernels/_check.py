"""What every op refuses: tensors whose shape, dtype or device does not fit the first one's."""

import torch
from torch import Tensor

from quatrain.errors import QuatrainError, ShapeError, StateError

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that states and sums have: at least float32."""
    return torch.promote_types(dtype, torch.float32)


class Checker:
    """Checks of one call. Letters of shapes get their size from the first tensor that carries them.

    A shape is words of letters: ``"B T E"``. A word that is no known size yet takes the tensor's; sizes may
    also be set from outside (``checker.sizes["4D"] = 4 * width``).

    Attributes:
        sizes: letter -> size.
    """

    def __init__(self, op: str, name: str, x: object, shape: str) -> None:
        self._op = op
        self.sizes: dict[str, int] = {}
        if not isinstance(x, Tensor):
            raise ShapeError(f"{op}: {name}: a {type(x).__name__}: must be a tensor")
        if x.dtype not in FLOATS:
            raise ShapeError(f"{op}: {name}: dtype {x.dtype}: must be a floating-point type")
        self._first, self._dtype, self._device = name, x.dtype, x.device
        self._fit(name, x, shape, ShapeError)
        for letter, size in self.sizes.items():
            if size == 0:
                raise ShapeError(f"{op}: {name}: shape {tuple(x.shape)}: {letter} = 0 must be at least 1")

    def data(self, name: str, x: object, *shapes: str) -> None:
        """x has one of ``shapes`` and the dtype of the first tensor."""
        self._check(name, x, shapes, (self._dtype,), ShapeError)

    def parameter(self, name: str, x: object, *shapes: str) -> None:
        """x has one of ``shapes`` and the first tensor's dtype, or float32 if that is wider."""
        self._check(name, x, shapes, (self._dtype, wide_dtype(self._dtype)), ShapeError)

    def state(self, name: str, x: object, shape: str, *, wide: bool = True) -> None:
        """As `parameter`, or as `data` with ``wide=False``, but what does not fit is a StateError."""
        dtypes = (self._dtype, wide_dtype(self._dtype)) if wide else (self._dtype,)
        self._check(name, x, (shape,), dtypes, StateError)

    def refuse(self, name: str, x: Tensor, rule: str) -> None:
        """Raise ShapeError about the shape of x."""
        raise ShapeError(f"{self._op}: {name}: shape {tuple(x.shape)}: {rule}")

    def _check(
        self,
        name: str,
        x: object,
        shapes: tuple[str, ...],
        dtypes: tuple[torch.dtype, ...],
        error: type[QuatrainError],
    ) -> None:
        if not isinstance(x, Tensor):
            raise error(f"{self._op}: {name}: a {type(x).__name__}: must be a tensor")
        shape = next((s for s in shapes if len(s.split()) == x.ndim), shapes[0])
        self._fit(name, x, shape, error)
        if x.dtype not in dtypes:
            wanted = " or ".join(dict.fromkeys(map(str, dtypes)))
            raise error(f"{self._op}: {name}: dtype {x.dtype}: must be {wanted}, as {self._first}'s")
        if x.device != self._device:
            raise error(f"{self._op}: {name}: device {x.device}: must be {self._device}, as {self._first}'s")

    def _fit(self, name: str, x: Tensor, shape: str, error: type[QuatrainError]) -> None:
        letters = shape.split()
        got = tuple(x.shape)
        if len(got) == len(letters) and all(
            self.sizes.setdefault(letter, size) == size for letter, size in zip(letters, got, strict=True)
        ):
            return
        wanted = ", ".join(f"{n} = {self.sizes[n]}" if n in self.sizes else n for n in letters)
        raise error(f"{self._op}: {name}: shape {got}: must be ({wanted})")


def check_choice(op: str, name: str, value: object, known: tuple[str, ...]) -> None:
    """Raise ShapeError unless ``value`` is one of the words ``known``."""
    if value not in known:
        raise ShapeError(f"{op}: {name} = {value!r}: must be one of {', '.join(known)}")
