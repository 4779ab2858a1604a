"""The notebooks run, and what they show is what they are committed with, up to numbers."""

from __future__ import annotations

import sys

import nbformat
import pytest
from sizes import ROOT

sys.path.insert(0, str(ROOT / "notebooks"))
import execute

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_with_its_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    assert path.stat().st_size < execute.LARGEST
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in code]
    assert counts == list(range(1, len(code) + 1))
    assert sum(bool(cell.outputs) for cell in code) > len(code) / 3
    text = path.read_text(encoding="utf-8")
    for trace in ("/tmp", "ipywidgets", "Warning", "Traceback", "cuInit", "absl::"):
        assert trace not in text


def test_numbers_and_epochs_are_left_out_of_the_comparison():
    def shape(text: str) -> list[str]:
        cell = nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("stream", text=text)])
        return execute.shape(nbformat.v4.new_notebook(cells=[cell]))

    one = "epoch   1/6  loss 0.7\nright: 97.2% of 360\n│ model.onnx │ 633,347 │ 3.0e-07 │\n"
    other = "epoch   1/6  loss 0.6\nright: 100.0% of 360\n│ model.onnx │ 1,633 │  3e-8 │\n"
    assert shape(one) == shape(other) != shape("wrong: 97.2% of 360\n")


SHORT = ("10-publish",)  # it trains and exports, too


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem in SHORT else pytest.mark.full)
        for path in NOTEBOOKS
    ],
)
def test_a_notebook_shows_what_it_is_committed_with(path):
    assert execute.differences(path) == []
