"""Boxes in NumPy, against a second reading of each formula, and against masks that are turned."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vggkeras.configs import rescaled_shape
from vggkeras.data.boxes import INVERSE, turned
from vggkeras.data.decoding import TURNS
from vggkeras.localization import geometry

COORDINATE = st.floats(-500, 1500, width=32)
BOX = st.tuples(COORDINATE, COORDINATE, COORDINATE, COORDINATE)
SIDE = st.integers(1, 900)


def overlap_of_one(a, b):
    """Return intersection over union of two boxes, one axis at a time, in plain Python."""

    def length(low, high):
        return high - low if high > low else 0.0

    both = 1.0
    for axis in (0, 1):
        both *= length(max(a[axis], b[axis]), min(a[axis + 2], b[axis + 2]))
    area_a, area_b = (length(x[0], x[2]) * length(x[1], x[3]) for x in (a, b))
    return both / (area_a + area_b - both) if area_a + area_b - both > 0 else 0.0


@settings(max_examples=2000, deadline=None)
@given(BOX, BOX)
def test_iou_is_what_a_second_reading_gives(a, b):
    expected = overlap_of_one(a, b)
    assert geometry.iou(np.array(a, np.float64), np.array(b, np.float64)) == pytest.approx(
        expected, abs=1e-6
    )
    assert 0 <= expected <= 1 + 1e-12


def test_iou_broadcasts_and_knows_the_usual_cases():
    box = np.array([0.0, 0, 10, 10])
    others = np.array(
        [[0.0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10], [3, 3, 3, 3], [9, 9, 1, 1]]
    )
    assert geometry.iou(box, others) == pytest.approx([1, 1 / 3, 0, 0, 0])
    assert geometry.iou(others[:, None], others[None]).shape == (5, 5)
    assert geometry.iou(box * 0, box * 0) == 0


def by_hand(corners, size, scale, offset, crop, mirror):
    """Return a box in a crop by moving the four edges one at a time, in plain Python."""
    height, width = size
    if width <= height:
        new_width, new_height = scale, max(scale, round(height * scale / width))
    else:
        new_width, new_height = max(scale, round(width * scale / height)), scale
    left = corners[0] / width * new_width - offset[1]
    top = corners[1] / height * new_height - offset[0]
    right = corners[2] / width * new_width - offset[1]
    bottom = corners[3] / height * new_height - offset[0]
    if mirror:
        left, right = crop[1] - right, crop[1] - left
    return (
        (left + right) / 2 / crop[1],
        (top + bottom) / 2 / crop[0],
        (right - left) / crop[1],
        (bottom - top) / crop[0],
    )


@settings(max_examples=2000, deadline=None)
@given(BOX, SIDE, SIDE, st.integers(32, 512), st.data(), st.booleans())
def test_a_box_in_a_crop_is_what_a_second_reading_gives(box, height, width, scale, data, mirror):
    size = height, width
    crop = data.draw(st.integers(32, scale)), data.draw(st.integers(32, scale))
    shape = rescaled_shape(size, scale)
    offset = tuple(
        data.draw(st.integers(0, side - extent)) for side, extent in zip(shape, crop, strict=True)
    )
    frame = size, scale, offset, crop, mirror
    ours = geometry.to_crop(np.array(box, np.float64), *frame)
    expected = by_hand(box, *frame)
    # Relative, for an enlarged box can be 10^6 crops away: float64 leaves nine digits.
    assert ours == pytest.approx(expected, rel=1e-6, abs=1e-6)
    back = geometry.to_image(ours, *frame)
    assert back == pytest.approx(box, rel=1e-6, abs=1e-6 * max(size))


@settings(max_examples=500, deadline=None)
@given(st.integers(1, 8), st.integers(2, 40), st.integers(2, 40), st.data())
def test_boxes_turn_with_their_image(orientation, height, width, data):
    top = data.draw(st.integers(0, height - 1))
    left = data.draw(st.integers(0, width - 1))
    bottom = data.draw(st.integers(top + 1, height))
    right = data.draw(st.integers(left + 1, width))
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = 1
    picture = Image.fromarray(mask)
    upright = picture.transpose(TURNS[orientation]) if orientation > 1 else picture
    rows, columns = np.nonzero(np.asarray(upright))
    expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    box = np.array([left, top, right, bottom])
    there = turned(box, (height, width), orientation)
    assert there.tolist() == expected
    back = INVERSE.get(orientation, orientation)
    assert turned(there, upright.size[::-1], back).tolist() == box.tolist()


def test_the_box_of_a_class_is_found_class_after_class():
    outputs = np.arange(24, dtype=np.float32).reshape(2, 12)
    assert geometry.of_class(outputs, np.array([2, 0]), "pcr").tolist() == [
        [8, 9, 10, 11],
        [12, 13, 14, 15],
    ]
    assert geometry.of_class(outputs[:, :4], np.array([2, 0]), "scr").tolist() == [
        [0, 1, 2, 3],
        [12, 13, 14, 15],
    ]
