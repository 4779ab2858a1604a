"""Files that several tests of exports look into."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import EXPORTED, textured
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
