"""Small networks of boxes, a classifier, and images with boxes, for several tests."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from helpers import photo
from PIL import Image

import vggkeras
from vggkeras.card import ModelCard
from vggkeras.models import save_model

CLASSES, SMALL = ("cat", "dog", "elk"), {"width": 1 / 32, "fc_units": 16}
CROP, SCALE = 64, 96


def save(path, classes, seed, boxes=None):
    model = vggkeras.build("A", (CROP, CROP, 3), 3, seed=seed, boxes=boxes, **SMALL)
    rng = np.random.default_rng(seed)
    last = model.layers[-1]
    kernel = rng.normal(0, 1, last.kernel.shape)
    if boxes:  # somewhere in the crop, as the image has it
        bias = np.tile([0.5, 0.5, 1.0, 1.0], last.units // 4) + rng.normal(0, 0.1, last.units)
        last.set_weights([kernel / 50, bias])
    else:
        last.set_weights([kernel / 5, rng.normal(0, 0.1, last.units)])
    save_model(model, path, ModelCard(classes, boxes=boxes, image_size=CROP, scale=SCALE))


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A data set with boxes, a classifier, and networks of one box and of one a class."""
    folder = tmp_path_factory.mktemp("localize")
    rows, rng = [], np.random.default_rng(0)
    for i in range(12):
        name = CLASSES[i % 3]
        file = folder / "data" / name / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        height, width = (100 + 10 * i, 150) if i % 2 else (150, 110 + 9 * i)
        Image.fromarray(photo(i, height, width)).save(file)
        for _ in range(1 + (i == 4)):
            low = rng.uniform(0, 0.3, 2) * (width, height)
            high = rng.uniform(0.6, 1, 2) * (width, height)
            rows.append([f"{name}/{file.name}", name, *np.concatenate([low, high]).round(1)])
    with open(folder / "data" / "boxes.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file", "label", "xmin", "ymin", "xmax", "ymax"], *rows])
    save(folder / "classes.keras", CLASSES, 1)
    save(folder / "scr.keras", CLASSES, 2, "scr")
    save(folder / "pcr.keras", CLASSES, 3, "pcr")
    save(folder / "others.keras", ("cat", "dog", "fox"), 1)
    return folder
