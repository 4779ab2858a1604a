"""What a training run goes on from after kill -9: every variable and the state beside them, in one file a checkpoint.

A file is written beside and renamed, so that it is whole or not there. The last two are kept: one that a failing disk has
cut or changed is noticed by the checksums of its archive, and the one before it is used.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vggkeras import files

KEPT = 2


def save(folder: Path, step: int, arrays: Sequence[np.ndarray], state: dict[str, Any]) -> None:
    """Write `folder`/STEP.npz, and remove all but the last two checkpoints."""
    named = {f"{i:04d}": array for i, array in enumerate(arrays)}
    with files.replacing(folder / f"{step:09d}.npz") as beside, open(beside, "wb") as file:
        # To a file object, for np.savez would add its suffix to a name.
        np.savez(file, state=np.frombuffer(json.dumps(state).encode(), np.uint8), **named)  # type: ignore[arg-type]
    for path in newest_first(folder)[KEPT:]:
        path.unlink()


def load(folder: Path) -> tuple[list[np.ndarray], dict[str, Any] | None, list[str]]:
    """The newest whole checkpoint: (arrays, state, damaged).

    The state is None where there is no whole one; `damaged` says what is wrong with each that was passed over.
    """
    damaged: list[str] = []
    for path in newest_first(folder):
        try:
            with np.load(path, allow_pickle=False) as file:
                names = sorted(name for name in file.files if name != "state")
                return [file[name] for name in names], json.loads(file["state"].tobytes()), damaged
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            damaged.append(f"{path} is damaged ({error})")
    return [], None, damaged


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints of a folder, by step."""
    return sorted(folder.glob("*.npz"), reverse=True)
