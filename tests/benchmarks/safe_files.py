"""Measure what it costs a training to be safe from kills, power cuts and other processes.

    python tests/benchmarks/safe_files.py [EPOCHS]

Trains a tiny network on digits, and adds up the seconds spent on the lock of its folder, on claims,
and on waiting for the disk. Prints the ratio of the whole to the rest. The epochs are short, each
with its checkpoint: larger trainings pay less.
"""

from __future__ import annotations

import contextlib
import functools
import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console

import vggkeras
from vggkeras import files, locks

spent = [0.0]


def timed(function: Callable) -> Callable:
    """Return a function whose seconds are added to those spent."""

    @functools.wraps(function)
    def timing(*arguments: Any) -> Any:
        start = time.monotonic()
        try:
            return function(*arguments)
        finally:
            spent[0] += time.monotonic() - start

    return timing


def main(epochs: int) -> None:
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(contextlib.chdir(folder))  # runs/latest goes there
        for module, name in ((files, "_sync"), (locks, "acquire"), (locks, "release")):
            stack.enter_context(mock.patch.object(module, name, timed(getattr(module, name))))
        start = time.monotonic()
        recipe = vggkeras.Recipe(
            "A", "digits", Path("run"), width=0.1, fc_units=64, epochs=epochs, batch_size=64
        )
        vggkeras.train(recipe, Console(file=io.StringIO()))
        seconds = time.monotonic() - start
    print(f"{spent[0]:.2f} s of {seconds:.2f} s, ratio {seconds / (seconds - spent[0]):.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 10)
