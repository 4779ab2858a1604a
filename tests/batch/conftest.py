"""Shared by the tests of labelling: a source, and what it becomes in a job that nobody killed."""

from __future__ import annotations

from pathlib import Path

import pytest
from many import write_tables

import vggkeras


@pytest.fixture(scope="session")
def model(exports) -> Path:
    return exports / "model.onnx"


@pytest.fixture(scope="session")
def tables(tmp_path_factory) -> Path:
    """2,500 images: two whole parts and a shorter one."""
    folder = tmp_path_factory.mktemp("source") / "tables"
    write_tables(folder, 2500, a_table=1300)
    return folder


@pytest.fixture(scope="session")
def whole(tables, model, tmp_path_factory) -> Path:
    """The folder that they are labelled into by a job that nobody killed."""
    out = tmp_path_factory.mktemp("whole") / "labels"
    vggkeras.label(f"{tables}/*.parquet", model, out, threads=1)
    return out
