"""Measure what balanced class weights bring to a rare class, one image to fifty of every other.

    TFDS_DATA_DIR=… python tests/benchmarks/rare_class.py --work rare

The first classes of a data set are written as class folders, the last of them with a fiftieth of
its images. Each seed trains the same network without and with `--class-weights balanced`; training
holds out a fifth of the images, rare ones too, to choose the epoch. The test is every image of
these classes in the data set's validation split, where all classes are about equally frequent.
What was trained is kept in --work, and not trained again.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tyro
from rich.console import Console
from rich.table import Table

import vggkeras
from vggkeras.data.splits import Split
from vggkeras.evaluation import scoring
from vggkeras.evaluation.statistics import Evaluation, wilson

console = Console()
RARE = 50  # images of every other class to one of the rare one


@dataclass(frozen=True)
class Arguments:
    """Train with and without balanced class weights, and print the recall of the rare class."""

    work: Path
    """Folder for images and runs."""
    data: str = "tfds:imagenette/160px-v2"
    """Where the classes come from; it has a validation split."""
    classes: int = 4
    """How many, the first ones; the last of them is the rare one."""
    seeds: tuple[int, ...] = (0,)
    """Of training."""
    epochs: int = 15
    """Of each run."""


def write_images(split: Split, folder: Path, class_names: list[str], rare: bool) -> None:
    """Write the images of some classes as class folders, the last class thinned if it is rare."""
    seen: Counter[int] = Counter()
    for index, encoded, label in split.examples():
        if label >= len(class_names):
            continue
        seen[label] += 1
        if rare and label == len(class_names) - 1 and seen[label] % RARE:
            continue
        path = folder / f"{label} {class_names[label]}" / f"{index:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded)


def recipe(arguments: Arguments, weights: str, seed: int) -> vggkeras.Recipe:
    """Return what is trained: a small network with batch normalization."""
    return vggkeras.Recipe(
        "A",
        str(arguments.work / "images"),
        arguments.work / f"{weights}-{seed}",
        image_size=32,
        width=0.25,
        fc_units=256,
        batch_norm=True,
        batch_size=64,
        optimizer="adamw",  # whose steps do not grow with the weight of a rare image
        learning_rate=4e-3,
        schedule="cosine",
        warmup=1,
        epochs=arguments.epochs,
        class_weights="balanced" if weights == "balanced" else "none",
        seed=seed,
    )


def score(folder: Path, test: Path) -> Evaluation:
    """Return the central crop's answers on all test images."""
    data = vggkeras.load_data(str(test), whole=True)
    (result,) = scoring.evaluate(vggkeras.load(folder), data.split("all"), data.class_names)
    return result


def counted(right: int, images: int) -> str:
    """Return a fraction with its 95% Wilson interval, in %."""
    low, high = wilson(right, images)
    return f"{100 * right / images:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def main(arguments: Arguments) -> None:
    """Write the images, train, and print a row a run."""
    images, test = arguments.work / "images", arguments.work / "test"
    if not test.exists():
        data = vggkeras.load_data(arguments.data)
        names = data.class_names[: arguments.classes]
        write_images(data.split("train"), images, names, rare=True)
        write_images(data.split("validation"), test, names, rare=False)
    table = Table(title="% right of the test images, with 95% Wilson intervals")
    for column in (
        "class weights",
        "seed",
        "rare class",
        "other classes",
        "taken for the rare one",
    ):
        table.add_column(column)
    for seed in arguments.seeds:
        for weights in ("none", "balanced"):
            run = recipe(arguments, weights, seed)
            vggkeras.train(run, console, resume=True)
            assert run.out
            matrix = score(run.out, test).confusion_matrix()
            others = matrix[:-1]
            table.add_row(
                weights,
                str(seed),
                counted(int(matrix[-1, -1]), int(matrix[-1].sum())),
                counted(int(others.diagonal().sum()), int(others.sum())),
                str(int(others[:, -1].sum())),
            )
    console.print(table)
    counts = {path.name: len(list(path.iterdir())) for path in sorted(images.iterdir())}
    console.print(f"images, a fifth of them held out: {counts}; {dataclasses.asdict(arguments)}")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
