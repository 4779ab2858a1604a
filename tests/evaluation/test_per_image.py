"""The rows that `evaluate --per-image` writes give the table's figures again."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet
from pyarrow import json as arrow_json

import vggkeras
from vggkeras.__main__ import cli
from vggkeras.card import ModelCard
from vggkeras.commands import per_image
from vggkeras.models import save_model

pytestmark = pytest.mark.integration

READERS = {
    ".csv": csv.read_csv,
    ".jsonl": arrow_json.read_json,
    ".parquet": parquet.read_table,
}


def probabilities(table: pa.Table, rows: list[dict]) -> np.ndarray:
    """Return them as float64 [rows, classes]; a .csv file has a column a class."""
    if "probabilities" in table.column_names:
        return np.array([row["probabilities"] for row in rows])
    return np.array([[row[f"p_{i}"] for i in range(10)] for row in rows])


OTHERS = [pytest.param(s, marks=pytest.mark.full) for s in READERS if s != ".csv"]


@pytest.mark.parametrize("suffix", [".csv", *OTHERS])  # predict writes all three by the same code
def test_rows_give_the_tables_figures(suffix, run, dense_exports, digits, command, tmp_path):
    out, figures = tmp_path / f"answers{suffix}", tmp_path / "e.json"
    models = [run.path, dense_exports / "model.onnx"]
    arguments = ["--data", digits, "--protocol", "center", "dense", "--scales", "32", "40"]
    arguments += ["--fuse", "--json", figures, "--per-image", out]
    for _ in range(2 if suffix == ".csv" else 1):  # the second time it overwrites its own file
        code, text, err = command(cli, "evaluate", "--model", *models, *arguments)
        assert code == 0, err
        assert f"every image's answers: {out}" in text
    table = READERS[suffix](out)
    rows = table.to_pylist()
    p = probabilities(table, rows)
    records = json.loads(figures.read_text())
    assert len(records) == 3 * 2 * 3
    assert len(rows) == 60 * len(records)
    assert {row["split"] for row in rows} == {"validation"}
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose([row["confidence"] for row in rows], p.max(axis=1), atol=1e-7)
    assert [int(row["prediction"]) for row in rows] == p.argmax(axis=1).tolist()
    for record in records:
        key = (record["model"], record["protocol"], " ".join(map(str, record["scales"])))
        of_row = [row for row in rows if (row["model"], row["protocol"], str(row["scales"])) == key]
        assert len({row["image"] for row in of_row}) == 60
        pairs = Counter((str(row["label"]), str(row["prediction"])) for row in of_row)
        assert pairs == {(a, b): count for a, b, count in record["confusions"]}
        assert sum(row["label"] == row["prediction"] for row in of_row) == record["correct"]
        assert all(
            Path(row["image"]).parent == digits / "val" / str(row["label"]) for row in of_row
        )
    keras = [i for i, row in enumerate(rows) if row["model"] == str(run.path / "model.keras")]
    first = [i for i in keras if rows[i]["protocol"] == "dense" and str(rows[i]["scales"]) == "40"]
    images = [rows[i]["image"] for i in first]
    expected = vggkeras.posteriors(vggkeras.load(run.path), images, "dense", (40,))
    np.testing.assert_allclose(p[first], expected, atol=1e-6)


def test_an_evaluation_that_fails_leaves_no_file(command, tmp_path, photos):
    model = vggkeras.build("A", (32, 32, 3), 2, width=0.02, fc_units=4)
    save_model(model, tmp_path / "m.keras", ModelCard(("cat", "dog")))
    cut = photos / "val" / "cat" / "001.jpg"
    cut.write_bytes(cut.read_bytes()[:-200])
    before = sorted(entry.name for entry in tmp_path.iterdir())
    arguments = ["evaluate", "--model", "m.keras", "--data", photos, "--per-image", "rows.csv"]
    code, _, err = command(cli, *arguments)
    assert code == 2
    assert "001.jpg cannot be read" in err
    assert sorted(entry.name for entry in tmp_path.iterdir()) == before
    assert command(cli, *arguments, "--skip-unreadable")[0] == 0
    assert csv.read_csv("rows.csv").num_rows == 7
    per_image.check(tmp_path / "rows.csv")
    (tmp_path / "mine.csv").write_text("image,label\n")
    code, _, err = command(cli, *arguments[:-1], "mine.csv")
    assert code == 2
    assert "is not a file of `vggkeras evaluate`" in err
