"""Tables, progress bars, and no noise from libraries."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

from rich.console import Console
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table


def print_table(table: Table, console: Console) -> None:
    """Print a table of numbers: one too wide for the terminal is better scrolled than folded."""
    wide = Console(file=console.file, width=200)
    needed = Measurement.get(wide, wide.options, table).maximum
    Console(file=console.file, width=max(console.width, 120, needed)).print(table)


def progress_bar(console: Console) -> Progress:
    """Return a progress bar with the time that passed and the time left, on terminals alone."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def load_tensorflow(console: Console, *models: Path) -> None:
    """Import TensorFlow and find its devices without its ten lines on stderr.

    Where models are given, only if one of them needs it.
    """
    if models and all(m.suffix in (".onnx", ".tflite") or not m.exists() for m in models):
        return
    from vggkeras.runtimes.stderr import quiet_stderr

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with console.status("loading TensorFlow"), quiet_stderr():
        importlib.import_module("tensorflow").config.list_physical_devices()
