"""Reports that the tests of this folder share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import bare_run, speed_of, speeds, write_photos

from vggkeras import runtimes
from vggkeras.data.sources import load_data
from vggkeras.evaluation import scoring
from vggkeras.evaluation.tables import records
from vggkeras.report.page import report


@pytest.fixture(scope="package")
def page(run, exports, tmp_path_factory) -> Path:
    """The report of the trained network, beside the JSON of an evaluation."""
    folder = tmp_path_factory.mktemp("report")
    clf, data = runtimes.load(exports / "model.onnx"), load_data("digits")
    split = data.split("validation")
    rows = scoring.evaluate(
        [clf, clf], split, data.class_names, ("center", "multicrop"), mirrors=False, grid=2
    )
    about = {"data": "digits", "split": "validation", "skipped": []}
    kept = records(rows, [None] * len(rows), split.image_name, about)
    (folder / "multicrop.json").write_text(json.dumps(kept))
    fast = speeds(speed_of("run/model.keras"), speed_of("run/export/model.int8.tflite", 1.25, 1600))
    (folder / "speed.json").write_text(json.dumps(fast))
    gpu = speeds(speed_of("$a$<b>.onnx"), official=True, gpu="some GPU")
    (folder / "gpu.json").write_text(json.dumps(gpu))
    return report(
        run.path,
        evaluations=[folder / "multicrop.json"],
        benchmarks=[folder / "speed.json", folder / "gpu.json"],
        out=folder / "report.html",
    )


@pytest.fixture(scope="package")
def many(tmp_path_factory) -> Path:
    """The report of a network that has learned nothing, of 52 classes with four images each."""
    folder, names = tmp_path_factory.mktemp("many"), [f"class {i:02d}" for i in range(52)]
    for i, name in enumerate(names):
        for split, count in (("train", 1), ("val", 4)):
            write_photos(folder / "photos" / split / name, count, 10 * i)
    return report(bare_run(folder / "run", names, str(folder / "photos")))


@pytest.fixture(scope="package")
def rows(run):
    """What evaluate says of the trained network."""
    data = load_data("digits")
    return scoring.evaluate(
        runtimes.load(run.path),
        data.split("validation"),
        data.class_names,
        ("center", "dense"),
        mirrors=False,
    )
