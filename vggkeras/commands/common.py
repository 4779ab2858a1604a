"""What several commands share: the console, the flags of where a model computes, notes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vggkeras.terminal import Console, load_tensorflow

if TYPE_CHECKING:
    from vggkeras.runtimes import Predictor

console = Console()


@dataclass(frozen=True)
class Compute:
    """Where a model computes.

    Attributes:
        provider: tensorrt is for .onnx files alone; an error where the provider does not load.
        threads: CPU threads of one operation; by default one for every core.
    """

    provider: Literal["cpu", "cuda", "tensorrt"] = "cpu"
    threads: int | None = None

    def load(self, *models: Path) -> list[Predictor]:
        """Return models in their runtimes, TensorFlow's noise kept back.

        Raises:
            InputError (a ValueError): as `vggkeras.load`.
        """
        from vggkeras import runtimes
        from vggkeras.runtimes.providers import TF32_OVERRIDE

        if self.provider == "tensorrt":  # in this process nothing has read it yet
            os.environ.setdefault(TF32_OVERRIDE, "0")
        load_tensorflow(console, *models)
        return [runtimes.load(path, self.provider, threads=self.threads) for path in models]


def print_note(text: str) -> None:
    """Print text that may hold paths: not folded at the terminal's width, not colored."""
    console.print(text, soft_wrap=True, highlight=False)


def print_skipped(names: Sequence[str]) -> None:
    """Print which images could not be read, if any."""
    if names:
        console.print(
            f"skipped {len(names)} unreadable images: " + ", ".join(names), soft_wrap=True
        )
