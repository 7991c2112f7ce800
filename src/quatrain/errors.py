"""Every exception this package raises on purpose.

QuatrainError
|-- ConfigError     (ValueError)   a config file, flag or field the user can fix
|-- DataError       (ValueError)   input data that is missing, empty, too short or unreadable
|-- ShapeError      (ValueError)   a tensor argument has the wrong shape, dtype or device
|-- StateError      (RuntimeError) a stale, foreign or mis-sized recurrent state
|-- NoKernelError   (RuntimeError) no implementation of an op can run these inputs
|-- CheckpointError (RuntimeError) missing, truncated, altered, foreign or of another version
|-- DivergedError   (RuntimeError) a loss, gradient or parameter became NaN or infinite
`-- MissingExtraError (ImportError) a feature needs an optional extra; the message says which
"""


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


class MissingExtraError(QuatrainError, ImportError):
    """A feature needs an optional extra, for example ``pip install 'quatrain[report]'``."""
