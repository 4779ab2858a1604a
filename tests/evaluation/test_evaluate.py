"""The paper's protocols against a second reading of them, in NumPy and Pillow alone; the statistics against formulas."""

from __future__ import annotations

import json
import math
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import photo
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

import vggkeras
from vggkeras import files, layers
from vggkeras.__main__ import cli
from vggkeras.card import ModelCard
from vggkeras.data import augment
from vggkeras.data.splits import Split
from vggkeras.errors import InputError
from vggkeras.evaluation import paper, protocols, scoring, statistics, tables
from vggkeras.evaluation import protocols as protocols_module
from vggkeras.evaluation.statistics import Comparison, Evaluation
from vggkeras.recipe import Recipe
from vggkeras.runtimes.predictor import Predictor

CROP = 32
SHAPES = [
    (100, 300),
    (333, 777),
    (160, 160),
    (32, 32),
    (33, 200),
    (211, 64),
    (40, 427),
    (427, 41),
    (90, 91),
    (57, 120),
]
FILES = ("model.keras", "model.onnx", "model.tflite")


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    """Twenty pieces of scikit-learn's two photographs, of odd shapes; the first is square and of the crop's size."""
    pieces = []
    for k, original in enumerate(load_sample_images().images):
        for i, (h, w) in enumerate(SHAPES):
            piece = Image.fromarray(original).crop((13 * i, 7 * i, 13 * i + 300, 7 * i + 300))
            pieces.append(
                np.asarray(piece.resize((w, h) if k == 0 else (h, w), Image.Resampling.BICUBIC))
            )
    return sorted(pieces, key=lambda piece: piece.shape != (CROP, CROP, 3))


@pytest.fixture(scope="module")
def predictors(run, dense_exports) -> dict[str, Predictor]:
    return {"model.keras": vggkeras.load(run.path)} | {
        f: vggkeras.load(dense_exports / f) for f in FILES[1:]
    }


# The second reading: paper, section 3.2, and nothing of ours but the weights.


def soft_max(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def score_maps(model, images: np.ndarray) -> np.ndarray:
    """Class scores before soft-max, [N, places down, places across, classes], by matrices in float64."""
    x = images.astype(np.float64) - layers.mean_rgb(model)
    names = [layer.name for layer in model.layers]
    for layer in model.layers:
        weights = [np.asarray(w, np.float64) for w in layer.get_weights()]
        if "_conv" in layer.name:
            padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            windows = np.lib.stride_tricks.sliding_window_view(
                padded, (3, 3), (1, 2)
            )  # [N, H, W, C, 3, 3]
            x = np.tensordot(windows, weights[0], ((4, 5, 3), (0, 1, 2))) + weights[1]
            if layer.name.replace("conv", "bn") not in names:
                x = np.maximum(x, 0)
        elif "_bn" in layer.name:
            gamma, beta, mean, variance = weights
            x = np.maximum(gamma * (x - mean) / np.sqrt(variance + 1e-5) + beta, 0)
        elif layer.name == "lrn":
            c = x.shape[-1]
            squares = [np.square(x[..., max(0, i - 2) : i + 3]).sum(axis=-1) for i in range(c)]
            x = x / (2 + 1e-4 * np.stack(squares, -1)) ** 0.75
        elif "_pool" in layer.name:
            n, h, w, c = x.shape
            x = (
                x[:, : h // 2 * 2, : w // 2 * 2]
                .reshape(n, h // 2, 2, w // 2, 2, c)
                .max(axis=(2, 4))
            )
    kernels = [
        [np.asarray(w, np.float64) for w in model.get_layer(n).get_weights()]
        for n in ("fc1", "fc2", "predictions")
    ]
    side = CROP // 32  # of the last map under one crop
    down, across = x.shape[1] - side + 1, x.shape[2] - side + 1
    maps = np.empty((len(x), down, across, kernels[-1][1].size))
    for i in range(down):
        for j in range(across):
            y = x[:, i : i + side, j : j + side].reshape(len(x), -1)
            for kernel, bias in kernels[:2]:
                y = np.maximum(y @ kernel + bias, 0)
            maps[:, i, j] = y @ kernels[2][0] + kernels[2][1]
    return maps


def second_reading(model, image: np.ndarray, scale: int) -> dict[str, np.ndarray]:
    h, w = image.shape[:2]
    size = (scale, round(h * scale / w)) if w <= h else (round(w * scale / h), scale)
    rescaled = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    h, w = rescaled.shape[:2]
    top, left = (h - CROP) // 2, (w - CROP) // 2
    center = soft_max(
        score_maps(model, rescaled[None, top : top + CROP, left : left + CROP])[:, 0, 0]
    )[0]
    views = np.stack([rescaled, np.fliplr(rescaled)])
    dense = soft_max(score_maps(model, views).mean(axis=(1, 2))).mean(axis=0)
    crops = []
    for i in range(5):
        for j in range(5):
            y, x = math.floor(i * (h - CROP) / 4), math.floor(j * (w - CROP) / 4)
            crop = rescaled[y : y + CROP, x : x + CROP]
            crops += [crop, np.fliplr(crop)]
    multicrop = soft_max(score_maps(model, np.stack(crops))[:, 0, 0]).mean(axis=0)
    return {
        "center": center,
        "dense": dense,
        "multicrop": multicrop,
        "both": (dense + multicrop) / 2,
    }


@pytest.fixture(scope="module")
def readings(run, photographs) -> dict[int, list[dict[str, np.ndarray]]]:
    return {q: [second_reading(run.model, image, q) for image in photographs] for q in (32, 75)}


@pytest.mark.parametrize("file", FILES)
def test_every_protocol_agrees_with_a_second_reading(predictors, photographs, readings, file):
    for protocol in protocols_module.PROTOCOLS:
        for scales in ((32,), (75,), (32, 75)):
            p = vggkeras.posteriors(predictors[file], photographs, protocol, scales)
            known = np.mean(
                [[reading[protocol] for reading in readings[q]] for q in scales], axis=0
            )
            assert p.dtype == np.float32
            np.testing.assert_allclose(p, known, atol=1e-5, err_msg=f"{protocol} {scales}")
    # The protocols differ where they should.
    assert np.abs(readings[75][1]["dense"] - readings[75][1]["multicrop"]).max() > 1e-3


@pytest.mark.parametrize("file", FILES)
def test_one_view_is_the_central_crop(predictors, photographs, file):
    predictor, square = (
        predictors[file],
        [image for image in photographs if image.shape[0] == image.shape[1]],
    )
    center = vggkeras.posteriors(predictor, square, scales=(CROP,))
    dense = vggkeras.posteriors(predictor, square, "dense", (CROP,), mirrors=False)
    np.testing.assert_allclose(dense, center, atol=1e-6)
    center = vggkeras.posteriors(predictor, photographs, scales=(50,))
    crop = vggkeras.posteriors(predictor, photographs, "multicrop", (50,), mirrors=False, grid=1)
    np.testing.assert_allclose(crop, center, atol=1e-6)
    mirrored = [image[:, ::-1] for image in photographs]
    for protocol in ("dense", "both"):
        ways = [
            vggkeras.posteriors(predictor, images, protocol, (CROP,))
            for images in (square, [i[:, ::-1] for i in square])
        ]
        np.testing.assert_allclose(*ways, atol=1e-6)
    assert not np.allclose(
        vggkeras.posteriors(predictor, mirrored),
        vggkeras.posteriors(predictor, photographs),
        atol=1e-3,
    )


def test_fusion_averages_and_changes_nothing_of_one_model(predictors, photographs):
    keras, onnx = predictors["model.keras"], predictors["model.onnx"]
    one = vggkeras.posteriors(keras, photographs, "dense", (40,))
    np.testing.assert_allclose(
        vggkeras.posteriors([keras, keras], photographs, "dense", (40,)), one, atol=1e-7
    )
    other = replace(keras, run=lambda images: np.roll(keras.run(images), 1, axis=1))
    fused = vggkeras.posteriors([onnx, other], photographs)
    p = vggkeras.posteriors(keras, photographs)
    np.testing.assert_allclose(fused, (p + np.roll(p, 1, axis=1)) / 2, atol=1e-5)


def test_order_and_batches_change_nothing(predictors, photographs, monkeypatch):
    predictor = predictors["model.onnx"]
    known = vggkeras.posteriors(predictor, photographs, "both", (40, 61))
    order = np.random.default_rng(0).permutation(len(photographs))
    shuffled = vggkeras.posteriors(predictor, [photographs[i] for i in order], "both", (40, 61))
    np.testing.assert_allclose(shuffled, known[order], atol=1e-6)
    for window, batch in ((1, 1), (7, 13)):
        monkeypatch.setattr(protocols, "WINDOW", window)
        monkeypatch.setattr(protocols, "MAX_BATCH", batch)
        np.testing.assert_allclose(
            vggkeras.posteriors(predictor, photographs, "both", (40, 61)), known, atol=1e-6
        )


def test_crops_go_in_full_batches_and_shapes_together(predictors, photographs):
    shapes = []

    def counted(images: np.ndarray) -> np.ndarray:
        shapes.append(images.shape)
        return predictors["model.onnx"].run(images)

    predictor = replace(predictors["model.onnx"], run=counted)
    vggkeras.posteriors(predictor, photographs, "multicrop", (40,))
    assert [shape[0] for shape in shapes] == [64] * 15 + [40]  # 20 images of 50 crops
    shapes.clear()
    dense = replace(
        predictors["model.onnx"].dense_form(),
        run=lambda x: (shapes.append(x.shape), x)[1][:, 0, 0, :1] * 0,
    )
    dense = replace(dense, outputs=1, card=ModelCard())
    alike = [photographs[0], *photographs[1:3], *photographs[:3]]
    vggkeras.posteriors(dense, alike, "dense", (40,))
    assert len(shapes) == len({augment.rescale(image, 40).shape for image in alike}) < len(alike)
    assert sum(shape[0] for shape in shapes) == 2 * len(alike)


# Rows


def split_of(images, labels) -> Split:
    encoded = []
    for i, image in enumerate(images):
        path = Path(f"{i}.png").absolute()
        Image.fromarray(image).save(path)
        encoded.append(str(path))
    return Split("made", len(images), np.array(labels, np.int64), encoded)


def test_rows_are_counts_of_posteriors(predictors, photographs, run):
    labels = np.arange(20) % 10
    split = split_of(photographs, labels)
    models = [predictors["model.keras"], predictors["model.onnx"]]
    rows = scoring.evaluate(
        models, split, [str(i) for i in range(10)], ["center", "both"], (32, 75), fuse=True
    )
    assert len(rows) == 3 * 2 * 3  # two models and their fusion, two protocols, each scale and both
    assert [row.scales for row in rows[:3]] == [(32,), (75,), (32, 75)]
    row = next(row for row in rows if row.protocol == "both" and row.scales == (32, 75))
    p = vggkeras.posteriors(models[0], photographs, "both", (32, 75))
    best = np.argsort(-p, axis=1)
    assert row.predictions.tolist() == best[:, 0].tolist()
    assert row.correct == sum(best[:, 0] == labels)
    assert row.correct5 == sum(
        label in order[:5] for label, order in zip(labels, best, strict=True)
    )
    np.testing.assert_allclose(row.confidences, p.max(axis=1), atol=1e-6)
    assert rows[-1].models == tuple(str(model.path) for model in models)
    assert rows[-1].predictions.tolist() == row.predictions.tolist()
    matrix = row.confusion_matrix()
    assert matrix.sum() == 20
    for i, recall in enumerate(row.recalls()):
        assert recall == np.mean(row.predictions[labels == i] == i)


def test_memory_does_not_grow_with_the_images(photographs):
    """A model that costs nothing, so that what the evaluation itself holds is seen."""
    image = photographs[-1]
    card = ModelCard(("a", "b"))
    names = ("images", "probabilities")
    free = Predictor(
        Path("free"),
        "none",
        "",
        "cpu",
        (32, 32, 3),
        2,
        *names,
        card,
        lambda x: np.ones((len(x), 2), np.float32),
    )
    (path,) = split_of([image], [0]).sources or ()

    def peak(count: int) -> int:
        split = Split("many", count, np.zeros(count, np.int64), [path] * count)
        tracemalloc.start()
        (row,) = scoring.evaluate(free, split, ["a", "b"], "multicrop", (100,))
        assert row.images == count
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    # 25 crops and their mirrors an image. A window and what is decoded ahead of it are held, some 50 images; how many
    # at the peak is a matter of threads.
    assert peak(800) < 800 * 50 * 32 * 32 * 3 / 2


# Statistics


def row_of(labels, predictions, confidences=None) -> Evaluation:
    n = len(labels)
    confidences = np.full(n, 0.5) if confidences is None else confidences
    arrays = (
        np.arange(n),
        np.array(labels),
        np.array(predictions),
        np.array(confidences, np.float32),
    )
    return Evaluation(
        ("m",), "r 1", "cpu", "center", (32,), ["a", "b", "c"], *arrays, np.ones(n, bool), 1.0
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


def test_the_papers_errors_stand_beside_ours():
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
    assert paper.paper_errors([d], replace(row("dense", (384,)), class_names=["x"] * 10)) is None


# The command


def test_the_command_shows_and_writes_the_rows(run, dense_exports, command, tmp_path):
    models = [run.path, dense_exports / "model.dense.onnx"]
    protocols = ["center", "dense", "multicrop"]
    arguments = [
        "--protocol",
        *protocols,
        "--scales",
        "40",
        "--fuse",
        "--json",
        tmp_path / "e.json",
    ]
    code, out, err = command(cli, "evaluate", "--model", *models, "--data", "digits", *arguments)
    assert code == 0, err
    rows = json.loads((tmp_path / "e.json").read_text())
    assert [row["protocol"] for row in rows] == 3 * protocols  # of each model, and fused
    assert "cost of dense : multicrop" in out
    for path, runtime in zip(
        models, ("keras", "onnxruntime"), strict=True
    ):  # each row's name is told in full
        assert f"{path}" in " ".join(out.split())
        assert f"in {runtime} " in " ".join(out.split())
    assert "dense" in out
    for number, row in enumerate(rows):
        assert row["images"] == 360
        assert row["top1_error_interval"][0] <= row["top1_error"] <= row["top1_error_interval"][1]
        assert sum(count for *_, count in row["confusions"]) == 360
        assert sum(count for a, b, count in row["confusions"] if a == b) == row["correct"]
        assert [pair["row"] for pair in row["against"]] == list(range(number))
        for pair in row["against"]:
            assert (
                len(pair["gained"]) - len(pair["lost"])
                == row["correct"] - rows[pair["row"]]["correct"]
            )
    # Keras and ONNX Runtime answer alike: no image flips between them.
    for ours, theirs in zip(rows[:3], rows[3:6], strict=True):
        assert (ours["correct"], ours["correct5"]) == (theirs["correct"], theirs["correct5"])
    flipped = {
        name for row in rows for pair in row["against"] for name in pair["gained"] + pair["lost"]
    }
    assert all(name.startswith("digits/validation[") for name in flipped)


def test_digits_are_never_mirrored_and_photographs_are(run, command, tmp_path, photos):
    from vggkeras.models import save_model

    model = vggkeras.build("A", (32, 32, 3), 2, width=0.02, fc_units=4, seed=1)
    save_model(model, tmp_path / "m.keras", ModelCard(("cat", "dog")))
    differ = []
    for path, data in ((run.path, "digits"), (tmp_path / "m.keras", photos)):
        told = []
        for mirrors in ("--mirrors", "--no-mirrors"):
            arguments = [
                "--data",
                data,
                "--protocol",
                "dense",
                "--json",
                tmp_path / "e.json",
                mirrors,
            ]
            assert command(cli, "evaluate", "--model", path, *arguments)[0] == 0
            told.append(json.loads((tmp_path / "e.json").read_text())[0]["calibration_error"])
        differ.append(told[0] != told[1])
    assert differ == [False, True]


def test_bad_input_is_said(predictors, photographs, tmp_path):
    keras, onnx = predictors["model.keras"], predictors["model.onnx"]
    names = [str(i) for i in range(10)]
    split = split_of(photographs[:4], [0, 1, 10, 3])
    with pytest.raises(
        InputError, match=r"2\.png is labelled 10, and the model's 10 classes are 0 to 9"
    ):
        scoring.evaluate(keras, split, names)
    with pytest.raises(InputError, match="made has no images"):
        scoring.evaluate(keras, split_of([], []), names)
    for protocol in protocols_module.PROTOCOLS:
        with pytest.raises(InputError, match="Scale 31 is below the model's input of 32 px"):
            vggkeras.posteriors(keras, photographs, protocol, (31,))
    with pytest.raises(InputError, match="each counts once"):
        vggkeras.posteriors(keras, photographs, "center", (32, 32))
    with pytest.raises(InputError, match="cannot be fused"):
        vggkeras.posteriors(
            [keras, replace(onnx, card=replace(onnx.card, class_names=tuple(names[::-1])))],
            photographs,
        )
    with pytest.raises(InputError, match="name class 9 differently"):
        scoring.evaluate(
            [keras, replace(onnx, card=replace(onnx.card, class_names=(*names[:9], "x")))],
            split.without([2]),
            names,
            fuse=True,
        )
    with pytest.raises(InputError, match="two models or more"):
        scoring.evaluate(keras, split, names, fuse=True)
    with pytest.raises(InputError, match="Unknown protocol 'x'"):
        scoring.evaluate(keras, split, names, "x")
    for scales in (40, (40.5,), "40"):
        with pytest.raises(InputError, match="scales must be a list of whole numbers"):
            vggkeras.posteriors(keras, photographs, scales=scales)
    with pytest.raises(InputError, match="Protocols must differ"):
        scoring.evaluate(keras, split, names, ["center", "center"])
    with pytest.raises(InputError, match="grid must be 1 or more"):
        vggkeras.posteriors(keras, photographs, "multicrop", grid=0)


def test_unreadable_images_are_counted_and_named_or_left_out(predictors, photographs):
    split = split_of(photographs[:6], range(6))
    for i in (1, 4):
        Path(f"{i}.png").write_bytes(Path(f"{i}.png").read_bytes()[:-60])
    names = [str(i) for i in range(10)]
    with pytest.raises(
        InputError, match=r"1\.png, \S*4\.png cannot be read as .* \(2 of the 6 of made\): replace"
    ):
        scoring.evaluate(predictors["model.onnx"], split, names)
    skipped: list[str] = []
    (row,) = scoring.evaluate(predictors["model.onnx"], split, names, skipped=skipped)
    assert row.indices.tolist() == row.labels.tolist() == [0, 2, 3, 5]
    assert [Path(name).name for name in skipped] == ["1.png", "4.png"]


def test_files_that_are_no_images_and_those_cut_short_are_counted_together(
    command, tmp_path, photos
):
    from vggkeras.models import save_model

    model = vggkeras.build("A", (32, 32, 3), 2, width=0.02, fc_units=4)
    save_model(model, tmp_path / "m.keras", ModelCard(("cat", "dog")))
    cut = photos / "val" / "cat" / "001.jpg"
    cut.write_bytes(cut.read_bytes()[:-200])
    (photos / "val" / "cat" / "002.jpg").write_text("no image")
    (photos / "val" / "dog" / "link.jpg").symlink_to("nothing")
    (photos / "val" / "dog" / "folder.jpg").mkdir()
    arguments = ["evaluate", "--model", tmp_path / "m.keras", "--data", photos]
    code, _, err = command(cli, *arguments)
    assert code == 2
    told = " ".join(err.split())
    assert all(name in told for name in ("001.jpg", "002.jpg", "link.jpg"))
    assert f"(3 of {photos})" in told
    code, out, _ = command(cli, *arguments, "--skip-unreadable")
    assert code == 0
    assert "skipped 3 unreadable images" in out


@pytest.mark.parametrize("place", ["folder", ".", "file/e.json"])
def test_figures_are_never_written_over_a_folder_and_bad_places_are_said_first(
    place, exports, command, tmp_path
):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept.txt").write_text("important")
    (tmp_path / "file").write_text("")
    model = exports / "model.tflite"
    code, out, err = command(cli, "evaluate", "--model", model, "--data", "digits", "--json", place)
    assert (code, out) == (2, "")
    assert "folder" in err
    with pytest.raises(IsADirectoryError):
        files.write_text(tmp_path / "folder", "lost")
    assert (tmp_path / "folder" / "kept.txt").read_text() == "important"


def test_a_file_without_its_dense_form_says_how_to_get_it(
    run, exports, dense_exports, tmp_path, command
):
    import shutil

    for name in ("model.onnx", "model.tflite"):
        shutil.copy(dense_exports / name, tmp_path)
        arguments = [
            "evaluate",
            "--model",
            tmp_path / name,
            "--data",
            "digits",
            "--protocol",
            "dense",
        ]
        code, _, err = command(cli, *arguments)
        assert code == 2
        assert f"python -m export --dense --format {name.split('.')[1]}" in " ".join(err.split())
    # One of another model beside it is not taken for its own.
    other = tmp_path / "other.onnx"
    shutil.copy(dense_exports / "model.onnx", other)
    from export import export_model

    model = vggkeras.build("A", (32, 32, 3), 10, width=0.02, fc_units=4)
    model.save(tmp_path / "o.keras")
    export_model(tmp_path / "o.keras", "onnx", data="digits", out=tmp_path, dense=True, images=20)
    with pytest.raises(InputError, match="but of another model"):
        vggkeras.posteriors(vggkeras.load(tmp_path / "model.onnx"), [photo(0)], "dense")


def test_a_dense_file_refuses_what_is_too_small_and_takes_the_rest(dense_exports):
    for name in ("model.dense.onnx", "model.dense.tflite", "saved_model.dense"):
        dense = vggkeras.load(dense_exports / name)
        assert dense.dense
        assert dense.input_shape == (32, 32, 3)
        assert dense(np.zeros((3, 50, 41, 3), np.uint8)).shape == (3, 10)
        with pytest.raises(
            InputError, match=r"\[N, 32, 32, 3\] or larger; received shape \[1, 31, 50, 3\]"
        ):
            dense(np.zeros((1, 31, 50, 3), np.uint8))


def test_another_shape_is_not_another_trace(predictors):
    dense = predictors["model.keras"].dense_form()
    (function,) = (
        c.cell_contents
        for c in dense.run.__closure__
        if hasattr(c.cell_contents, "python_function")
    )
    for h, w in ((32, 32), (33, 60), (90, 47)):
        dense(np.zeros((2, h, w, 3), np.uint8))
    assert function.experimental_get_tracing_count() == 1


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
