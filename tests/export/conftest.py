"""A network of five classes, exported with its features."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from feature_shapes import NAMES, SMALLEST, UNITS
from helpers import textured, trained_looking
from PIL import Image

import export
import vggkeras


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
def copied(made, tmp_path) -> Path:
    return Path(shutil.copytree(made / "export", tmp_path / "export"))


@pytest.fixture
def alone(made, tmp_path):
    """Copies a file into an empty folder."""

    def copy(name: str) -> Path:
        folder = tmp_path / f"alone-{name}"
        folder.mkdir()
        source = made / "export" / name
        return Path((shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name))

    return copy
