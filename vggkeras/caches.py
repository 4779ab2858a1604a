"""Where a user's caches lie."""

from __future__ import annotations

import os
from pathlib import Path


def folder(name: str) -> Path | None:
    """Return a cache's folder: in XDG_CACHE_HOME or ~/.cache; None without a home."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(root):  # as the XDG specification says
        root = os.path.expanduser("~/.cache")
    return Path(root) / "vggkeras" / name if os.path.isabs(root) else None
