"""Classify image files: `python -m vggkeras predict photo.jpg --model vgg16.keras`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro
from rich.table import Table

from vggkeras.commands.common import Compute, console
from vggkeras.errors import InputError, visible

if TYPE_CHECKING:
    from vggkeras.runtimes import Predictor


@dataclass(frozen=True)
class Predict:
    """Classify image files, or the images of folders.

    Attributes:
        files: JPEG, PNG, BMP or GIF files, or folders of them.
        model: A run's folder, a .keras, .onnx or .tflite file, or a SavedModel folder.
        top: How many classes to show, most probable first.
        json: Print one JSON object per line instead of a table.
    """

    files: tyro.conf.Positional[tuple[Path, ...]]
    compute: tyro.conf.OmitArgPrefixes[Compute]
    model: Path = Path("runs/latest")
    top: int = 5
    json: bool = False

    def run(self) -> int:
        """Classify, and print the classes."""
        if self.top < 1:
            raise InputError(f"--top must be 1 or more; received {self.top}.")
        paths = image_files(self.files)
        (predictor,) = self.compute.load(self.model)
        predictions = classify(predictor, paths, self.top)
        if self.json:
            for prediction in predictions:
                print(visible(json.dumps(prediction.to_json(), ensure_ascii=False)))
        else:
            title = f"{predictor.path} in {predictor.runtime}"
            console.print(predictions_table(predictions, title))
        return 0


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image, most probable first."""

    image: Path
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the object that `predict --json` prints."""
        pairs = zip(self.classes, self.probabilities, strict=True)
        classes = [{"class": name, "probability": p} for name, p in pairs]
        return {"image": str(self.image), "classes": classes}


def classify(predictor: Predictor, paths: Sequence[Path], top: int = 5) -> list[Prediction]:
    """Return the `top` most probable classes of each image file, by its central crop.

    Raises:
        InputError (a ValueError): as `vggkeras.posteriors`.
    """
    import numpy as np

    from vggkeras.evaluation.protocols import posteriors

    predictions = []
    for path, p in zip(paths, posteriors(predictor, paths), strict=True):
        best = np.argsort(-p, kind="stable")[:top]
        names = tuple(predictor.class_names[i] for i in best)
        predictions.append(Prediction(path, names, tuple(map(float, p[best]))))
    return predictions


def predictions_table(predictions: Sequence[Prediction], title: str) -> Table:
    """Return the predictions of several images, a row a class."""
    table = Table(title=title)
    table.add_column("image", overflow="fold")
    table.add_column("class")
    table.add_column("probability", justify="right")
    for prediction in predictions:
        image = str(prediction.image)
        for name, p in zip(prediction.classes, prediction.probabilities, strict=True):
            table.add_row(image, name, f"{p:.4f}")
            image = ""
        table.add_section()
    return table


def image_files(paths: Sequence[Path]) -> list[Path]:
    """Return files as given, and of folders all image files within, sorted.

    Raises:
        InputError (a ValueError): a folder without images, a name that is not UTF-8, or no
            path at all.
    """
    from vggkeras.data.decoding import SUFFIXES, check_names

    images: list[Path] = []
    for path in paths:
        if not path.is_dir():
            images.append(path)
            continue
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not inside:
            raise InputError(f"{path} has no images ({', '.join(SUFFIXES)}).")
        images += inside
    if not images:
        raise InputError("Expected image files or folders; received none.")
    check_names(map(str, images))
    return images
