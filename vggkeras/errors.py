"""A user's mistake, and the exit code with which it ends a command."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# What acts on a terminal instead of being seen, or cannot be written as UTF-8: control characters
# (but for tab and newline), marks that turn the direction of writing, separators of lines, and
# what Python makes of bytes that are not UTF-8.
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


class InputError(ValueError):
    """Bad input. The message says what was expected, what was received, and what to do."""


def visible(text: str) -> str:
    """Return text with every character of `UNSEEN` as its escape in a JSON string."""
    return UNSEEN.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def parsed(parse: Callable[[], T]) -> T:
    """Return what a tyro command line gives.

    Raises:
        InputError: a wrong command line; tyro's framed message becomes one line.
    """
    refuse_empty_arguments()
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            return parse()
    except SystemExit as stop:
        if not stop.code:  # help was asked for
            raise
    frame = ("╭", "╰")
    rows = [row.strip("│ ") for row in stderr.getvalue().splitlines() if not row.startswith(frame)]
    rows = [row for row in rows if row]
    if set("".join(rows[1:2])) == {"-"}:  # where the terminal has no frames, their title is a row
        rows = rows[2:]
    message = " ".join(";" if set(row) <= {"─", "-"} else row for row in rows)
    raise InputError(message.replace(" ;", ";").replace(".;", "."))


def refuse_empty_arguments() -> None:
    """Check that no argument of this process is empty, as that of a shell variable that is not set.

    A path would be that of the current folder.

    Raises:
        InputError: one is; the message names what comes before it.
    """
    for before, argument in itertools.pairwise(["", *sys.argv[1:]]):
        name, equals, value = argument.partition("=")
        if equals and name.startswith("--") and not value:
            before, argument = name, ""
        if not argument.strip():
            raise InputError(
                f"Expected a value {f'after {before}' if before else 'first'}; received an empty "
                "string: give one, or leave it out."
            )


def run_command(command: Callable[[], int]) -> int:
    """Run a command, and return its exit code.

    A user's mistake and an error of the file system become one line on stderr and exit code 2. A
    process that is asked to end (SIGTERM) ends as by Ctrl-C: it removes what it had half written,
    and returns 130. Where the reader of its output went away (as `head` does), it ends without a
    message, and returns 141, as a program does that SIGPIPE ends.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    # Pillow's warning of large images: they are refused by name, or fit (vggkeras.data.decoding).
    warnings.filterwarnings("ignore", "Image size .* could be decompression bomb")
    try:
        return command()
    except InputError as error:
        message = str(error)
    except BrokenPipeError:
        # What is still buffered would fail once more when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        message = (
            f"{error}: check the path, its permissions and the free space, or give another path"
        )
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print("error: " + visible(" ".join(message.split())), file=sys.stderr)
    return 2
