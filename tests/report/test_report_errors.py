"""What the report refuses, in one line each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import keras
import pytest
from helpers import speed_of, speeds

from vggkeras.__main__ import cli
from vggkeras.errors import InputError
from vggkeras.report.page import report

pytestmark = pytest.mark.integration

COLUMNS = "epoch,accuracy,loss,val_accuracy,val_loss,learning_rate\n"


@pytest.fixture
def check(command, tmp_path) -> Callable:
    """Check that the command fails with one line that has a message, and that it writes nothing."""

    def check(arguments: list, message: str) -> None:
        before = sorted(tmp_path.rglob("*"))
        code, _, err = command(cli, "report", *arguments)
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert code == 2, (arguments, err)
        assert len(lines) == 1, err
        assert message in lines[0], (arguments, err)
        assert sorted(tmp_path.rglob("*")) == before

    return check


def write(path: Path, text: str) -> Path:
    """Write a file in a folder that may not be there yet."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("run_json", "history", "message"),
    [
        ("{", None, "run.json is damaged"),
        ('{"recipe": {}}', None, "run.json is damaged"),
        (None, COLUMNS + "1,2,3\n", "history.csv is damaged"),
        (None, COLUMNS + "1,2,3,x,5,6\n", "could not convert string to float"),
        (None, COLUMNS, "no epoch"),
        (None, "epoch,loss\n1,2\n", "no column accuracy, learning_rate"),
        (None, COLUMNS + "1,2,3,nan,5,6\n", "not finite"),
        (None, COLUMNS + "1,2,3", "a row is cut short"),
    ],
)
def test_a_damaged_run_is_refused(run_json, history, message, run, tmp_path, check):
    write(tmp_path / "r" / "run.json", run_json or (run.path / "run.json").read_text())
    write(tmp_path / "r" / "history.csv", history or (run.path / "history.csv").read_text())
    check(["r"], message)


def test_what_is_no_run_and_no_export_is_refused(tmp_path, check):
    check([], "No folder runs/latest: expected a run's or an export's")
    check(["none"], "No folder none")
    (tmp_path / "empty").mkdir()
    check(["empty"], "neither run.json nor certificate.json")
    for text, message in (
        ('{"model.onnx": {}}', "export/certificate.json is damaged (model.onnx has no bytes"),
        ('{"model.onnx": ', "export/certificate.json is damaged (Expecting value"),
        ("{}", "names no artifact"),
    ):
        write(tmp_path / "export" / "certificate.json", text)
        check(["export"], message)


def test_other_evaluations_and_benchmarks_are_refused(run, exports, tmp_path, check):
    evaluation = {"data": "d", "split": "s", "correct": 9, "correct5": 9, "images": 5, "model": "m"}
    half, nan = speeds({"file": "a.onnx"}), speeds(speed_of("a.onnx", float("nan")))
    benchmark = "export.benchmark --json FILE` writes"
    for flag, content, message in (
        ("--evaluation", [], "a.json is no evaluation (ValueError: not a list of rows)"),
        ("--evaluation", [evaluation], "a row has more right answers than images"),
        ("--evaluation", [{"model": "a", "images": 5}], "evaluate --json FILE` writes"),
        ("--evaluation", ["a"], "a.json is no evaluation"),
        ("--benchmark", [], "a.json is no benchmark"),
        ("--benchmark", speeds(), benchmark),
        ("--benchmark", half, "a.json is no benchmark (KeyError: 'single_stream')"),
        ("--benchmark", nan, "a figure of a.onnx is not a number above 0"),
    ):
        write(tmp_path / "a.json", json.dumps(content))
        check([run.path, flag, "a.json"], message)
    certificate = exports / "certificate.json"
    check([run.path, "--evaluation", certificate], "certificate.json is no evaluation")
    text = write(tmp_path / "a.txt", "no json")
    for flag, name in (("--evaluation", "evaluation"), ("--benchmark", "benchmark")):
        check([run.path, flag, text], f"a.txt is no {name}")
        check([run.path, flag, "no.json"], f"No {name} at no.json")


def test_an_impossible_page_or_other_data_are_refused(run, photos, tmp_path, check):
    write(tmp_path / "file", "")
    (tmp_path / "empty").mkdir()
    check([run.path, "--out", "empty"], "empty is a folder")
    check([run.path, "--out", "file/page.html"], "a file, not a folder")
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.copy(run.path / "model.keras", moved)
    write(moved / "run.json", json.dumps({**run.metadata, "data": str(tmp_path / "gone")}))
    check(["moved"], "give --data where they are now")
    check(["moved", "--data", "nowhere"], "Unknown data 'nowhere'")
    check(["moved", "--data", photos], "10 classes and the data 2")


def test_another_backend_is_refused(run, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(InputError, match="set KERAS_BACKEND=tensorflow"):
        report(run.path, out="page.html")
