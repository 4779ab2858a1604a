"""The greedy merge against a second reading in plain Python, and on cases that can be seen."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vggkeras.localization import merging


def distance_of_one(a, b):
    """Return the match score of two boxes, as the module's docstring says it, in plain Python."""
    (ax, ay), (bx, by) = (((x[0] + x[2]) / 2, (x[1] + x[3]) / 2) for x in (a, b))
    area_a, area_b = (max(x[2] - x[0], 0) * max(x[3] - x[1], 0) for x in (a, b))
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = width * height if width > 0 and height > 0 else 0.0
    either = area_a + area_b - both
    shift = math.dist((ax, ay), (bx, by)) / max(math.sqrt((area_a + area_b) / 2), 1)
    return shift + 1 - (both / either if either else 0)


def merged_slowly(boxes, scores, threshold):
    """Merge lists of members: nothing is kept between two steps but who is in which box."""
    groups = [[i] for i in range(len(boxes))]

    def mean(group):
        return [math.fsum(boxes[i][k] for i in group) / len(group) for k in range(4)]

    while len(groups) > 1:
        means = [mean(group) for group in groups]
        pairs = itertools.combinations(range(len(groups)), 2)
        score, i, j = min((distance_of_one(means[i], means[j]), i, j) for i, j in pairs)
        if score > threshold:
            break
        groups[i] += groups.pop(j)
    sums = [[math.fsum(scores[i][c] for i in g) for c in range(len(scores[0]))] for g in groups]
    return [mean(group) for group in groups], sums


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 3), st.integers(1, 6))
def test_the_merge_is_what_a_second_reading_gives(seed, threshold, things):
    rng = np.random.default_rng(seed)
    for count in [*range(1, 9), *range(1, 9), 3, 4, 5, 6]:  # 20 cases an example
        # Boxes about a few things, some alike, some of no area.
        centers = rng.uniform(0, 300, (things, 2))[rng.integers(0, things, count)]
        low = centers + rng.normal(0, 10, (count, 2))
        boxes = np.concatenate([low, low + rng.uniform(-5, 120, (count, 2))], 1)
        scores = rng.uniform(0, 1, (count, 3))
        got, sums = merging.merge(boxes, scores, threshold)
        expected, expected_sums = merged_slowly(boxes.tolist(), scores.tolist(), threshold)
        np.testing.assert_allclose(got, expected, atol=1e-6, rtol=0)
        np.testing.assert_allclose(sums, expected_sums, atol=1e-6, rtol=0)


NUMBERS = st.lists(st.floats(-500, 1500, width=32), min_size=16, max_size=16)


@settings(max_examples=500, deadline=None)
@given(NUMBERS)
def test_match_scores_are_what_a_second_reading_gives(numbers):
    boxes = np.array(numbers, np.float64).reshape(4, 4)
    got = merging.match_scores(boxes[:, None], boxes)
    expected = [[distance_of_one(a, b) for b in boxes.tolist()] for a in boxes.tolist()]
    np.testing.assert_allclose(got, expected, atol=1e-6, rtol=0)


def test_close_boxes_become_one_and_the_surer_of_two_wins():
    boxes = np.array([[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 2, 10, 12], [50, 50, 60, 60]])
    scores = np.array([[0.2, 0.1], [0.2, 0.0], [0.2, 0.1], [0.5, 0.9]])
    merged, sums = merging.merge(boxes, scores, 1.0)
    np.testing.assert_allclose(merged, [[1 / 3, 2 / 3, 31 / 3, 32 / 3], [50, 50, 60, 60]])
    np.testing.assert_allclose(sums, [[0.6, 0.2], [0.5, 0.9]])
    found, rated = merging.best(boxes[:, None], scores)
    np.testing.assert_allclose(found, merged)  # class 0 is where three places see it
    np.testing.assert_allclose(rated, [0.6, 0.9])


def test_each_class_has_its_own_boxes():
    boxes = np.array([[[0.0, 0, 10, 10], [5, 5, 9, 9]], [[2, 0, 12, 10], [50, 50, 60, 60]]])
    found, rated = merging.best(boxes, np.array([[0.9, 0.1], [0.8, 0.3]]))
    np.testing.assert_allclose(found, [[1, 0, 11, 10], [50, 50, 60, 60]])
    np.testing.assert_allclose(rated, [1.7, 0.3])


@pytest.mark.parametrize(("threshold", "left"), [(0, 2), (0.4, 2), (0.6, 1)])
def test_the_threshold_decides(threshold, left):
    boxes = np.array([[0.0, 0, 10, 10], [2, 0, 12, 10], [2, 0, 12, 10]])  # 0.2 + 1 - 8/12 apart
    merged, _ = merging.merge(boxes, np.ones((3, 1)), threshold)
    assert len(merged) == left


def test_nothing_and_one_box_stay_as_they_are():
    assert merging.merge(np.empty((0, 4)), np.empty((0, 1)))[0].shape == (0, 4)
    box = np.array([[3.0, 4, 5, 6]])
    np.testing.assert_array_equal(merging.merge(box, np.ones((1, 1)))[0], box)
