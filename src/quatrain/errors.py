"""Every exception this package raises on purpose.

QuatrainError
|-- ConfigError     (ValueError)   a config file, flag or field the user can fix
|-- DataError       (ValueError)   input data that is missing, empty, too short or unreadable
|-- ShapeError      (ValueError)   a tensor argument has the wrong shape, dtype or device
|-- StateError      (RuntimeError) a stale, foreign or mis-sized recurrent state
|-- NoKernelError   (RuntimeError) no implementation of an op can run these inputs
|-- CheckpointError (RuntimeError) missing, truncated, altered, foreign or of another version
|-- DivergedError   (RuntimeError) a loss, gradient or parameter became NaN or infinite
|-- OutOfMemoryError (MemoryError) the machine has less memory than the work takes; says what would fit
`-- MissingExtraError (ImportError) a feature needs an optional extra; the message says which
"""

import re
from collections.abc import Mapping


class QuatrainError(Exception):
    """Base of every exception this package raises on purpose; the command line exits with 2."""


class ConfigError(QuatrainError, ValueError):
    """A config value the user can fix; the message names the key path, the value and the rule."""


class DataError(QuatrainError, ValueError):
    """Input data that cannot be used; the message names the source and the rule."""


class ShapeError(QuatrainError, ValueError):
    """A tensor argument has the wrong shape, dtype or device."""


class StateError(QuatrainError, RuntimeError):
    """A recurrent state is stale, of another mixer, or of another batch size."""


class NoKernelError(QuatrainError, RuntimeError):
    """No registered implementation accepts these inputs."""


class CheckpointError(QuatrainError, RuntimeError):
    """A checkpoint cannot be read or written; the message names the file and the reason."""


class DivergedError(QuatrainError, RuntimeError):
    """Training met NaN or infinity; the message names the step, the tensor and the last good checkpoint."""


class OutOfMemoryError(QuatrainError, MemoryError):
    """Memory ran out; the message says what would fit.

    ``fits`` holds the settings that were tried and fit, by key; it is empty where none did or none was tried.
    """

    def __init__(self, message: str, fits: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.fits = dict(fits or {})


class MissingExtraError(QuatrainError, ImportError):
    """A feature needs an optional extra, for example ``pip install 'quatrain[report]'``."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether memory could not be had, on a GPU or a CPU; torch tells it by several types and texts."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)
    found = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(part in text for part in found)


def shortage(error: BaseException) -> str:
    """How much was asked for when memory ran out: " (2.00 GiB more were asked for)"; "" where unknown."""
    found = re.search(r"[Tt]ried to allocate ([\d.]+) ?(bytes|[KMGT]iB)", str(error))
    if not found:
        return ""
    number, unit = found.groups()
    amount = f"{int(number) / 2**20:,.1f} MiB" if unit == "bytes" and number.isdigit() else f"{number} {unit}"
    return f" ({amount} more were asked for)"
