"""Checkpoints for exact resume: every variable and how far the run has come, one file each.

A file is written beside its place and renamed, so that it is whole or absent. The last two are
kept: where a failing disk has cut or changed the newest, the checksums of its archive show it, and
the one before is used.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vggkeras import archives, files

KEPT = 2


@dataclass
class State:
    """How far a run has come."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the epoch under way
    rows: list[dict[str, float]] = field(default_factory=list)  # of history.csv
    best: dict[str, float] | None = None  # the row of the epoch whose model is kept
    waited: int = 0  # epochs since validation accuracy improved or the learning rate dropped
    drops: int = 0  # of the learning rate, each to a tenth
    finished: bool = False
    seconds: float = 0.0  # spent on training


@dataclass(frozen=True)
class Checkpoint:
    """What one file holds."""

    arrays: list[np.ndarray]  # the variables of the model and its optimizer, then of its metrics
    state: State


def save(folder: Path, number: int, arrays: Sequence[np.ndarray], state: State) -> None:
    """Write `folder`/NUMBER.npz, and remove all but the last two checkpoints."""
    named = {f"{i:04d}": array for i, array in enumerate(arrays)}
    # A damaged directory of the archive can hide entries: how many there are is said inside.
    text = json.dumps(dataclasses.asdict(state) | {"arrays": len(arrays)}).encode()
    with files.replacing(folder / f"{number:09d}.npz") as beside, open(beside, "wb") as file:
        # np.savez adds its suffix to a name, but not to a file object.
        np.savez(file, state=np.frombuffer(text, np.uint8), **named)  # type: ignore[arg-type]
    for path in newest_first(folder)[KEPT:]:
        files.remove(path)


def load(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest whole checkpoint, and what is wrong with each newer one."""
    damaged: list[str] = []
    for path in newest_first(folder):
        try:
            return _read(path), damaged
        except archives.DAMAGED as error:
            damaged.append(f"{path} is damaged ({type(error).__name__}: {error})")
    return None, damaged


def _read(path: Path) -> Checkpoint:
    with zipfile.ZipFile(path) as archive:
        archives.check_members(archive)
    with np.load(path, allow_pickle=False) as file:
        names = sorted(file.files)
        if names != [*(f"{i:04d}" for i in range(len(names) - 1)), "state"]:
            raise ValueError(f"it holds {', '.join(names)[:100]}")
        values = json.loads(file["state"].tobytes())
        if values.pop("arrays", len(names) - 1) != len(names) - 1:  # earlier versions do not say
            raise ValueError("some of its arrays are missing")
        state = State(**values)
        arrays = [file[name] for name in names[:-1]]
        if not all(isinstance(array, np.ndarray) for array in arrays):  # NumPy gives it as bytes
            raise ValueError("one of its arrays is empty")
        return Checkpoint(arrays, state)


def newest_first(folder: Path) -> list[Path]:
    """Return the checkpoint files of a folder, the newest first."""
    return sorted(folder.glob("*.npz"), reverse=True)
