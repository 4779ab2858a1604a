"""What commands show: wide tables, the progress bar of what takes long, and no noise from libraries."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table


def print_table(table: Table, console: Console) -> None:
    """Print a table of numbers: one too wide for the terminal is better scrolled than folded."""
    wide = Console(file=console.file, width=200)
    Console(file=console.file, width=max(console.width, 120, Measurement.get(wide, wide.options, table).maximum)).print(
        table
    )


def progress_bar(console: Console) -> Progress:
    """What took how long, and how long it will take."""
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


@contextmanager
def quiet_stderr() -> Iterator[list[str]]:
    """Keep back what native libraries write to stderr while a block runs; it is in the yielded list afterwards."""
    said: list[str] = []
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        stderr = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            file.seek(0)
            said.append(file.read().decode(errors="replace"))


def load_tensorflow(console: Console, *models: Path) -> None:
    """Import TensorFlow and find its devices without its ten lines on stderr; only where one of `models` needs it."""
    if models and all(model.suffix in (".onnx", ".tflite") or not model.exists() for model in models):
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with console.status("loading TensorFlow"), quiet_stderr():
        importlib.import_module("tensorflow").config.list_physical_devices()
