"""Make the paper's comparisons of localization (Appendix A) on tiny_vid, over seeds.

    python tests/benchmarks/tiny_vid.py --data shared/data/boxes/tiny_vid --init RUN --work tiny

A classifier is trained, and for every seed four networks of boxes from it (one box or one a class;
the fully connected layers alone or all), on the first 150 images of each class, of which a tenth
chooses the epoch. The last 30 are the test. What is trained is kept in --work, and not done again.
Each comparison has the error of both sides, %, averaged over the seeds, their difference with its
95% interval (Student's t over the seeds), and the exact McNemar test of each seed.
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

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student

import vggkeras
from vggkeras import files
from vggkeras.data.splits import Data
from vggkeras.evaluation.statistics import Comparison
from vggkeras.localization.evaluation import Localization, evaluate_boxes
from vggkeras.recipe import Recipe

console = Console()
LARGER = 128  # the second test scale, px
# Before, after; "given": the class is given, else class and box must be right.
COMPARISONS = (
    ("scr-fc, given", "pcr-fc, given"),
    ("scr-all, given", "pcr-all, given"),
    ("scr-fc, given", "scr-all, given"),
    ("pcr-fc, given", "pcr-all, given"),
    ("pcr-all, center", "pcr-all, dense"),
    ("pcr-all, center", "pcr-all, multicrop"),
    ("pcr-all, dense", "pcr-all, dense, two scales"),
    ("pcr-all, multicrop", "pcr-all, multicrop, two scales"),
    ("pcr-all, multicrop", "pcr-all + scr-all, multicrop"),
)
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
    thresholds: tuple[float, ...] = ()
    """Instead, the validation images' wrong boxes by match score up to which boxes are merged."""
    json_file: Path | None = None
    """Write the errors of every way, a number a seed, to this file too."""


def main(arguments: Arguments) -> None:
    """Train what is not there yet, and print the comparisons."""
    path = _list(arguments)
    classifier = _train(arguments, path, 0)
    runs = [
        {f"{boxes}-{tune}": _train(arguments, path, seed, boxes, tune) for boxes, tune in NETWORKS}
        for seed in range(arguments.seeds)
    ]
    data = vggkeras.load_data(str(path), boxes=True, validation=0.1)
    if arguments.thresholds:
        _sweep(arguments, data, classifier, runs[0]["pcr-all"])
        return
    rows = [_rows(arguments, data, classifier, of_seed) for of_seed in runs]
    table = Table(
        title=f"error on {rows[0][COMPARISONS[0][0]].images} images, %; {len(rows)} seeds"
    )
    for column in ("", "instead of", "error", "its", "difference [95%]", "p of each seed"):
        table.add_column(column, justify="left" if column in ("", "instead of") else "right")
    for before, after in COMPARISONS:
        table.add_row(after, before, *_compared([(of[before], of[after]) for of in rows]))
    console.print(table)
    for name in dict.fromkeys(name for pair in COMPARISONS for name in pair):
        overlaps = [float(of_seed[name].given_class.mean()) for of_seed in rows]
        errors = [100 * of_seed[name].class_errors / of_seed[name].images for of_seed in rows]
        console.print(
            f"{name}: mean IoU {_list_of(overlaps, 3)}; class error {_list_of(errors, 1)}"
        )
    if arguments.json_file:
        errors = {name: [1 - of[name].accuracy for of in rows] for name in rows[0]}
        files.write_json(arguments.json_file, errors)


def _sweep(arguments: Arguments, data: Data, classifier: Path, run: Path) -> None:
    split = data.split("validation").turned(upright=True)
    model, clf = vggkeras.load(run), vggkeras.load(classifier)
    for threshold in arguments.thresholds:
        rows = evaluate_boxes(
            model,
            split,
            data.class_names,
            ("dense", "multicrop"),
            classifier=clf,
            threshold=threshold,
        )
        wrong = ", ".join(f"{row.protocol} {row.box_errors} of {row.images}" for row in rows)
        console.print(f"threshold {threshold:g}: {wrong}")


def _list_of(values: list[float], digits: int) -> str:
    return " ".join(f"{value:.{digits}f}" for value in values)


def _compared(pairs: list[tuple[Localization, Localization]]) -> list[str]:
    """Return the mean errors after and before, their difference and p values, as text."""
    before, after = (
        np.array([100 * (1 - r.accuracy) for r in of]) for of in zip(*pairs, strict=True)
    )
    difference = after - before
    half = 0.0
    if len(pairs) > 1:
        spread = difference.std(ddof=1) / len(pairs) ** 0.5
        half = float(student.ppf(0.975, len(pairs) - 1) * spread)
    mean = difference.mean()
    interval = f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"
    p = " ".join(f"{Comparison.of(a, b).p:.2g}" for a, b in pairs)
    return [f"{after.mean():.1f}", f"{before.mean():.1f}", interval, p]


def _rows(
    arguments: Arguments, data: Data, classifier: Path, runs: dict[str, Path]
) -> dict[str, Localization]:
    """Return each way's answers on the test images, by its name in `COMPARISONS`."""
    split = data.split("test").turned(upright=True)  # as training had them
    clf = vggkeras.load(classifier)
    models = {name: vggkeras.load(path) for name, path in runs.items()}
    names, best, scale = data.class_names, models["pcr-all"], arguments.scale
    rows = {}
    for name, model in models.items():
        (rows[f"{name}, given"],) = evaluate_boxes(model, split, names)
    protocols = ("center", "dense", "multicrop")
    for row in evaluate_boxes(best, split, names, protocols, (scale, LARGER), classifier=clf):
        if row.scales == (scale,):
            rows[f"pcr-all, {row.protocol}"] = row
        elif len(row.scales) == 2:
            rows[f"pcr-all, {row.protocol}, two scales"] = row
    both = [best, models["scr-all"]]
    fused = evaluate_boxes(both, split, names, "multicrop", classifier=clf, fuse=True)
    return {**rows, "pcr-all + scr-all, multicrop": fused[-1]}


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
