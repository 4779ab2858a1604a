"""Measure what it costs a training to be safe from kills, power cuts and other processes.

    python tests/benchmarks/safe_files.py [ROUNDS]

Trains a tiny network on digits for three epochs, in turn as it is and plainly: without the lock of
its folder, without claims, and without waiting for the disk. Prints the seconds of each, and the
ratio of the medians. The files are small and the steps short: larger trainings pay less.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from rich.console import Console

import vggkeras
from vggkeras import files, locks


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """Write files beside their places, and rename them: no more."""

    def unlocked(path: Path) -> int:
        path.parent.mkdir(parents=True, exist_ok=True)
        return locks.NO_LOCK

    with (
        mock.patch.object(files, "_sync", return_value=None),
        mock.patch.object(locks, "locked", return_value=contextlib.nullcontext(True)),
        mock.patch.object(locks, "acquire_own", unlocked),
    ):
        yield


def seconds(recipe: vggkeras.Recipe, way: contextlib.AbstractContextManager) -> float:
    """Return how long a training takes."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), way:
        start = time.monotonic()
        vggkeras.train(
            dataclasses.replace(recipe, out=Path(folder) / "run"), Console(file=io.StringIO())
        )
        return time.monotonic() - start


def main(rounds: int) -> None:
    recipe = vggkeras.Recipe("A", "digits", width=0.1, fc_units=64, epochs=3, batch_size=64)
    seconds(recipe, plainly())  # imports, and what TensorFlow does once
    safe, plain = [], []
    for _ in range(rounds):
        safe.append(seconds(recipe, contextlib.nullcontext()))
        plain.append(seconds(recipe, plainly()))
    print("safe: ", ", ".join(f"{value:.2f} s" for value in safe))
    print("plain:", ", ".join(f"{value:.2f} s" for value in plain))
    print(f"ratio: {statistics.median(safe) / statistics.median(plain):.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 5)
