"""Shared fixtures: the stored tiny network that was trained on digits, and its exports."""

from __future__ import annotations

import gc
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest
from data import rebuild
from helpers import write_photos
from keras.callbacks import Callback

import vggkeras
from vggkeras.training.record import RunRecord
from vggkeras.training.runs import Run


def pytest_itemcollected(item: pytest.Item) -> None:
    """What is tested before a release alone is slow."""
    if item.get_closest_marker("full"):
        item.add_marker("slow")


def pytest_collection_finish() -> None:
    """Take what the libraries hold for good out of every search for garbage."""
    gc.collect()
    gc.freeze()


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


@pytest.fixture(scope="session", autouse=True)
def _a_cache_of_its_own(tmp_path_factory) -> Iterator[None]:
    """No test reads or writes the user's own cache; matplotlib's list of fonts may stay."""
    with pytest.MonkeyPatch.context() as patch:
        if "MPLCONFIGDIR" not in os.environ:
            patch.setenv("MPLCONFIGDIR", os.path.expanduser("~/.cache/matplotlib"))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """runs/latest is made in the current folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _quick_tests_write_no_pictures(request, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a run's best model for TensorBoard takes as long as most of what they train."""
    if not request.node.get_closest_marker("slow"):
        from vggkeras.training import fitting

        monkeypatch.setattr(fitting, "TensorBoard", lambda progress, batches: Callback())


@pytest.fixture(scope="session")
def recipe(workplace: Path) -> vggkeras.Recipe:
    """How the tiny network of `run` was trained."""
    return rebuild.recipe(workplace / "runs" / "digits")


@pytest.fixture(scope="session")
def run(recipe: vggkeras.Recipe, workplace: Path) -> Run:
    """A tiny A-LRN trained on digits: the stored one, in a run's folder."""
    assert recipe.out is not None
    recipe.out.mkdir(parents=True)
    for name, stored in rebuild.STORED.items():
        shutil.copy(rebuild.HERE / stored, recipe.out / name)
    record = RunRecord.read(recipe.out)
    record = replace(record, card=replace(record.card, recipe=recipe), host=platform.node())
    record.write(recipe.out)
    (workplace / "runs" / "latest").symlink_to("digits")
    return Run(recipe.out, record)


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
    """Run a console script here: command(cli, *arguments) -> (exit code, stdout, stderr)."""

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
