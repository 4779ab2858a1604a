"""Tables, what is said while work goes on, and no noise from libraries.

On a terminal, bars and spinners move. Elsewhere (logs, notebooks) each phase begins with a line,
and after `SILENCE` seconds without one there is another.
"""

from __future__ import annotations

import importlib
import io
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from operator import length_hint
from pathlib import Path
from typing import Any, TypeVar, cast

import rich.console
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.status import Status
from rich.table import Column, Table
from rich.text import Text

from vggkeras.errors import visible

SILENCE = 30.0  # seconds without a line after which there is one, where there is no terminal

T = TypeVar("T")
NOTEBOOK = "JPY_PARENT_PID"  # set for what a notebook's kernel starts


class Console(rich.console.Console):
    """A console that prints text as it is, for it may hold names of files and classes.

    Nothing in it is markup or the code of an emoji, and no character of it acts on the terminal.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Take the arguments of rich's console."""
        if NOTEBOOK in os.environ and "file" not in options:
            # What a notebook runs as !command has a terminal on which nothing can move.
            options = {"force_terminal": False, **options}
        super().__init__(*arguments, **options)
        self.last_line = self.get_time()  # when something was printed last

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, and remember when."""
        self.last_line = self.get_time()
        super().print(*objects, **options)

    @property
    def is_silent(self) -> bool:
        """Whether nothing was printed for `SILENCE` seconds."""
        return self.get_time() - self.last_line >= SILENCE

    def render_str(self, text: str, **options: Any) -> Text:
        """Return what all strings become that are printed, cells of tables too."""
        return super().render_str(visible(text), **options | {"markup": False, "emoji": False})

    def status(self, status: rich.console.RenderableType, **options: Any) -> Status:
        """Show what is being done, with a spinner; in lines where there is no terminal."""
        shown = Text(visible(status)) if isinstance(status, str) else status
        return super().status(shown, **options) if self.is_terminal else _Lines(shown, self)


class _Lines(Status):
    """A status without a spinner: a line when it begins, and one after each silence."""

    def __init__(self, status: rich.console.RenderableType, console: Console) -> None:
        super().__init__(status, console=rich.console.Console(file=io.StringIO()))
        self.said, self.ended = console, threading.Event()
        self.thread = threading.Thread(target=self._say_more, daemon=True)

    def start(self) -> None:
        self.began = self.said.get_time()
        self.said.print(self.status, soft_wrap=True, highlight=False)
        self.thread.start()

    def stop(self) -> None:
        self.ended.set()

    def _say_more(self) -> None:
        while not self.ended.wait(SILENCE):
            seconds = self.said.get_time() - self.began
            text = Text.assemble(cast(Text, self.status), f": {duration(seconds)} so far")
            self.said.print(text, soft_wrap=True, highlight=False)


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
        get_time=console.get_time,
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


class _ProgressLines(Progress):
    """A progress bar in lines: one when a task begins, and one after each silence.

    A line is printed where the work is done, so that none comes between the parts of another.
    """

    def __init__(self, console: Console, unit: str, announced: bool) -> None:
        super().__init__(console=console, disable=True)
        self.lines, self.unit, self.announced = console, unit, announced

    def add_task(self, description: str, *args: Any, **options: Any) -> TaskID:
        number = super().add_task(description, *args, **options)
        self.first = self._tasks[number].completed
        if self.announced:
            task = self._tasks[number]
            begun = f"{self.first:,.0f} of " if self.first else ""
            self._print(f"{description}: {begun}{task.total or 0:,.0f} {self.unit}")
        return number

    def update(self, task_id: TaskID, **options: Any) -> None:
        super().update(task_id, **options)
        self._after_silence(self._tasks[task_id])

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._after_silence(self._tasks[task_id])

    def track(
        self,
        sequence: Iterable[T],
        total: float | None = None,
        completed: int = 0,
        task_id: TaskID | None = None,
        description: str = "working",
        update_period: float = 0.1,
    ) -> Iterator[T]:
        total = length_hint(sequence) if total is None else total
        number = self.add_task(description, total=total, completed=completed)
        for item in sequence:
            yield item
            self.advance(number)

    def _after_silence(self, task: Task) -> None:
        if not self.lines.is_silent:
            return
        done, total = task.completed, task.total or 0
        line = f"{task.description}: {done:,.0f} of {total:,.0f} {self.unit}"
        if done > self.first and done < total:
            elapsed = task.elapsed or 0.0
            left = elapsed * (total - done) / (done - self.first)
            speed = rate(done - self.first, elapsed)
            line += f" ({done / total:.0%}), {speed} {self.unit}/s, about {duration(left)} left"
        self._print(line)

    def _print(self, line: str) -> None:
        self.lines.print(Text(visible(line)), soft_wrap=True, highlight=False)


def duration(seconds: float) -> str:
    """Return a time in words: 45 s, 12 min, 3 h 20 min."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def rate(count: float, seconds: float) -> str:
    """Return a rate with three digits, whole from a thousand on; "?" where no time has passed."""
    if seconds <= 0:
        return "?"
    return f"{count / seconds:,.0f}" if count >= 1000 * seconds else f"{count / seconds:.3g}"


class _Rate(ProgressColumn):
    """How many are done in a second, of late."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{rate(task.speed, 1)} {self.unit}/s" if task.speed else "")


def progress_bar(
    console: rich.console.Console, unit: str = "images", *, announced: bool = True
) -> Progress:
    """Return a progress bar with the rate, the time that passed and the time left.

    Where there is no terminal it prints lines: "reading photos/train: 45,000 images", and after
    each silence "reading photos/train: 18,200 of 45,000 images (40%), 607 images/s, about 45 s
    left".

    Args:
        console: where it is shown.
        unit: what is counted, in the plural.
        announced: whether there is a line at the beginning, where there is no terminal.
    """
    if not console.is_terminal:
        return _ProgressLines(plain(console), unit, announced)
    return Progress(
        _Description(table_column=Column(no_wrap=True)),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


def load_tensorflow(console: rich.console.Console, *models: Path) -> None:
    """Import TensorFlow and find its devices without its ten lines on stderr.

    Where models are given, only if one of them needs it.
    """
    if models and all(m.suffix in (".onnx", ".tflite") or not m.exists() for m in models):
        return
    from vggkeras.runtimes.stderr import quiet_stderr

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # It is no work on anybody's data, and what a command prints elsewhere may be its answers.
    spinner = console.status("loading TensorFlow") if console.is_terminal else nullcontext()
    with spinner, quiet_stderr():
        importlib.import_module("tensorflow").config.list_physical_devices()
