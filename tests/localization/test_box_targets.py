"""Boxes follow their image into training and validation crops: seen on masks, to a pixel."""

from __future__ import annotations

import csv

import keras
import numpy as np
import pytest
from helpers import stored
from PIL import Image
from rich.console import Console

import vggkeras
from vggkeras.data.boxes import Boxes
from vggkeras.localization import geometry, regression
from vggkeras.recipe import Recipe
from vggkeras.training.pipeline import Crops, rescaled_images, training_batches, validation_batches

SIZE, SCALE = 40, 52


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    """Class folders of white rectangles on black, stored in all orientations, and boxes.csv."""
    folder = tmp_path_factory.mktemp("masks")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(48):
        height, width = rng.integers(30, 140, 2)
        top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
        bottom = rng.integers(top + height // 4, height + 1)
        right = rng.integers(left + width // 4, width + 1)
        mask = np.zeros((height, width, 3), np.uint8)
        mask[top:bottom, left:right] = 255
        name = f"{'ab'[i % 2]}/{i:02d}.{['png', 'jpg'][i // 2 % 2]}"
        (folder / name).parent.mkdir(exist_ok=True)
        options = {"quality": 95} if name.endswith("jpg") else {}
        kind = "JPEG" if options else "PNG"
        data = stored(Image.fromarray(mask), 1 + i % 8, kind, **options)
        (folder / name).write_bytes(data)
        rows.append([name, name[0], left, top, right, bottom])
    with open(folder / "boxes.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file", "label", "xmin", "ymin", "xmax", "ymax"], *rows])
    return folder


def assert_boxes_bound_the_masks(images, targets) -> int:
    """Check each box, clipped to its crop, against the white pixels in it; return how many have."""
    seen = 0
    for image, target in zip(np.asarray(images), np.asarray(targets), strict=True):
        white = image[..., 0] > 127
        corners = np.clip(geometry.to_corners(target[1:5].astype(np.float64)) * SIZE, 0, SIZE)
        if not white.any():  # less than a pixel of it is in the crop
            assert (corners[2:] - corners[:2]).min() < 1
            continue
        rows, columns = np.nonzero(white)
        bounds = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        # An edge lies within half a pixel of where the filtered mask crosses half of its height;
        # next to another edge of the crop or of the image, within one.
        assert np.abs(corners - bounds).max() <= 1, (corners, bounds)
        seen += 1
    return seen


@pytest.mark.parametrize("exif", [True, False])
@pytest.mark.parametrize(
    ("scale", "in_memory"),
    [((SCALE, SCALE), True), ((SCALE, SCALE), False), ((SIZE, 2 * SIZE), False)],
)
def test_boxes_bound_the_masks_in_training_crops(masks, exif, scale, in_memory):
    split = vggkeras.load_data(str(masks), boxes=True, whole=True).upright(exif).split("all")
    recipe = Recipe(boxes="scr", batch_size=split.count, seed=3)
    crops = Crops(SIZE, scale)
    rescaled = rescaled_images(split, scale, Console(quiet=True)) if in_memory else None
    batches = training_batches(split, recipe, crops, 0, rescaled, 2).take(4)
    seen = sum(assert_boxes_bound_the_masks(*batch) for batch in batches)
    assert seen > 3 * split.count


def test_a_mirrored_crop_has_a_mirrored_box(masks):
    split = vggkeras.load_data(str(masks), boxes=True, whole=True).upright(True).split("all")
    recipe = Recipe(boxes="scr", batch_size=split.count)
    both = [
        next(iter(training_batches(split, recipe, Crops(SIZE, (SCALE, SCALE), flip))))
        for flip in (False, True)
    ]
    (images, targets), (flipped_images, flipped) = ([np.asarray(x) for x in one] for one in both)
    mirrored = np.abs(images[:, :, ::-1].astype(int) - flipped_images).max((1, 2, 3)) == 0
    assert 0 < mirrored.sum() < split.count  # most rectangles are not symmetric
    moved = targets[:, 1] != flipped[:, 1]
    np.testing.assert_allclose(flipped[moved, 1], 1 - targets[moved, 1], atol=1e-6)
    assert mirrored[moved].all()
    np.testing.assert_array_equal(targets[:, 2:], flipped[:, 2:])


@pytest.mark.parametrize("exif", [True, False])
def test_boxes_bound_the_masks_in_validation_crops(masks, exif):
    split = vggkeras.load_data(str(masks), boxes=True, whole=True).upright(exif).split("all")
    seen = 0
    for images, targets in validation_batches(split, 16, SIZE, SCALE):
        seen += assert_boxes_bound_the_masks(images, targets)
    assert seen > 0.9 * split.count  # some rectangles are outside the central crop


def test_boxes_turn_there_and_back():
    corners = (np.array([[1.0, 2, 30, 40], [3, 4, 5, 6]]),) * 8
    boxes = Boxes(corners, np.array([[50, 60]] * 8), np.arange(1, 9))
    there = boxes.turned(False)
    assert there.sizes.tolist() == [[50, 60]] * 4 + [[60, 50]] * 4
    back = there.turned(True)
    np.testing.assert_array_equal(np.stack(back.corners), np.stack(corners))
    np.testing.assert_array_equal(back.sizes, boxes.sizes)


@pytest.mark.parametrize("boxes", ["scr", "pcr"])
def test_loss_and_overlap_are_those_of_a_second_reading(boxes):
    """The same formulas in NumPy, of the class's four outputs alone."""
    rng = np.random.default_rng(5)
    n, classes, most = 200, 3, 2
    labels = rng.integers(0, classes, n)
    true = np.concatenate(
        [rng.uniform(0.2, 0.8, (n, most, 2)), rng.uniform(0.1, 1, (n, most, 2))], 2
    )
    outputs = rng.normal(0.5, 0.2, (n, 4 * (classes if boxes == "pcr" else 1))).astype(np.float32)
    targets = np.concatenate([labels[:, None], true.reshape(n, -1)], 1).astype(np.float32)
    given = geometry.of_class(outputs, labels, boxes).astype(np.float64)
    true = targets[:, 1:].reshape(n, most, 4).astype(np.float64)
    loss = ((given - true[:, 0]) ** 2).sum(-1)
    overlap = geometry.iou(geometry.to_corners(given)[:, None], geometry.to_corners(true)).max(1)
    near = np.abs(overlap - 0.5) < 1e-4
    assert 0 < (overlap > 0.5).sum() < n
    as_numpy = keras.ops.convert_to_numpy
    np.testing.assert_allclose(as_numpy(regression.euclidean(targets, outputs)), loss, rtol=1e-4)
    np.testing.assert_allclose(as_numpy(regression.overlap(targets, outputs)), overlap, atol=1e-5)
    localized = as_numpy(regression.localized(targets, outputs))
    np.testing.assert_array_equal(localized[~near], (overlap > 0.5)[~near])


def test_other_classes_boxes_are_neither_rated_nor_trained():
    targets = np.array([[1, 0.5, 0.5, 0.4, 0.4]], np.float32)
    right = np.array([[9, 9, 9, 9, 0.5, 0.5, 0.4, 0.4]], np.float32)
    assert float(regression.euclidean(targets, right)[0]) == 0
    assert float(regression.localized(targets, right)[0]) == 1
    targets[0, 0] = 0
    assert float(regression.localized(targets, right)[0]) == 0
