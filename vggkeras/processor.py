"""The processor that computes here.

int8 kernels differ by instruction set, so a proof says on what processor it was made.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What runtimes choose their int8 and float kernels by, as py-cpuinfo names the flags.
INSTRUCTION_SETS = {
    "avx2": "AVX2",
    "fma": "FMA",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX VNNI",
    "amx_int8": "AMX",
    "asimd": "NEON",
    "asimddp": "NEON dot product",
    "i8mm": "NEON i8mm",
}


@dataclass(frozen=True)
class Processor:
    """A processor, as far as it decides which kernels a runtime takes."""

    name: str
    architecture: str  # x86_64, arm64, …
    instruction_sets: tuple[str, ...]  # of INSTRUCTION_SETS

    def to_json(self) -> dict[str, Any]:
        """Return what travels in a certificate."""
        return {
            "name": self.name,
            "architecture": self.architecture,
            "instruction_sets": list(self.instruction_sets),
        }

    def is_like(self, other: Processor) -> bool:
        """Return whether both have the same instruction sets, and so the same kernels."""
        return (self.architecture, set(self.instruction_sets)) == (
            other.architecture,
            set(other.instruction_sets),
        )

    def __str__(self) -> str:
        """Return the processor in words: AMD EPYC (x86_64: AVX2, FMA)."""
        sets = ", ".join(self.instruction_sets) or "none of the instruction sets for int8"
        return f"{self.name} ({self.architecture}: {sets})"


@functools.cache
def this_processor() -> Processor | None:
    """Return the processor of this machine; None where it needs py-cpuinfo, which is not installed.

    `export.verify` needs NumPy, Pillow and a runtime alone, and so does without it. Linux says it
    itself on most machines; elsewhere the first call takes py-cpuinfo's child process, and about a
    second.
    """
    name, flags = _as_linux_says()
    if not name or not flags:
        try:
            import cpuinfo
        except ModuleNotFoundError:
            return None
        info = cpuinfo.get_cpu_info()
        name, flags = info.get("brand_raw"), info.get("flags", ())
    return Processor(
        name or platform.processor() or "unknown processor",
        platform.machine(),
        tuple(name for flag, name in INSTRUCTION_SETS.items() if flag in flags),
    )


def _as_linux_says() -> tuple[str | None, Sequence[str]]:
    """Return the name and the flags of the first core in /proc/cpuinfo, as far as they are there.

    py-cpuinfo would ask in a child process, which stays when this one is killed.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return None, ()
    fields = {name.strip(): value.strip() for name, _, value in (s.partition(":") for s in lines)}
    return fields.get("model name"), fields.get("flags", fields.get("Features", "")).split()
