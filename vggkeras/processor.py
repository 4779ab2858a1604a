"""The processor that computes here.

int8 kernels differ by instruction set, so a proof says on what processor it was made.
"""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass
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

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Processor:
        """Return what `to_json` wrote."""
        return cls(str(value["name"]), str(value["architecture"]), tuple(value["instruction_sets"]))

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
    """Return the processor of this machine; None where py-cpuinfo is not installed.

    `export.verify` needs NumPy, Pillow and a runtime alone, and so does without it. The first call
    takes about a second.
    """
    try:
        import cpuinfo
    except ModuleNotFoundError:
        return None
    info = cpuinfo.get_cpu_info()
    flags = set(info.get("flags", ()))
    return Processor(
        info.get("brand_raw") or platform.processor() or "unknown processor",
        platform.machine(),
        tuple(name for flag, name in INSTRUCTION_SETS.items() if flag in flags),
    )
