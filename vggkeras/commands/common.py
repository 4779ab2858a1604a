"""What several commands share: the console, the flags of where a model computes, notes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vggkeras.provider import Provider
from vggkeras.terminal import Console, load_tensorflow

if TYPE_CHECKING:
    from vggkeras.data.splits import Data
    from vggkeras.runtimes import Predictor

console = Console()


@dataclass(frozen=True)
class Compute:
    """Where a model computes.

    Attributes:
        provider: tensorrt, mnn and openvino are for .onnx files alone; an error where the provider
            does not load. mnn and openvino compute on a CPU.
        threads: CPU threads of one operation; by default one for every core.
        trust_saved_model: Load a SavedModel even if its operators may touch files, sockets or
            Python.
        batch_sizes: The batches that a GPU is prepared for, of .onnx files of one image size; a
            single size becomes a CUDA graph. By default of any size, none in advance.
    """

    provider: Provider = "cpu"
    threads: int | None = None
    trust_saved_model: bool = False
    batch_sizes: tuple[int, ...] = ()

    def load(self, *models: Path) -> list[Predictor]:
        """Return models in their runtimes, TensorFlow's noise kept back.

        Those that are not known to be as vggkeras wrote them are named on stderr.

        Raises:
            InputError (a ValueError): as `vggkeras.load`.
        """
        from vggkeras import hub, runtimes
        from vggkeras.runtimes.providers import TF32_OVERRIDE

        if self.provider == "tensorrt":  # in this process nothing has read it yet
            os.environ.setdefault(TF32_OVERRIDE, "0")
        models = tuple(map(hub.local, models))
        load_tensorflow(console, *models)
        predictors = [
            runtimes.load(
                path,
                self.provider,
                threads=self.threads,
                trust_saved_model=self.trust_saved_model,
                batch_sizes=self.batch_sizes,
            )
            for path in models
        ]
        for predictor in predictors:
            if predictor.runtime != "keras" and predictor.sealed != "yes":
                why = {
                    "no": "it carries no checksums",
                    "foreign": "vggkeras did not write it, or it does not say so any more",
                }[predictor.sealed]
                print(f"{predictor.path}: sealed: {predictor.sealed} ({why})", file=sys.stderr)
        return predictors


def print_note(text: str) -> None:
    """Print text that may hold paths: not folded at the terminal's width, not colored."""
    console.print(text, soft_wrap=True, highlight=False)


def print_skipped(names: Sequence[str], file: Path | None) -> None:
    """Print which images could not be read, if any; of many the first, for `file` names all."""
    from vggkeras.data.decoding import NAMED, some

    if names:
        all_of_them = f"{file} names all" if file else "--json FILE names all"
        console.print(
            f"skipped {len(names):,} unreadable images: {some(names)}"
            + (f"; {all_of_them}" if len(names) > NAMED else ""),
            soft_wrap=True,
        )


def print_unread(data: Data) -> None:
    """Print how many files of class folders are not read, by suffix."""
    from vggkeras.data.reading import unread

    if data.unread:
        print_note(unread(data.unread))
