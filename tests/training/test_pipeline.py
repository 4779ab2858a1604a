"""The input pipelines: which images come when, the same from memory and from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from helpers import tiny
from rich.console import Console

import vggkeras
from vggkeras.card import ModelCard
from vggkeras.data import augment, decoding
from vggkeras.evaluation import protocols
from vggkeras.runtimes.keras import keras_predictor
from vggkeras.training import pipeline
from vggkeras.training.pipeline import Crops, rescaled_images, training_batches, validation_batches


def batches_of(split, recipe, crops, count, rescaled=None, start=0):
    batches = training_batches(split, recipe, crops, start, rescaled)
    return [
        np.concatenate(parts)
        for parts in zip(*batches.take(count).as_numpy_iterator(), strict=True)
    ]


def test_training_batches_show_every_image_equally_often(photos):
    split = vggkeras.load_data(str(photos)).split("train")
    recipe = tiny(Path("x"), batch_size=6)
    crops = Crops(40, (40, 40), flip=False)
    seen, labels = batches_of(split, recipe, crops, 8)  # 48 = 3 passes of 16
    assert np.bincount(labels).tolist() == [24, 24]
    windows = {}  # every crop of 40 of an image's 48 rows -> the image
    for index, encoded, _ in split.examples():
        image = decoding.decode(encoded)
        windows |= {image[top : top + 40].tobytes(): index for top in range(9)}
    assert np.bincount([windows[crop.tobytes()] for crop in seen]).tolist() == [3] * 16


def test_training_batches_are_the_same_from_memory_and_entered_anywhere(photos):
    split = vggkeras.load_data(str(photos)).split("train")
    recipe = tiny(Path("x"), batch_size=8, accumulate=2)
    basis = augment.color_basis(np.diag([4000.0, 2000.0, 1000.0]))
    crops = Crops(40, (40, 40), basis=basis)
    images, labels = batches_of(split, recipe, crops, 10)
    assert images.dtype == np.float32
    assert images.shape == (40, 40, 40, 3)  # steps of four
    rescaled = rescaled_images(split, (40, 40), Console())
    for start, kept in ((0, rescaled), (4, None), (17, rescaled), (17, None)):
        part = batches_of(split, recipe, crops, 5, kept, start)
        np.testing.assert_array_equal(part[0], images[start : start + 20])
        np.testing.assert_array_equal(part[1], labels[start : start + 20])


def test_only_what_fits_is_kept_in_memory(photos, monkeypatch):
    split = vggkeras.load_data(str(photos)).split("train")
    assert rescaled_images(split, (40, 41), Console()) is None  # another scale every time
    monkeypatch.setattr(pipeline, "CACHE_BYTES", 16 * 40 * 40 * 3)
    assert rescaled_images(split, (40, 40), Console()) is None


def test_validation_batches_are_the_center_protocols_crops(photos):
    split = vggkeras.load_data(str(photos)).split("validation")
    batches = validation_batches(split, 3, 32, 37).as_numpy_iterator()
    model = vggkeras.build("A", (32, 32, 3), 2, width=0.02, fc_units=4)
    crops, _ = protocols.central_crops(keras_predictor(model, ModelCard(scale=37)), split)
    np.testing.assert_array_equal(np.concatenate([x for x, _ in batches]), crops)
