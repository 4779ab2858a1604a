"""The programs of the documented figures start from any folder."""

from __future__ import annotations

import subprocess
import sys

import pytest
from sizes import ROOT

PROGRAMS = sorted((ROOT / "tests" / "benchmarks").glob("*.py"))
IMPORTED = "import runpy, sys; sys.path[0], path = sys.argv[1:]; runpy.run_path(path)"


@pytest.mark.full  # a program that nobody changed still starts
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_a_benchmark_starts_from_any_folder(program, tmp_path):
    """With its own folder first on the path, as Python starts it; it is not run."""
    command = [sys.executable, "-c", IMPORTED, program.parent, program]
    child = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert child.returncode == 0, child.stderr
