"""``python -m quatrain`` is the ``quatrain`` command."""

import sys

from quatrain.cli import main

sys.exit(main())
