"""A user's mistake, and the exit code it ends a command with."""

from __future__ import annotations

import sys
from collections.abc import Callable


class InputError(ValueError):
    """Bad input. The message says what was expected, what was received, and what to do."""


def run_command(command: Callable[[], int]) -> int:
    """Run a command's body; a user's mistake and a disk that refuses become one line on stderr and exit code 2."""
    try:
        return command()
    except (InputError, OSError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what was saved so far is kept", file=sys.stderr)
        return 130
