"""Statistics against their formulas, the paper's tables, and how rows are shown."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggkeras.card import ModelCard
from vggkeras.errors import InputError
from vggkeras.evaluation import paper, statistics, tables
from vggkeras.evaluation.statistics import Comparison, Evaluation
from vggkeras.recipe import Recipe
from vggkeras.runtimes.predictor import Predictor


def row_of(labels, predictions, confidences=None) -> Evaluation:
    n = len(labels)
    confidences = np.full(n, 0.5) if confidences is None else confidences
    return Evaluation(
        models=("m",),
        runtime="r 1",
        provider="cpu",
        protocol="center",
        scales=(32,),
        class_names=["a", "b", "c"],
        indices=np.arange(n),
        labels=np.array(labels),
        predictions=np.array(predictions),
        confidences=np.array(confidences, np.float32),
        in5=np.ones(n, bool),
        seconds=1.0,
    )


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_the_formula(pair):
    k, n = pair
    z, p = 1.959963984540054, k / n
    middle, half = p + z * z / 2 / n, z * math.sqrt(p * (1 - p) / n + z * z / 4 / n / n)
    low, high = statistics.wilson(k, n)
    assert low == pytest.approx((middle - half) / (1 + z * z / n), abs=1e-9)
    assert high == pytest.approx((middle + half) / (1 + z * z / n), abs=1e-9)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_binomial_tail(gained, lost):
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1)) / 2**n
    assert statistics.mcnemar(gained, lost) == pytest.approx(min(1.0, 2 * tail), rel=1e-9)


def test_a_comparison_lists_what_flipped():
    first = row_of([0, 1, 2, 0, 1], [0, 1, 0, 2, 1])
    second = row_of([0, 1, 2, 0, 1], [0, 0, 2, 0, 0])
    comparison = Comparison.of(first, second)
    assert comparison.gained == [2, 3]
    assert comparison.lost == [1, 4]
    assert comparison.p == 1
    with pytest.raises(InputError, match="same images"):
        Comparison.of(first, row_of([0, 1], [0, 1]))


@given(st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=60))
def test_calibration_error_bin_by_bin(pairs):
    confidences, right = zip(*pairs, strict=True)
    row = row_of([0] * len(pairs), [0 if hit else 1 for hit in right], confidences)
    expected = 0.0
    for b in range(15):
        inside = [
            i
            for i, c in enumerate(confidences)
            if b / 15 <= c < (b + 1) / 15 or (b == 14 and c == 1)
        ]
        if inside:
            gap = np.mean([confidences[i] for i in inside]) - np.mean([right[i] for i in inside])
            expected += len(inside) / len(pairs) * abs(gap)
    # A confidence on the very edge of two bins may fall to either side of it in float32.
    assert row.calibration_error() == pytest.approx(expected, abs=1e-5) or any(
        c * 15 % 1 < 1e-4 for c in confidences
    )


def test_the_papers_errors_are_those_of_its_tables():
    def row(protocol, scales, models=("m",)):
        return replace(
            row_of([0], [0]),
            protocol=protocol,
            scales=scales,
            models=models,
            class_names=["x"] * 1000,
        )

    def model(arch, scale, name="m"):
        card = ModelCard(arch=f"vgg_{arch.lower()}")
        if scale:
            card = ModelCard(arch=arch, recipe=Recipe(arch, scale=scale, image_size=224))
        return Predictor(Path(name), "", "", "cpu", (224, 224, 3), 1000, "", "", card, lambda x: x)

    d, e = model("D", "256:512"), model("E", None, "e")
    assert paper.paper_errors([d], row("dense", (384,))) == (25.6, 8.1)
    assert paper.paper_errors([d], row("dense", (256, 384, 512))) == (24.8, 7.5)
    assert paper.paper_errors([d], row("multicrop", (256, 384, 512))) == (24.6, 7.5)
    assert paper.paper_errors([d], row("both", (256, 384))) is None
    assert paper.paper_errors([d, e], row("both", (256, 384, 512), ("m", "e"))) == (23.7, 6.8)
    assert paper.paper_errors([e], row("both", (256, 384, 512), ("e",))) == (24.4, 7.1)
    assert paper.paper_errors([model("A-LRN", "256")], row("dense", (256,))) == (29.7, 10.5)
    assert paper.paper_errors([model("B", "256")], row("dense", (224, 256, 288))) == (28.2, 9.6)
    assert paper.paper_errors([model("B", "256")], row("center", (256,))) is None
    assert paper.paper_errors([model("B", "300:400")], row("dense", (350,))) is None
    assert paper.paper_errors([d], replace(row("dense", (384,)), class_names=["x"] * 10)) is None


def test_few_flips_are_listed_and_models_are_told_apart():
    first, second = row_of([0, 1, 2, 0], [0, 1, 0, 0]), row_of([0, 1, 2, 0], [0, 0, 2, 0])
    assert tables.flips([first, second, first], "image {}".format) == [
        "row 2 gained image 2; lost image 1"
    ]
    assert tables.flips([first, second], str, most=1) == []
    paths = [
        "runs/a/model.keras",
        "runs/b/model.keras",
        "runs/a/export/model.onnx",
        "runs/b/export/model.onnx",
    ]
    assert list(tables.short_names(paths[:2]).values()) == ["a", "b"]
    assert len(set(tables.short_names(paths).values())) == 4


def test_results_are_shown_and_written():
    rows = [row_of([0, 1, 2, 0], [0, 1, 0, 0]), row_of([0, 1, 2, 0], [0, 0, 2, 1])]
    card = ModelCard(arch="D")
    model = Predictor(Path("m"), "r", "1", "cpu", (32, 32, 3), 3, "", "", card, lambda x: x)
    results = tables.Results(rows, [model], "set", "test", "image {}".format, 2.0, ["bad.png"])
    table = results.table()
    assert table.title.startswith("set, test: 4 images, 3 classes")
    assert list(table.columns[-3].cells) == ["", "+1"]
    assert list(table.columns[-2].cells) == ["", "-2"]
    assert results.notes() == [
        "m: m in r 1, cpu",
        "4 images in 2.0 s; images/s are of each row's own crops and runs",
        "row 2 gained image 2; lost image 1, image 3",
    ]
    first, second = results.to_json()
    assert (first["data"], first["split"], first["skipped"]) == ("set", "test", ["bad.png"])
    assert (first["runtime"], first["version"], first["paper_top1_error"]) == ("r", "1", None)
    assert first["against"] == []
    assert second["against"] == [
        {"row": 0, "gained": ["image 2"], "lost": ["image 1", "image 3"], "mcnemar_p": 1.0}
    ]
    assert second["recall"] == {"a": 0.5, "b": 0.0, "c": 1.0}
    assert second["confusions"] == [["a", "a", 1], ["a", "b", 1], ["b", "a", 1], ["c", "c", 1]]
