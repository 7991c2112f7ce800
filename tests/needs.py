"""What some tests need, and what they say where it is not there."""

import pytest

from quatrain.kernels import _core

core = pytest.mark.skipif(
    _core.missing() is not None, reason=f"needs the C++ core, which is not usable here: {_core.missing()}"
)
