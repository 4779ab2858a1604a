"""A user's mistake, and the exit code it ends a command with."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class InputError(ValueError):
    """Bad input. The message says what was expected, what was received, and what to do."""


def parsed(parse: Callable[[], T]) -> T:
    """What a tyro command line gives; tyro's framed message of a wrong one becomes an InputError of one line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parse()
    except SystemExit as stop:
        if not stop.code:  # help was asked for
            raise
    rows = [
        line.strip("│ ") for line in said.getvalue().splitlines() if not line.startswith(("╭", "╰"))
    ]
    raise InputError(" ".join(";" if set(row) == {"─"} else row for row in rows).replace(" ;", ";"))


def run_command(command: Callable[[], int]) -> int:
    """Run a command's body; a user's mistake and a disk that refuses become one line on stderr and exit code 2.

    A process that is asked to end (SIGTERM) ends as by Ctrl-C: it removes what it had half written.
    """

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    try:
        return command()
    except InputError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    except OSError as error:
        reason = " ".join(str(error).split())
        print(
            f"error: {reason}: check the path, its permissions and the free space, or give another path",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
