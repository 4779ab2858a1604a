"""Say what this machine has and what really loads: `python -m vggkeras doctor`."""

from __future__ import annotations

from dataclasses import dataclass

from vggkeras.commands.common import console


@dataclass(frozen=True)
class Doctor:
    """Show versions, devices, which runtimes really load, and what to install where they do not."""

    def run(self) -> int:
        """Examine this machine."""
        from vggkeras.doctor import examine

        return examine(console)
