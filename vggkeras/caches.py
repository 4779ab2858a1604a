"""The user's cache folder: what can be made again, kept for as long as it holds."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from vggkeras.errors import InputError


def folder(name: str) -> Path | None:
    """Return a folder in XDG_CACHE_HOME or ~/.cache, which need not exist; None without a home."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(root):  # as the XDG specification says
        root = os.path.expanduser("~/.cache")
    return Path(root) / "vggkeras" / name if os.path.isabs(root) else None


def open_own(path: Path) -> BinaryIO:
    """Open a regular file that this user wrote.

    Raises:
        OSError: there is none, or it cannot be read.
        InputError (a ValueError): it is something else, or somebody else's.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb")
    status = os.fstat(file.fileno())
    owner = getattr(os, "getuid", lambda: status.st_uid)()
    if not stat.S_ISREG(status.st_mode) or status.st_uid != owner:
        file.close()
        raise InputError(f"{path} is no entry of this user's cache: remove it.")
    return file
