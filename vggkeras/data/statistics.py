"""Mean and covariance of RGB, or gray, over the training images (section 3.1).

Each image is counted once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from vggkeras.data.augment import in_channels
from vggkeras.data.decoding import bands, whole_of
from vggkeras.data.reading import read_each
from vggkeras.data.splits import Split
from vggkeras.errors import InputError

# Pixels in one product of matrices. With more of them the linear algebra library starts threads of
# its own in each of our threads, which takes five times as long.
BLOCK = 4096
# Large JPEGs are read reduced for it, so that the smallest side keeps 371 px or more. A mean of
# averages of squares is the mean; the variance is without that of the finest detail.
FAST_SIDE = 128


class Pixels(NamedTuple):
    """The statistics of one training image."""

    mean: np.ndarray  # of the channels, 0-255, float64 [C]
    products: np.ndarray  # mean of the products of two channels, float64 [C, C]
    smallest_side: int  # px


def read_all(
    split: Split, channels: int = 3, fast: bool = False
) -> Iterator[tuple[int, Pixels | InputError]]:
    """Yield every image's (index, `Pixels`), or the error where it cannot be read, in order.

    Where it should be `fast`, large JPEGs are read reduced.
    """
    each = read_each(split, lambda image: _pixels(image, channels), FAST_SIDE if fast else None)
    return ((index, pixels) for index, _, pixels in each)


def _pixels(image: Image.Image, channels: int = 3) -> Pixels:
    # Sums of whole numbers: exact in float64, whatever their order. The row of ones gives the sums
    # of the channels, faster than sum().
    sums = np.zeros((channels + 1, channels + 1))
    for box in bands(image.size):
        band = in_channels(np.asarray(image.crop(box)), channels).reshape(-1, channels).T
        values = np.ones((channels + 1, min(BLOCK, band.shape[1])))
        for start in range(0, band.shape[1], BLOCK):
            block = band[:, start : start + BLOCK]
            part = values[:, : block.shape[1]]
            part[:channels] = block
            sums += part @ part.T
    sums /= image.width * image.height
    return Pixels(sums[-1, :-1], sums[:-1, :-1], min(whole_of(image).size))


def rgb_statistics(
    images: Iterable[Pixels], channels: int = 3
) -> tuple[tuple[float, ...], np.ndarray]:
    """Return the mean of the channels, 0-255, and their covariance, float64 `[C, C]`."""
    mean, products, count = np.zeros(channels), np.zeros((channels, channels)), 0
    for image in images:
        mean += image.mean
        products += image.products
        count += 1
    count = max(count, 1)
    mean /= count
    return tuple(mean.tolist()), products / count - np.outer(mean, mean)
