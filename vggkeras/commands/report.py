"""Write a run or an export as one HTML page: `python -m vggkeras report runs/latest`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import tyro

from vggkeras.commands.common import console


@dataclass(frozen=True)
class Report:
    """Write a run or an export as one HTML page: curves, errors, classes, mistakes, files.

    Attributes:
        folder: A run's folder, or an export's.
        data: Whose validation images to evaluate on; by default the data the model was trained on.
        evaluation: Files that `evaluate --json` wrote, whose rows are shown too.
        benchmark: Files that `python -m export.benchmark --json` wrote, shown as bars and rows.
        out: The page; by default report.html in the folder.
        skip_unreadable: Go on without images that cannot be read, and say how many.
    """

    folder: tyro.conf.Positional[Path] = Path("runs/latest")
    data: str | None = None
    evaluation: tuple[Path, ...] = ()
    benchmark: tuple[Path, ...] = ()
    out: Path | None = None
    skip_unreadable: bool = False

    def run(self) -> int:
        """Write the page."""
        # Grad-CAM takes TensorFlow's gradients, whatever backend the model was trained on.
        os.environ["KERAS_BACKEND"] = "tensorflow"
        from vggkeras.report.page import report

        report(
            self.folder,
            self.data,
            self.evaluation,
            self.benchmark,
            self.out,
            console,
            skip_unreadable=self.skip_unreadable,
        )
        return 0
