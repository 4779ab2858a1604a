"""TODO"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from vggkeras.data.decoding import decode, in_threads
from vggkeras.data.splits import Split
from vggkeras.errors import InputError


class Pixels(NamedTuple):
    """What a pass over the training images notes of each."""

    mean: np.ndarray  # of RGB, 0-255, float64 [3]
    products: np.ndarray  # mean of the products of two channels, float64 [3, 3]
    smallest_side: int  # px


def read_all(split: Split) -> Iterator[tuple[int, Pixels | InputError]]:
    """Every image's (index, `Pixels`), or the error where it cannot be read; in order."""

    def read(index: int, encoded: bytes, label: int):
        try:
            image = decode(encoded, split.image_name(index))
        except InputError as error:
            return index, error
        rgb = image.reshape(-1, 3).astype(
            np.float64
        )  # sums of whole numbers: exact, whatever their order
        return index, Pixels(rgb.mean(axis=0), rgb.T @ rgb / len(rgb), min(image.shape[:2]))

    return in_threads(read, split.examples())


def rgb_statistics(images: Iterable[Pixels]) -> tuple[tuple[float, float, float], np.ndarray]:
    """The training set's mean RGB, 0-255, and covariance of RGB, float64 `[3, 3]`; each image counts once."""
    mean, products, count = np.zeros(3), np.zeros((3, 3)), 0
    for image in images:
        mean += image.mean
        products += image.products
        count += 1
    mean /= count
    r, g, b = mean.tolist()
    return (r, g, b), products / count - np.outer(mean, mean)
