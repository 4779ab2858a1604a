"""What commands show: wide tables, the progress bar of what takes long, and no noise from libraries."""

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
    Console(
        file=console.file,
        width=max(console.width, 120, Measurement.get(wide, wide.options, table).maximum),
    ).print(table)


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


def load_tensorflow(console: Console, *models: Path) -> None:
    """Import TensorFlow and find its devices without its ten lines on stderr; only where one of `models` needs it."""
    if models and all(
        model.suffix in (".onnx", ".tflite") or not model.exists() for model in models
    ):
        return
    from vggkeras.runtimes.stderr import quiet_stderr

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with console.status("loading TensorFlow"), quiet_stderr():
        importlib.import_module("tensorflow").config.list_physical_devices()
