"""Boxes as arrays: how much two overlap, and where a box is in a crop of its image (Appendix A).

A box is four numbers, on the last axis. As corners it is (xmin, ymin, xmax, ymax) in pixels of the
image as it is read (upright, unless the recipe says otherwise): edges, so that the whole image is
(0, 0, width, height). As a network predicts it, it is (center x, center y, width, height) in
fractions of the crop. Boxes are never clipped: what lies outside the crop is still regressed, which
can be undone exactly and does not depend on where the crop happens to be.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from vggkeras.configs import rescaled_shape

Size = tuple[int, int]  # height and width, px
CORRECT = 0.5  # intersection over union above which a box is right


def areas(boxes: np.ndarray) -> np.ndarray:
    """Return the areas of corners `[..., 4]`, `[...]`; 0 where a minimum is above its maximum."""
    sides = np.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    return sides[..., 0] * sides[..., 1]


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return intersection over union of corners `[..., 4]` that broadcast, in [0, 1].

    It is 0 where both have no area.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    both = areas(np.concatenate([low, high], -1))
    either = areas(a) + areas(b) - both
    return np.divide(both, either, out=np.zeros_like(both), where=either > 0)


def to_center(corners: np.ndarray) -> np.ndarray:
    """Return corners `[..., 4]` as (center x, center y, width, height)."""
    low, high = corners[..., :2], corners[..., 2:]
    return np.concatenate([(low + high) / 2, high - low], -1)


def to_corners(center: np.ndarray) -> np.ndarray:
    """Return (center x, center y, width, height) `[..., 4]` as corners."""
    middle, half = center[..., :2], center[..., 2:] / 2
    return np.concatenate([middle - half, middle + half], -1)


def to_crop(
    corners: np.ndarray, size: Size, scale: int, offset: Size, crop: Size, mirror: bool = False
) -> np.ndarray:
    """Return boxes of an image as a network predicts them from a crop of it.

    Args:
        corners: float `[..., 4]`, px of the image.
        size: height and width of the image, px.
        scale: smallest side S to which the image is rescaled, px.
        offset: top and left of the crop in the rescaled image, px.
        crop: height and width of the crop, px.
        mirror: whether the crop is mirrored left to right.

    Returns:
        (center x, center y, width, height) in fractions of the crop, float64 `[..., 4]`.
    """
    ratio, start, extent = _transform(size, scale, offset, crop)
    boxes = to_center((np.asarray(corners, np.float64) * ratio - start) / extent)
    return _mirrored(boxes) if mirror else boxes


def to_image(
    boxes: np.ndarray, size: Size, scale: int, offset: Size, crop: Size, mirror: bool = False
) -> np.ndarray:
    """Undo `to_crop`: return what a network predicts from a crop as corners in the image's px."""
    ratio, start, extent = _transform(size, scale, offset, crop)
    boxes = np.asarray(boxes, np.float64)
    return (to_corners(_mirrored(boxes) if mirror else boxes) * extent + start) / ratio


def in_pixels(outputs: np.ndarray, crop: Size) -> np.ndarray:
    """Return a network's outputs `[N, ..., 4 n]` as corners, px of the crop, float64 `[N, m]`.

    Of a map each place's are from the corner of its own crop.
    """
    boxes = outputs.astype(np.float64).reshape(len(outputs), -1, 4)
    return (to_corners(boxes) * np.array(tuple(crop)[::-1] * 2)).reshape(len(outputs), -1)


def localized(outputs: np.ndarray, targets: np.ndarray, boxes: Literal["scr", "pcr"]) -> np.ndarray:
    """Return whether the true class's box overlaps with a true one by more than half, bool `[N]`.

    Args:
        outputs: of the network, `[N, 4]`, or in "pcr" `[N, 4 * classes]`.
        targets: of `regression.targets`, `[N, 1 + 4 K]`.
        boxes: single-class or per-class regression.
    """
    given = of_class(outputs.reshape(len(outputs), -1), targets[:, 0].astype(int), boxes)
    true = to_corners(targets[:, 1:].reshape(len(targets), -1, 4))
    return iou(to_corners(given)[:, None], true).max(axis=1) > CORRECT


def _transform(
    size: Size, scale: int, offset: Size, crop: Size
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rescaled px to one of the image, the crop's corner and its extent, for corners."""
    height, width = rescaled_shape(size, scale)
    ratio = np.array([width / size[1], height / size[0]] * 2)
    return ratio, np.array(tuple(offset)[::-1] * 2), np.array(tuple(crop)[::-1] * 2)


def _mirrored(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([1 - boxes[..., :1], boxes[..., 1:]], -1)


def of_class(outputs: np.ndarray, labels: np.ndarray, boxes: Literal["scr", "pcr"]) -> np.ndarray:
    """Return the box of a class among a network's outputs: that of all classes in "scr".

    Args:
        outputs: `[N, 4]`, or in "pcr" `[N, 4 * classes]`: class after class.
        labels: numbers of classes `[N]`.
        boxes: single-class or per-class regression.

    Returns:
        `[N, 4]`.
    """
    if boxes == "scr":
        return outputs
    return outputs.reshape(len(outputs), -1, 4)[np.arange(len(outputs)), labels]
