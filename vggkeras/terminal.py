"""Tables, progress bars, and no noise from libraries."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any, cast

import rich.console
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.status import Status
from rich.table import Column, Table
from rich.text import Text

from vggkeras.errors import visible


class Console(rich.console.Console):
    """A console that prints text as it is, for it may hold names of files and classes.

    Nothing in it is markup or the code of an emoji, and no character of it acts on the terminal.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """Return what all strings become that are printed, cells of tables too."""
        return super().render_str(visible(text), **options | {"markup": False, "emoji": False})

    def status(self, status: rich.console.RenderableType, **options: Any) -> Status:
        """Show what is being done, with a spinner."""
        shown = Text(visible(status)) if isinstance(status, str) else status
        return super().status(shown, **options)


def plain(console: rich.console.Console | None) -> Console:
    """Return a `Console` that prints where another one does; a new one for None."""
    if console is None or isinstance(console, Console):
        return console or Console()
    return Console(
        file=console.file,
        width=console.width,
        force_terminal=console.is_terminal,
        color_system=cast(Any, console.color_system),
        quiet=console.quiet,
    )


class _Description(ProgressColumn):
    """The description of what is tracked, as it is."""

    def render(self, task: Task) -> Text:
        return Text(visible(task.description))


def print_table(table: Table, console: rich.console.Console) -> None:
    """Print a table of numbers: one too wide for the terminal is better scrolled than folded."""
    wide = Console(file=console.file, width=200)
    needed = Measurement.get(wide, wide.options, table).maximum
    Console(file=console.file, width=max(console.width, 120, needed)).print(table)


def fits(table: Table, console: rich.console.Console) -> bool:
    """Return whether a table can be shown on a terminal without a fold."""
    wide = Console(width=1 << 16)
    return (
        console.is_terminal and Measurement.get(wide, wide.options, table).maximum <= console.width
    )


def progress_bar(console: rich.console.Console) -> Progress:
    """Return a progress bar with the time that passed and the time left, on terminals alone."""
    return Progress(
        _Description(table_column=Column(no_wrap=True)),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def load_tensorflow(console: rich.console.Console, *models: Path) -> None:
    """Import TensorFlow and find its devices without its ten lines on stderr.

    Where models are given, only if one of them needs it.
    """
    if models and all(m.suffix in (".onnx", ".tflite") or not m.exists() for m in models):
        return
    from vggkeras.runtimes.stderr import quiet_stderr

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with console.status("loading TensorFlow"), quiet_stderr():
        importlib.import_module("tensorflow").config.list_physical_devices()
