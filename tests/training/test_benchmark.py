"""The training benchmark: what it counts. Its figures are the README's, not a test's."""

from __future__ import annotations

import json
import os

import pytest

from vggkeras import configs, files
from vggkeras.__main__ import cli
from vggkeras.commands.benchmark import FIGURES
from vggkeras.training.benchmark import (
    CROPS,
    PIPELINE,
    PLAIN,
    STEP,
    TRAINING,
    in_threads,
    photograph_like,
    thread_counts,
)

pytestmark = pytest.mark.integration


@pytest.mark.full
def test_the_benchmark_counts_what_it_does(command, tmp_path):
    sizes = (
        "--image-size",
        32,
        "--width",
        0.05,
        "--fc-units",
        8,
        "--batch-size",
        4,
        "--scale",
        "40:64",
    )
    counts = ("--images", 8, "--steps", 2, "--rounds", 2)
    code, out, err = command(
        cli, "benchmark", "--arch", "A", *sizes, *counts, "--json", tmp_path / "b.json"
    )
    assert code == 0, err
    files.check_file(tmp_path / "b.json", FIGURES)  # it may be overwritten by the same command
    figures = json.loads((tmp_path / "b.json").read_text())
    parts = figures["parts"]
    assert {name: row["images"] for name, row in parts.items()} == dict.fromkeys(
        (PLAIN, CROPS, *map(in_threads, thread_counts()), PIPELINE, STEP, TRAINING), 16
    )
    assert thread_counts() == [n for n in (1, 2, 4, 8, 16, 32, 64, 128) if n < os.cpu_count()]
    assert 0 <= figures["waiting"] <= 1
    assert f"training waits for data {figures['waiting']:.1%} of its time" in out
    assert f"{figures['pipeline_over_step']:.1f} times what the bare step takes" in out
    assert all(name in out for name in parts)
    multiply_adds = sum(
        layer.multiply_adds
        for layer in configs.plan("A", (32, 32, 3), 1000, width=0.05, fc_units=8)
    )
    for name in (STEP, TRAINING):
        row = parts[name]
        assert row["gflops"] == pytest.approx(row["images_per_second"] * 6 * multiply_adds / 1e9)
        assert row["milliseconds_per_step"] == pytest.approx(4e3 / row["images_per_second"])
    assert (
        figures["crops_over_plain"]
        == parts[CROPS]["images_per_second"] / parts[PLAIN]["images_per_second"]
    )
    assert figures["images_per_step"] == 4


def test_generated_photographs_weigh_what_photographs_do():
    sizes = [len(encoded) for _, encoded, _ in photograph_like(4).examples()]
    assert 70_000 < min(sizes) < max(sizes) < 130_000  # ImageNet's are some 110 kB


def test_benchmark_mistakes(command):
    for flags, message in {
        ("--scale", "100"): "scale must be at least",
        ("--steps", 0): "steps must be 1 or more",
    }.items():
        code, _, err = command(cli, "benchmark", *flags)
        assert code == 2
        assert message in err
