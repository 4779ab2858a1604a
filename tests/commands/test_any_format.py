"""A folder with every format that Pillow writes, through training and every command that reads."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from helpers import tiny, write_photos
from image_gallery import every_image

from vggkeras.__main__ import cli
from vggkeras.data import formats
from vggkeras.training.runs import Run
from vggkeras.training.train import train

pytestmark = [pytest.mark.integration, pytest.mark.slow]

UNREADABLE = {"F.tif", "F.tiff", "cut.webp"}  # floats; half of a file


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two classes of photographs, one with the gallery beside them."""
    root = tmp_path_factory.mktemp("gallery") / "set"
    for name in ("cat", "dog"):
        write_photos(root / name, 10)
    for path in every_image(root / "dog"):
        if path.name == "lossless.webp":
            (root / "dog" / "cut.webp").write_bytes(path.read_bytes()[:900])
    return root


@pytest.fixture(scope="module")
def images(folder) -> set[str]:
    paths = (path for path in folder.rglob("*") if path.suffix in formats.SUFFIXES)
    return {str(path) for path in paths}


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory) -> Run:
    out = tmp_path_factory.mktemp("run") / "run"
    return train(tiny(out, data=str(folder), epochs=1, skip_unreadable=True))


def bad(folder: Path) -> set[str]:
    return {str(folder / "dog" / name) for name in UNREADABLE}


def not_read(folder: Path) -> int:
    files = [path for path in (folder / "dog").iterdir() if path.suffix not in formats.SUFFIXES]
    return len(files)


def test_training_reads_all_and_names_the_rest(trained, folder, images):
    card = trained.record.card
    assert set(card.skipped) == bad(folder)
    assert sum(card.images.values()) == len(images) - len(UNREADABLE)


def test_training_stops_at_the_first_unreadable_image(folder, tmp_path, command):
    flags = ["--width", 0.05, "--fc-units", 8, "--image-size", 32, "--out", tmp_path / "run"]
    code, out, err = command(cli, "train", "--arch", "A", "--data", folder, *flags)
    assert code == 2
    assert re.search(r"(F\.tiff?|cut\.webp) cannot be read as an image \(.*--skip-unreadable", err)
    assert f"not read: {not_read(folder)} files (" in out
    assert not (tmp_path / "run").exists()


def test_predict_gives_a_row_an_image(trained, folder, images, tmp_path, command):
    out = tmp_path / "rows.csv"
    code, told, _ = command(cli, "predict", folder, "--model", trained.path, "--out", out)
    assert code == 1
    assert f"not read: {not_read(folder)} files (" in told
    with open(out, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["image"] for row in rows} == images
    errors = {row["image"]: row["error"] for row in rows if row["error"]}
    assert errors.keys() == bad(folder)
    assert all("Traceback" not in error and "\n" not in error for error in errors.values())
    counted = Counter(row["class"] for row in rows)
    assert counted[""] == len(UNREADABLE)


def test_evaluate_scores_all_that_are_read(trained, folder, images, tmp_path, command):
    arguments = ["--model", trained.path, "--data", folder, "--split", "all"]
    code, _, err = command(cli, "evaluate", *arguments)
    assert code == 2
    assert f"({len(UNREADABLE)} of" in err
    out, figures = tmp_path / "rows.jsonl", tmp_path / "figures.json"
    arguments += ["--skip-unreadable", "--per-image", out, "--json", figures]
    code, told, err = command(cli, "evaluate", *arguments)
    assert code == 0, err
    assert "skipped 3 unreadable images" in told
    assert f"not read: {not_read(folder)} files (" in told
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["image"] for row in rows} == images - bad(folder)


def test_features_are_extracted_of_all_that_are_read(trained, folder, images, tmp_path, command):
    arguments = ["--model", trained.path, "--data", folder, "--out", tmp_path / "x.npz"]
    code, told, err = command(cli, "features", *arguments, "--skip-unreadable")
    assert code == 0, err
    assert f"{len(images) - len(UNREADABLE)}" in told
    assert "skipped 3 unreadable images" in told
