"""Mean and covariance of RGB over the training images (section 3.1), each image counted once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from vggkeras.data.decoding import bands
from vggkeras.data.reading import read_each
from vggkeras.data.splits import Split
from vggkeras.errors import InputError

# Pixels in one product of matrices. With more of them the linear algebra library starts threads of
# its own in each of our threads, which takes five times as long.
BLOCK = 4096


class Pixels(NamedTuple):
    """The statistics of one training image."""

    mean: np.ndarray  # of RGB, 0-255, float64 [3]
    products: np.ndarray  # mean of the products of two channels, float64 [3, 3]
    smallest_side: int  # px


def read_all(split: Split) -> Iterator[tuple[int, Pixels | InputError]]:
    """Yield every image's (index, `Pixels`), or the error where it cannot be read, in order."""
    return ((index, pixels) for index, _, pixels in read_each(split, _pixels))


def _pixels(image: Image.Image) -> Pixels:
    # Sums of whole numbers: exact in float64, whatever their order. The row of ones gives the sums
    # of the channels, faster than sum().
    sums = np.zeros((4, 4))
    for box in bands(image.size):
        rgb = np.asarray(image.crop(box)).reshape(-1, 3).T
        values = np.ones((4, min(BLOCK, rgb.shape[1])))
        for start in range(0, rgb.shape[1], BLOCK):
            block = rgb[:, start : start + BLOCK]
            part = values[:, : block.shape[1]]
            part[:3] = block
            sums += part @ part.T
    count = image.width * image.height
    return Pixels(sums[3, :3] / count, sums[:3, :3] / count, min(image.size))


def rgb_statistics(images: Iterable[Pixels]) -> tuple[tuple[float, float, float], np.ndarray]:
    """Return the mean RGB, 0-255, and the covariance of RGB, float64 `[3, 3]`."""
    mean, products, count = np.zeros(3), np.zeros((3, 3)), 0
    for image in images:
        mean += image.mean
        products += image.products
        count += 1
    count = max(count, 1)
    mean /= count
    r, g, b = mean.tolist()
    return (r, g, b), products / count - np.outer(mean, mean)
