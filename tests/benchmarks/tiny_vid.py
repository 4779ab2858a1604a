"""Make the paper's comparisons of localization (Appendix A) on tiny_vid, over seeds.

    python tests/benchmarks/tiny_vid.py --data shared/data/boxes/tiny_vid --init RUN --work tiny

A classifier is trained, and for every seed four networks of boxes from it (one box or one a class;
the fully connected layers alone or all), on the first 150 images of each class, of which a tenth
chooses the epoch. The last 30 are the test. What is trained is kept in --work, and not done again.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tyro
from rich.console import Console

import vggkeras
from vggkeras.recipe import Recipe

console = Console()
NETWORKS = (("scr", "fc"), ("pcr", "fc"), ("scr", "all"), ("pcr", "all"))
MODERN: dict[str, Any] = {
    "optimizer": "adamw",
    "schedule": "cosine",
    "warmup": 1,
    "ema": 0.99,
    "batch_size": 32,
    "learning_rate": 8e-3,  # for 256 images, so 1e-3 for 32
}


@dataclass(frozen=True)
class Arguments:
    """Train on tiny_vid for each seed, and print how the paper's comparisons turn out."""

    data: Path
    """Folder of tiny_vid, with boxes.csv."""
    work: Path
    """Folder for the list and the runs."""
    init: Path | None = None
    """A classifier to start from: A, batch normalization, a quarter of the filters, fc_units 256,
    64 px (`train --arch A --batch-norm --width 0.25 --fc-units 256 --image-size 64`)."""
    train: int = 150
    """Images of each class to train on; the others are the test."""
    seeds: int = 3
    scale: int = 96
    """S, px; crops are of 64 px."""
    epochs: tuple[int, int] = (25, 15)
    """Of the classifier, and of the boxes."""


def main(arguments: Arguments) -> None:
    """Train what is not there yet."""
    data = _list(arguments)
    _train(arguments, data, 0)
    for seed in range(arguments.seeds):
        for boxes, tune in NETWORKS:
            _train(arguments, data, seed, boxes, tune)


def _list(arguments: Arguments) -> Path:
    """Write the list of images, boxes and splits."""
    folder, path = arguments.data.resolve(), arguments.work / "images.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(folder / "boxes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    seen: Counter[str] = Counter()
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "split"])
        writer.writeheader()
        for row in rows:
            seen[row["label"]] += 1
            split = "train" if seen[row["label"]] <= arguments.train else "test"
            writer.writerow({**row, "file": folder / row["file"], "split": split})
    return path


def _train(arguments: Arguments, data: Path, seed: int, boxes: str = "", tune: str = "") -> Path:
    """Train the classifier, or a network of boxes that starts from it, unless it is there."""
    runs = arguments.work / "runs"
    classifier = runs / "classifier"
    out = runs / f"{boxes}-{tune}-{seed}" if boxes else classifier
    origin = classifier if boxes else arguments.init
    # Half of fc1 and fc2 dropped, boxes are hardly learned in so few steps.
    of_boxes = {"boxes": boxes, "tune": tune, "dropout": 0.0}
    options = of_boxes if boxes else {"label_smoothing": 0.1}
    recipe = Recipe(
        "A",
        str(data),
        out,
        image_size=64,
        scale=str(arguments.scale),
        width=0.25,
        fc_units=256,
        batch_norm=True,
        init_from=None if origin is None else str(origin),
        epochs=arguments.epochs[1 if boxes else 0],
        validation=0.1,
        seed=seed,
        **MODERN,
        **options,
    )
    vggkeras.train(recipe, console, resume=True)
    return out


if __name__ == "__main__":
    main(tyro.cli(Arguments))
