"""Keep back what native libraries print."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_stderr() -> Iterator[list[str]]:
    """Keep back what native libraries write to stderr while a block runs.

    The yielded list holds it afterwards.
    """
    captured: list[str] = []
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        stderr = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield captured
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            file.seek(0)
            captured.append(file.read().decode(errors="replace"))
