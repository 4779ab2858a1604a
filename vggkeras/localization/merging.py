"""Merge the boxes that many places predict, greedily, and rate what results (Appendix A).

Sermanet et al. 2014 (OverFeat), 4.3: as long as the smallest match score of two boxes is not above
a threshold, the two are replaced by one with averaged coordinates, whose class scores are the sums
of theirs; the box with the highest class score is the answer. Two things are not plain there:

- The match score is "the sum of the distance between centers of the two bounding boxes and the
  intersection area". Taken literally, boxes would match the better the less they overlap. Here it
  is the distance of the centers, in units of the side of a square of the two boxes' mean area (or
  of 1 px, where that is less), plus one minus their intersection over union: 0 for the same box,
  whatever the size of the image.
- "The average of the bounding boxes' coordinates" is here that of all predictions that are merged
  into a box, so that it does not depend on the order in which they were.
"""

from __future__ import annotations

import numpy as np

from vggkeras.localization import geometry

THRESHOLD = 1.5  # two squares of one size match up to a shift by 69% of their side


def merge(
    boxes: np.ndarray, scores: np.ndarray, threshold: float = THRESHOLD
) -> tuple[np.ndarray, np.ndarray]:
    """Merge boxes until no two match, the closest two first.

    Of pairs that are equally close the first is taken, by the number of its first box, then its
    second; a merged box takes the place of the first.

    Args:
        boxes: corners, px, `[n, 4]`.
        scores: of each box for some classes, `[n, classes]`.
        threshold: match score up to which two boxes are merged.

    Returns:
        Corners float64 `[m, 4]`, and the sums of the scores of the boxes in each, `[m, classes]`.
    """
    boxes, scores = np.array(boxes, np.float64), np.array(scores, np.float64)
    counts = np.ones(len(boxes))
    alive = np.ones(len(boxes), bool)
    distances = match_scores(boxes[:, None], boxes)
    distances[np.tril_indices(len(boxes))] = np.inf  # a pair is there once
    while len(boxes):
        i, j = np.unravel_index(np.argmin(distances), distances.shape)
        if not distances[i, j] <= threshold:
            break
        total = counts[i] + counts[j]
        boxes[i] = (counts[i] * boxes[i] + counts[j] * boxes[j]) / total
        scores[i] += scores[j]
        counts[i], alive[j] = total, False
        distances[j] = distances[:, j] = np.inf
        again = match_scores(boxes[i], boxes)
        distances[i, i + 1 :] = np.where(alive, again, np.inf)[i + 1 :]
        distances[:i, i] = np.where(alive, again, np.inf)[:i]
    return boxes[alive], scores[alive]


def match_scores(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return how far corners `[..., 4]` that broadcast are from being one box, from 0 on."""
    apart = (a[..., :2] + a[..., 2:]) / 2 - (b[..., :2] + b[..., 2:]) / 2
    side = np.sqrt((geometry.areas(a) + geometry.areas(b)) / 2)
    shift = np.hypot(apart[..., 0], apart[..., 1]) / np.maximum(side, 1)
    return shift + 1 - geometry.iou(a, b)


def best(
    boxes: np.ndarray, scores: np.ndarray, threshold: float = THRESHOLD
) -> tuple[np.ndarray, np.ndarray]:
    """Return the best merged box for each class, and its score.

    Args:
        boxes: what each place predicts, corners, px: `[n, 1, 4]`, one for all classes, or
            `[n, classes, 4]`, one for each.
        scores: of each class at each place, `[n, classes]`.
        threshold: of `merge`.

    Returns:
        Corners float64 `[classes, 4]`, and scores `[classes]`.
    """
    if boxes.shape[1] == 1:
        merged, sums = merge(boxes[:, 0], scores, threshold)
        first = np.argmax(sums, 0)
        return merged[first], sums.max(0)
    each = [merge(boxes[:, c], scores[:, c : c + 1], threshold) for c in range(boxes.shape[1])]
    found = [(merged[np.argmax(sums)], sums.max()) for merged, sums in each]
    return np.stack([box for box, _ in found]), np.array([score for _, score in found])
