"""Shared, expensive things: one tiny network truly trained on digits, and its exports."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest
from helpers import write_photos

import vggkeras


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with train/ and val/, two classes, eight and four photographs each."""
    for c, name in enumerate(("cat", "dog")):
        write_photos(tmp_path / "photos" / "train" / name, 8, 100 * c)
        write_photos(tmp_path / "photos" / "val" / name, 4, 100 * c + 50)
    return tmp_path / "photos"


@pytest.fixture(scope="session")
def workplace(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """runs/latest is made in the current folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def recipe(workplace: Path) -> vggkeras.Recipe:
    return vggkeras.Recipe(
        "A-LRN",
        "digits",
        workplace / "runs" / "digits",
        batch_norm=True,
        width=0.125,
        fc_units=64,
        dropout=0.2,
        epochs=6,
        batch_size=32,
        learning_rate=0.16,  # 0.02 with its batch of 32
    )


@pytest.fixture(scope="session")
def run(recipe: vggkeras.Recipe, workplace: Path):
    """A tiny A-LRN trained on digits."""
    here = os.getcwd()
    os.chdir(workplace)
    try:
        return vggkeras.train(recipe)
    finally:
        os.chdir(here)


@pytest.fixture(scope="session")
def exports(run) -> Path:
    """The trained network in all three formats."""
    from export import export_model

    entries = export_model(run.path)
    assert all(entry["passed"] for entry in entries.values()), entries
    return run.path / "export"


@pytest.fixture(scope="session")
def dense_exports(run, exports, workplace) -> Path:
    """A copy of them with their fully convolutional forms beside them."""
    from export import export_model

    folder = shutil.copytree(exports, workplace / "dense-exports")
    entries = export_model(run.path, dense=True, out=folder)
    assert all(entry["passed"] for entry in entries.values()), entries
    return folder


@pytest.fixture(scope="session")
def precise_exports(run, exports, workplace) -> Path:
    """The trained network at every precision, in a folder of its own."""
    from export import export_model

    entries = export_model(run.path, precision="all", out=workplace / "precise-exports")
    assert all(entry["passed"] for entry in entries.values()), entries
    return workplace / "precise-exports"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Run a console script in this process: command(cli, *arguments) -> (exit code, stdout, stderr)."""

    def call(cli, *arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
        try:
            code = cli()
        except SystemExit as stop:
            code = stop.code
        told = capsys.readouterr()
        return code, told.out, told.err

    return call
