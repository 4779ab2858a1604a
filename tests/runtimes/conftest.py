"""The trained network in every runtime, and what ONNX Runtime takes in every form."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import vggkeras
from export import export_model
from vggkeras import Predictor


@pytest.fixture(scope="session")
def predictors(run, exports) -> dict[str, Predictor]:
    """The same network as each of its files, by file name."""
    names = ("saved_model", "model.onnx", "model.tflite")
    files = {name: exports / name for name in names} | {"model.keras": run.path}
    return {name: vggkeras.load(path) for name, path in files.items()}


@pytest.fixture(scope="session")
def pictures() -> np.ndarray:
    """More images than a runtime takes at once, uint8 [70, 32, 32, 3]."""
    return np.random.default_rng(0).integers(0, 256, (70, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def onnx_files(run, exports, workplace) -> Path:
    """A folder with model.onnx, model.dense.onnx and model.int8.onnx."""
    folder = workplace / "onnx-files"
    folder.mkdir()
    shutil.copy(exports / "model.onnx", folder)
    export_model(run.path, "onnx", dense=True, images=20, out=folder)
    export_model(run.path, "onnx", "int8", out=workplace / "int8")
    shutil.copy(workplace / "int8" / "model.int8.onnx", folder)
    return folder
