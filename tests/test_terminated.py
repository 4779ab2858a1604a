"""SIGTERM in the phases of training and export that take long: exit code 130, and nothing left."""

from __future__ import annotations

import importlib
import signal
from pathlib import Path

import pytest

from export.__main__ import cli as export_cli
from vggkeras.__main__ import cli
from vggkeras.data import folders
from vggkeras.training import first_pass, fitting, pipeline
from vggkeras.training import train as training

TRAIN = ("--arch", "A", "--width", 0.05, "--fc-units", 8, "--image-size", 32, "--batch-size", 4)


@pytest.fixture
def terminate_at(monkeypatch):
    """terminate_at(module, name, calls): have SIGTERM sent in that call of a function."""
    before = signal.getsignal(signal.SIGTERM)

    def patch(module, name, calls=1):
        function, left = getattr(module, name), [calls]

        def call(*arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                signal.raise_signal(signal.SIGTERM)
            return function(*arguments, **options)

        monkeypatch.setattr(module, name, call)

    yield patch
    signal.signal(signal.SIGTERM, before)


def left_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*")) if folder.exists() else []


@pytest.mark.parametrize(
    "place",
    [
        (folders, "_class_files"),
        (first_pass.statistics, "rgb_statistics"),
        (training, "_network"),
        (fitting.augment, "color_basis"),
    ],
    ids=["listing", "reading", "building", "before rescaling"],
)
def test_before_the_first_step_nothing_is_left(place, photos, tmp_path, command, terminate_at):
    terminate_at(*place)
    out = tmp_path / "run"
    code, _, err = command(cli, "train", *TRAIN, "--data", photos, "--out", out)
    assert (code, err) == (130, "interrupted\n")
    assert not out.exists()


@pytest.mark.parametrize(
    ("module", "name", "line"),
    [
        (first_pass.statistics, "read_all", "reading photos/train: 16 images"),
        (pipeline, "read_images", "rescaling photos/train: 16 images"),
    ],
)
def test_while_images_are_read(module, name, line, photos, tmp_path, command, monkeypatch):
    read = getattr(module, name)

    def terminated(*arguments):
        for number, image in enumerate(read(*arguments)):
            if number == 3:
                signal.raise_signal(signal.SIGTERM)
            yield image

    monkeypatch.setattr(module, name, terminated)
    out = tmp_path / "run"
    code, said, err = command(cli, "train", *TRAIN, "--data", photos, "--out", out)
    assert (code, err) == (130, "interrupted\n")
    assert said.rstrip().endswith(line)
    assert not out.exists()


@pytest.mark.parametrize(
    "place",
    [
        ("export.samples", "golden_images"),
        ("export.pipeline", "writer_of"),
        ("export.artifact", "seal"),
        ("export.parity", "compare"),
        ("export.certificate", "entry_of"),
    ],
    ids=["asking", "writing", "sealing", "proving", "certifying"],
)
def test_an_export_leaves_no_file(place, run, tmp_path, command, terminate_at):
    module, name = place
    terminate_at(importlib.import_module(module), name)
    out = tmp_path / "export"
    arguments = ("--model", run.path, "--format", "onnx", "--data", "digits", "--out", out)
    code, _, err = command(export_cli, *arguments)
    assert (code, err) == (130, "interrupted\n")
    assert left_in(out) == []
