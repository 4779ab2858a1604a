"""What a network of boxes is trained on: targets, Euclidean loss and localization (Appendix A).

A target is (class, box, box …), float32 `[1 + 4 K]`: the number of the image's class, then its
boxes of that class as (center x, center y, width, height) in fractions of the crop, the largest
first, the last one repeated up to K. The loss is of the largest; an image is localized where the
box that the network gives its class overlaps with any of them.
"""

from __future__ import annotations

import numpy as np
from keras import ops

from vggkeras.configs import rescaled_shape
from vggkeras.data import augment
from vggkeras.data.boxes import Boxes
from vggkeras.localization import geometry
from vggkeras.localization.geometry import CORRECT, Size


def targets(
    boxes: Boxes, index: int, label: int, scale: int, offset: Size, crop: Size, mirror: bool = False
) -> np.ndarray:
    """Return the target of a crop of image `index`: see the module, and `geometry.to_crop`."""
    found = boxes.corners[index]
    size = int(boxes.sizes[index][0]), int(boxes.sizes[index][1])
    in_crop = geometry.to_crop(found, size, scale, offset, crop, mirror)
    repeated = in_crop[np.minimum(np.arange(boxes.most), len(found) - 1)]
    return np.concatenate([[label], repeated.ravel()]).astype(np.float32)


def central_target(boxes: Boxes, index: int, label: int, scale: int, crop: Size) -> np.ndarray:
    """Return the target of an image's central crop: see `targets`."""
    shape = rescaled_shape(tuple(boxes.sizes[index]), scale)
    return targets(boxes, index, label, scale, next(augment.corners(shape, crop, 1)), crop)


def euclidean(targets, outputs):
    """Return the squared distance of each box from the largest true one, `[B]`.

    Args:
        targets: float32 `[B, 1 + 4 K]`.
        outputs: of the network, `[B, 4]`, or `[B, 4 * classes]`, of which the class's four count.
    """
    return ops.sum(ops.square(_of_class(targets, outputs) - targets[:, 1:5]), -1)


def overlap(targets, outputs):
    """Return the largest intersection over union with one of the true boxes, `[B]`."""
    true = ops.reshape(targets[:, 1:], (-1, (targets.shape[-1] - 1) // 4, 4))
    given = _of_class(targets, outputs)[:, None]
    low = ops.maximum(_edge(true, -0.5), _edge(given, -0.5))
    high = ops.minimum(_edge(true, 0.5), _edge(given, 0.5))
    both = _area(high - low)
    either = _area(true[..., 2:]) + _area(given[..., 2:]) - both
    return ops.max(both / ops.maximum(either, 1e-12), -1)


def localized(targets, outputs):
    """Return 1 where the overlap is above 0.5, and 0 elsewhere, `[B]`."""
    return ops.cast(overlap(targets, outputs) > CORRECT, "float32")


def _of_class(targets, outputs):
    """Return the box of each image's class, `[B, 4]`."""
    boxes = ops.reshape(outputs, (-1, outputs.shape[-1] // 4, 4))
    if boxes.shape[1] == 1:
        return boxes[:, 0]
    chosen = ops.one_hot(ops.cast(targets[:, 0], "int32"), boxes.shape[1], dtype=boxes.dtype)
    return ops.sum(boxes * chosen[..., None], 1)


def _edge(boxes, fraction: float):
    return boxes[..., :2] + fraction * ops.maximum(boxes[..., 2:], 0.0)


def _area(sides):
    sides = ops.maximum(sides, 0.0)
    return sides[..., 0] * sides[..., 1]
