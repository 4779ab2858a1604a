"""Compare ways to train boxes (Appendix A) on a folder with boxes.csv, over seeds.

    python tests/benchmarks/boxes.py --data tiny_vid --pretrained runs/imagenette --work boxes

For each seed a classifier of the folder's classes is trained from --pretrained and another from
random weights. Networks of boxes start from them: SCR and PCR, FC layers alone and all. The last
--last images of each class are the test, which chooses nothing; a tenth of the others is held out
and chooses the epoch. An image is right where the classifier names its class and the box of that
class overlaps its true one by more than half, both in the central crop. What was done is kept in
--work, and not done again.
"""

from __future__ import annotations

import csv
import dataclasses
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import vggkeras
from vggkeras import files
from vggkeras.configs import rescaled_shape
from vggkeras.data import augment
from vggkeras.localization import geometry
from vggkeras.recipe import Recipe
from vggkeras.training.record import RunRecord

console = Console()
WAYS = {  # name -> (boxes, tune, whether the classifier's weights, and its own pretrained ones)
    "PCR, all, pretrained": ("pcr", "all", True, True),
    "SCR, all, pretrained": ("scr", "all", True, True),
    "PCR, FC, pretrained": ("pcr", "fc", True, True),
    "SCR, FC, pretrained": ("scr", "fc", True, True),
    "PCR, all, classifier from scratch": ("pcr", "all", True, False),
    "PCR, all, from scratch": ("pcr", "all", False, False),
}


@dataclass(frozen=True)
class Arguments:
    """Train boxes each way, and print how many test images are right."""

    data: Path
    """Folder with class folders and boxes.csv."""
    pretrained: Path
    """Run that the classifiers start from: its network, image size and scale are used."""
    work: Path
    """Folder for lists, runs and figures."""
    last: int = 30
    """Test images of each class: the last ones in boxes.csv."""
    seeds: int = 3
    """Runs of each way."""
    ways: int = len(WAYS)
    """How many of the ways, from the first on."""
    epochs: int = 60
    """Of boxes; classifiers have half as many."""
    rate: float = 8e-3
    """Learning rate for a batch of 256, of AdamW."""
    dropout: float = 0.0
    """Of boxes."""


def main(arguments: Arguments) -> None:
    """Train, and print and write the figures."""
    listed = write_list(arguments)
    shown: dict[str, list[dict[str, float]]] = {}
    for seed in range(arguments.seeds):
        for name in list(WAYS)[: arguments.ways]:
            shown.setdefault(name, []).append(score_way(arguments, listed, name, seed))
            files.write_json(arguments.work / "figures.json", shown)
            console.print(name, seed, shown[name][-1], highlight=False)
    table = Table("way", "right class", "IoU > 0.5, true class", "right class and IoU > 0.5")
    for name, runs in shown.items():
        cells = [[run[key] for run in runs] for key in ("class", "box", "both")]
        table.add_row(name, *(f"{np.mean(c):.1%} ({min(c):.1%} to {max(c):.1%})" for c in cells))
    console.print(table)


def write_list(arguments: Arguments) -> Path:
    """Write the list that has the last images of each class as its test split."""
    with open(arguments.data / "boxes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    left = Counter(
        {name: n - arguments.last for name, n in Counter(r["label"] for r in rows).items()}
    )
    path = arguments.work / "list.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "xmin", "ymin", "xmax", "ymax", "split"])
        for row in rows:
            left[row["label"]] -= 1
            corners = [row[name] for name in ("xmin", "ymin", "xmax", "ymax")]
            split = "train" if left[row["label"]] >= 0 else "test"
            writer.writerow([arguments.data.resolve() / row["file"], row["label"], *corners, split])
    return path


def score_way(arguments: Arguments, listed: Path, name: str, seed: int) -> dict[str, float]:
    """Train one way with one seed, and return its fractions of right test images."""
    kind, tune, from_classifier, pretrained = WAYS[name]
    base = RunRecord.read(arguments.pretrained).card
    assert base.recipe
    shared = Recipe(
        base.recipe.arch,
        str(listed),
        image_size=base.image_size,
        width=base.recipe.width,
        fc_units=base.recipe.fc_units,
        batch_norm=base.recipe.batch_norm,
        scale=str(base.scale),
        batch_size=32,
        optimizer="adamw",
        schedule="cosine",
        warmup=1,
        ema=0.99,
        learning_rate=arguments.rate,
        validation=0.1,
        seed=seed,
    )
    source = str(arguments.pretrained) if pretrained else None
    classifier = trained(
        arguments.work / f"classifier{'-pretrained' * pretrained}-{seed}",
        dataclasses.replace(
            shared, init_from=source, epochs=arguments.epochs // 2, label_smoothing=0.1
        ),
    )
    boxes = trained(
        arguments.work
        / f"{kind}-{tune}{'-classifier' * from_classifier}{'-pretrained' * pretrained}-{seed}",
        dataclasses.replace(
            shared,
            boxes=kind,
            tune=tune,
            init_from=str(classifier) if from_classifier else None,
            dropout=arguments.dropout,
            epochs=arguments.epochs,
        ),
    )
    return scored(listed, classifier, boxes)


def trained(out: Path, recipe: Recipe) -> Path:
    """Return the run in a folder, trained first if need be."""
    vggkeras.train(dataclasses.replace(recipe, out=out), Console(quiet=True), resume=True)
    return out


def scored(listed: Path, classifier: Path, boxes: Path) -> dict[str, float]:
    """Return the fractions of test images with the right class, the right box, and both."""
    classify, regress = (vggkeras.load(run / "model.keras") for run in (classifier, boxes))
    split = vggkeras.load_data(str(listed), boxes=True).upright(True).split("test")
    crop, scale = regress.input_shape[:2], regress.scale
    rows = list(augment.center_crops(split, crop, scale))
    crops, labels = np.stack([row[1] for row in rows]), np.array([row[2] for row in rows])
    named, outputs = classify(crops).argmax(-1), regress(crops)

    def overlaps(classes: np.ndarray) -> np.ndarray:
        predicted = geometry.of_class(outputs, classes, regress.boxes)
        found = []
        for index, box in enumerate(predicted):
            size = tuple(split.boxes.sizes[index].tolist())
            corner = next(augment.corners(rescaled_shape(size, scale), crop, 1))
            there = geometry.to_image(box, size, scale, corner, crop)
            found.append(geometry.iou(there, split.boxes.corners[index]).max())
        return np.array(found)

    right = named == labels
    return {
        "class": float(right.mean()),
        "box": float((overlaps(labels) > 0.5).mean()),
        "both": float((right & (overlaps(named) > 0.5)).mean()),
        "mean IoU": float(overlaps(labels).mean()),
        "images": len(labels),
    }


if __name__ == "__main__":
    main(tyro.cli(Arguments))
