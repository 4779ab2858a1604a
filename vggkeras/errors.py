"""A user's mistake, and the exit code it ends a command with."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable


class InputError(ValueError):
    """Bad input. The message says what was expected, what was received, and what to do."""


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
        print(f"error: {reason}: check the path, its permissions and the free space, or give another", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; finished epochs and files are kept", file=sys.stderr)
        return 130
