"""Files that several tests of exports look into."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from feature_shapes import NAMES, SMALLEST, UNITS
from helpers import EXPORTED, textured, trained_looking
from PIL import Image

import export
import vggkeras


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Path:
    """A folder with all seven files of one network, exported on colorful photographs.

    The network's biases are not zero, and it is certain of nothing, so that every layer matters.
    Beside the folder lies its net.keras.
    """
    folder = tmp_path_factory.mktemp("exported")
    for split, count in (("train", 6), ("val", 4)):
        for label, name in enumerate(("cat", "dog")):
            (folder / "photos" / split / name).mkdir(parents=True)
            for i in range(count):
                file = folder / "photos" / split / name / f"{i}.jpg"
                Image.fromarray(textured(100 * label + 10 * (split == "val") + i)).save(
                    file, quality=95
                )
    model = vggkeras.build("A", (64, 64, 3), 2, width=0.06, fc_units=12, seed=0)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if layer.weights:
            kernel, bias = layer.get_weights()
            small = 0.2 if layer.name == "predictions" else 1
            layer.set_weights([kernel * small, rng.normal(0, 5 * small, bias.shape)])
    model.save(folder / "net.keras")
    data, out = str(folder / "photos"), folder / "export"
    entries = export.export_model(
        folder / "net.keras", precision="all", data=data, out=out, calibration=8
    )
    # Eight photographs are too few to judge by: one answer more or less is not what is tested here.
    assert {name for name in entries if (out / name).exists()} == set(EXPORTED)
    return out


@pytest.fixture
def alone(exported, tmp_path) -> Callable[[str], Path]:
    """Return a function that copies one of these files into an empty folder."""

    def copy(name: str) -> Path:
        folder = tmp_path / f"alone-{name}"
        folder.mkdir()
        if (exported / name).is_dir():
            return Path(shutil.copytree(exported / name, folder / name))
        return Path(shutil.copy(exported / name, folder))

    return copy


@pytest.fixture(scope="session")
def network():
    """A network whose fc1 sees maps of 2 x 3, with LRN and batch norm, of five classes."""
    return trained_looking("A-LRN", (*SMALLEST, 3), True, width=0.06, fc_units=UNITS, dropout=0.5)


@pytest.fixture(scope="session")
def made(network, tmp_path_factory) -> Path:
    """A folder with net.keras; export/, all formats and their features; before/, without these."""
    folder = tmp_path_factory.mktemp("features")
    for split in ("train", "val"):
        for label in range(5):
            (folder / "photos" / split / f"class{label}").mkdir(parents=True)
            for i in range(2):
                picture = Image.fromarray(textured(10 * label + 5 * (split == "val") + i))
                picture.save(folder / "photos" / split / f"class{label}" / f"{i}.jpg", quality=95)
    network.save(folder / "net.keras")
    asked = {"data": str(folder / "photos"), "out": folder / "export"}

    export.export_model(folder / "net.keras", **asked)
    shutil.copytree(folder / "export", folder / "before")
    entries = export.export_model(folder / "net.keras", features=True, **asked)
    assert set(entries) == set(NAMES)
    assert all(entry["passed"] for entry in entries.values()), entries
    return folder


@pytest.fixture(scope="session")
def keras_form(made):
    return vggkeras.load(made / "net.keras").features_form()


@pytest.fixture(scope="session")
def loaded(made):
    return {name: vggkeras.load(made / "export" / name) for name in NAMES}


@pytest.fixture
def copied_features(made, tmp_path) -> Path:
    return Path(shutil.copytree(made / "export", tmp_path / "export"))


@pytest.fixture
def alone_features(made, tmp_path):
    """Copies a file into an empty folder."""

    def copy(name: str) -> Path:
        folder = tmp_path / f"alone-{name}"
        folder.mkdir()
        source = made / "export" / name
        return Path((shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name))

    return copy
