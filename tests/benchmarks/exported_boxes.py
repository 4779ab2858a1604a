"""Hold exported networks of boxes against Keras, in px of the images that they locate in.

    python tests/benchmarks/exported_boxes.py --run RUN --data SPEC

The files of RUN/export that certificate.json names are shown every image's central crop, and give
the true class's box. A table has the largest distance of a coordinate from Keras', the mean IoU
with the true boxes, and how many images each localizes, gains and loses (IoU above 0.5).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import vggkeras
from vggkeras import certificate
from vggkeras.card import Form
from vggkeras.localization.evaluation import evaluate_boxes


@dataclass(frozen=True)
class Arguments:
    """Print how far each file's boxes are from Keras'."""

    run: Path
    """Folder of a run of boxes that was exported."""
    data: str
    """Images with boxes; all of them are shown."""


def main(arguments: Arguments) -> None:
    """Load every file, score all of them in one pass, and print a row each."""
    folder = arguments.run / "export"
    names = [n for n, entry in certificate.read(folder).items() if entry.form is Form.BOXES]
    models = [vggkeras.load(path) for path in (arguments.run, *(folder / name for name in names))]
    data = vggkeras.load_data(arguments.data, boxes=True, whole=True).upright(models[0].card.exif)
    keras, *rows = evaluate_boxes(models, data.split(data.default_split), data.class_names)
    table = Table(title=f"{keras.images} images; Keras localizes {keras.correct}")
    for column in ("file", "largest distance, px", "mean IoU", "localized", "gained", "lost"):
        table.add_column(column, justify="left" if column == "file" else "right")
    for name, row in zip(names, rows, strict=True):
        gained, lost = (row.right & ~keras.right).sum(), (keras.right & ~row.right).sum()
        distance, overlap = np.abs(row.boxes - keras.boxes).max(), row.given_class.mean()
        counts = (str(row.correct), str(gained), str(lost))
        table.add_row(name, f"{distance:.2g}", f"{overlap:.4f}", *counts)
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
