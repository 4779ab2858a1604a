"""Keep back what native libraries print."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import tempfile
import threading
from collections.abc import Iterator

_TURN = threading.RLock()


@contextlib.contextmanager
def quiet_stderr(*, and_stdout: bool = False) -> Iterator[list[str]]:
    """Keep back what native libraries write to stderr while a block runs.

    The yielded list holds it afterwards. stderr is the whole process': threads take turns.

    Args:
        and_stdout: of stdout as well.
    """
    captured: list[str] = []
    descriptors = (2, 1) if and_stdout else (2,)
    with _TURN, tempfile.TemporaryFile() as file:
        sys.stderr.flush()
        sys.stdout.flush()
        copies = [os.dup(descriptor) for descriptor in descriptors]
        for descriptor in descriptors:
            os.dup2(file.fileno(), descriptor)
        try:
            yield captured
        finally:
            if and_stdout:  # C buffers what it prints, unless stdout is a terminal
                ctypes.CDLL("ucrtbase" if os.name == "nt" else None).fflush(None)
            for descriptor, copy in zip(descriptors, copies, strict=True):
                os.dup2(copy, descriptor)
                os.close(copy)
            file.seek(0)
            captured.append(file.read().decode(errors="replace"))
