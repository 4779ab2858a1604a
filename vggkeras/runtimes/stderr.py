"""Keep back what native libraries print."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator

_TURN = threading.RLock()


@contextlib.contextmanager
def quiet_stderr() -> Iterator[list[str]]:
    """Keep back what native libraries write to stderr while a block runs.

    The yielded list holds it afterwards. stderr is the whole process': threads take turns.
    """
    captured: list[str] = []
    with _TURN, tempfile.TemporaryFile() as file:
        sys.stderr.flush()
        stderr = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield captured
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            file.seek(0)
            captured.append(file.read().decode(errors="replace"))
