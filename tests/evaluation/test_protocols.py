"""The test protocols against a second reading of the paper, in NumPy and Pillow alone."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import vggkeras
from vggkeras import layers
from vggkeras.card import ModelCard
from vggkeras.data import augment
from vggkeras.errors import InputError
from vggkeras.evaluation import protocols

pytestmark = pytest.mark.integration

CROP = 32
FILES = ("model.keras", "model.onnx", "model.tflite")

# The second reading of section 3.2 takes nothing but the weights from the package.


def soft_max(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def score_maps(model, images: np.ndarray) -> np.ndarray:
    """Return class scores before soft-max, float64 [N, h, w, classes]."""
    x = images.astype(np.float64) - layers.mean_rgb(model)
    names = [layer.name for layer in model.layers]
    for layer in model.layers:
        weights = [np.asarray(w, np.float64) for w in layer.get_weights()]
        if "_conv" in layer.name:
            padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            # [N, H, W, C, 3, 3]
            windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
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
def some(photographs) -> list[np.ndarray]:
    """The square one of the crop's size, wide and tall ones, an almost square and a narrow one."""
    return [photographs[i] for i in (0, 2, 5, 6, 8)]


@pytest.fixture(scope="module")
def readings(run, some) -> dict[int, list[dict[str, np.ndarray]]]:
    return {q: [second_reading(run.model, image, q) for image in some] for q in (32, 75)}


@pytest.mark.parametrize("file", FILES)
def test_every_protocol_agrees_with_a_second_reading(predictors, some, readings, file):
    for protocol in protocols.PROTOCOLS:
        for scales in ((75,), (32, 75)):
            p = vggkeras.posteriors(predictors[file], some, protocol, scales)
            expected = np.mean(
                [[reading[protocol] for reading in readings[q]] for q in scales], axis=0
            )
            assert p.dtype == np.float32
            np.testing.assert_allclose(p, expected, atol=1e-5, err_msg=f"{protocol} {scales}")
    # The protocols differ where they should.
    assert np.abs(readings[75][1]["dense"] - readings[75][1]["multicrop"]).max() > 1e-3


@pytest.mark.parametrize("file", FILES)
def test_one_view_is_the_central_crop(predictors, photographs, file):
    predictor = predictors[file]
    square = [image for image in photographs if image.shape[0] == image.shape[1]]
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
    expected = vggkeras.posteriors(predictor, photographs, "both", (40, 61))
    order = np.random.default_rng(0).permutation(len(photographs))
    shuffled = vggkeras.posteriors(predictor, [photographs[i] for i in order], "both", (40, 61))
    np.testing.assert_allclose(shuffled, expected[order], atol=1e-6)
    for window, batch in ((1, 1), (7, 13)):
        monkeypatch.setattr(protocols, "WINDOW", window)
        monkeypatch.setattr(protocols, "MAX_BATCH", batch)
        np.testing.assert_allclose(
            vggkeras.posteriors(predictor, photographs, "both", (40, 61)), expected, atol=1e-6
        )


def test_crops_go_in_full_batches_and_shapes_together(predictors, photographs):
    shapes = []

    def counted(images: np.ndarray) -> np.ndarray:
        shapes.append(images.shape)
        return predictors["model.onnx"].run(images)

    predictor = replace(predictors["model.onnx"], run=counted)
    vggkeras.posteriors(predictor, photographs, "multicrop", (40,))
    assert [shape[0] for shape in shapes] == [64] * 7 + [52]  # 10 images of 50 crops
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


def test_bad_input_is_an_error(predictors, photographs):
    keras, onnx = predictors["model.keras"], predictors["model.onnx"]
    for protocol in protocols.PROTOCOLS:
        with pytest.raises(InputError, match="Scale 31 is below the model's input of 32 px"):
            vggkeras.posteriors(keras, photographs, protocol, (31,))
    for scales in (40, (40.5,), "40"):
        with pytest.raises(InputError, match="scales must be a list of whole numbers"):
            vggkeras.posteriors(keras, photographs, scales=scales)
    with pytest.raises(InputError, match="each counts once"):
        vggkeras.posteriors(keras, photographs, "center", (32, 32))
    reversed_names = tuple(onnx.class_names[::-1])
    other = replace(onnx, card=replace(onnx.card, class_names=reversed_names))
    with pytest.raises(InputError, match="cannot be fused"):
        vggkeras.posteriors([keras, other], photographs)
    with pytest.raises(InputError, match="grid must be 1 or more"):
        vggkeras.posteriors(keras, photographs, "multicrop", grid=0)


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
