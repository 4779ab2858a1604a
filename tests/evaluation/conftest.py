"""Photographs of odd shapes, and one trained network in three runtimes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

import vggkeras
from vggkeras.runtimes.predictor import Predictor

SHAPES = [(100, 300), (333, 777), (160, 160), (32, 32), (33, 200), (211, 64), (40, 427), (427, 41)]
SHAPES += [(90, 91), (57, 120)]


@pytest.fixture(scope="package")
def photographs() -> list[np.ndarray]:
    """Pieces of scikit-learn's two photographs; the first is square and of the crop's size."""
    originals, pieces = load_sample_images().images, []
    for i, (h, w) in enumerate(SHAPES):
        box = (13 * i, 7 * i, 13 * i + 300, 7 * i + 300)
        piece = Image.fromarray(originals[i % 2]).crop(box)
        pieces.append(np.asarray(piece.resize((w, h), Image.Resampling.BICUBIC)))
    return sorted(pieces, key=lambda piece: piece.shape != (32, 32, 3))


@pytest.fixture
def digits(tmp_path) -> Path:
    """Sixty of the digits as a folder, the same ones in train/ and in val/."""
    split = vggkeras.load_data("digits").split("validation").without(range(60, 360))
    for index, encoded, label in split.examples():
        for name in ("train", "val"):
            folder = tmp_path / "set" / name / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{index}.png").write_bytes(encoded)
    return tmp_path / "set"


@pytest.fixture(scope="package")
def predictors(run, dense_exports) -> dict[str, Predictor]:
    """The network of `run` by file name."""
    return {"model.keras": vggkeras.load(run.path)} | {
        name: vggkeras.load(dense_exports / name) for name in ("model.onnx", "model.tflite")
    }
