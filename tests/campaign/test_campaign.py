"""The campaign's short form: no damaged or hostile input, no kill and no thread gets through."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

GROUPS = {
    "damaged files": ("flips-verify", "flips-load", "flips-convert", "checkpoints"),
    "hostile files": ("hostile-keras", "hostile-hdf5", "hostile-saved-models", "hostile-images"),
    "commands": ("commands",),
    "kills and company": ("kills-training", "kills-export", "threads", "pairs"),
    "fuzzing": ("fuzz-card", "fuzz-containers", "fuzz-checkpoints", "fuzz-weights"),
}
EVERY_TIME = ("commands",)  # the other tests damage and kill, too, if not as often
TIMED = "slow"  # no test asserts a time


@pytest.mark.skipif(sys.platform != "linux", reason="the campaign forks after libraries are loaded")
@pytest.mark.parametrize(
    "group",
    [
        pytest.param(group, marks=[] if group in EVERY_TIME else pytest.mark.full)
        for group in GROUPS
    ],
)
def test_nothing_gets_through(group, tmp_path):
    results = tmp_path / "rows.json"
    program = Path(__file__).parent
    root = program.parents[1]
    process = subprocess.run(
        [sys.executable, program, "--short", "--work", tmp_path / "work", "--json", results]
        + ["--trials", *GROUPS[group]],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [row["trial"] for row in rows] == list(GROUPS[group]), process.stderr[-3000:]
    failures = {
        row["trial"]: row["details"]
        for row in rows
        if any(kind != TIMED for kind in row["failures"])
    }
    assert not failures, process.stdout
