"""Pillow's BILINEAR for a window of a rescaled image alone.

Pillow resizes windows too, but takes their corners as float32, which is too coarse in an image of
millions of rows. Here its own integer arithmetic is done for the pixels of the window alone: a
horizontal pass, then a vertical one, each of which adds up products with weights of 22 bits after
the point, and rounds. The pixels are those of the whole image, bit for bit, but where Pillow (from
13 on) takes the vertical pass of a tall image first, which rounds a few of them the other way.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

BITS = 22


class _Taps(NamedTuple):
    """Which pixels of an axis make each pixel of the window, and how much of each."""

    pixels: np.ndarray  # int64 [taps, count]
    weights: np.ndarray  # int32 [taps, count]


def window(
    image: Image.Image, rows: tuple[int, int, int, int], columns: tuple[int, int, int, int]
) -> np.ndarray:
    """Return a window of an RGB image resized: uint8 `[height, width, 3]`.

    Args:
        image: in mode RGB.
        rows: the height of the image, its height resized, the window's first row and its height.
        columns: the same of its width.
    """
    vertical, horizontal = _taps(*rows), _taps(*columns)
    top, left = int(vertical.pixels.min()), int(horizontal.pixels.min())
    bottom, right = int(vertical.pixels.max()) + 1, int(horizontal.pixels.max()) + 1
    part = np.asarray(image.crop((left, top, right, bottom))).swapaxes(0, 1)  # [W, H, 3]
    part = _weighted(part, horizontal, left).swapaxes(0, 1)  # [H, width, 3]
    return _weighted(part, vertical, top)


def _taps(size: int, resized: int, first: int, count: int) -> _Taps:
    """Return the triangle filter of `count` pixels of an axis from `first` on."""
    scale = float(np.float32(size)) / resized
    support = max(scale, 1.0)
    centers = (first + np.arange(count) + 0.5) * scale
    # Truncated towards 0, as in C.
    starts = np.maximum((centers - support + 0.5).astype(np.int64), 0)
    ends = np.minimum((centers + support + 0.5).astype(np.int64), size)
    taps = starts + np.arange(int(np.ceil(support)) * 2 + 1)[:, None]
    distance = np.abs((taps - centers + 0.5) * (1.0 / support))
    weights = np.where((taps < ends) & (distance < 1), 1 - distance, 0.0)
    weights /= np.cumsum(weights, axis=0)[-1]  # added up in order, as in C
    return _Taps(np.minimum(taps, size - 1), (0.5 + weights * (1 << BITS)).astype(np.int32))


def _weighted(part: np.ndarray, taps: _Taps, start: int) -> np.ndarray:
    """Resample the first axis of uint8 `[n, m, 3]`, whose first pixel is number `start`."""
    sums = np.full((taps.pixels.shape[1], *part.shape[1:]), 1 << (BITS - 1), np.int32)
    for pixels, weights in zip(taps.pixels - start, taps.weights, strict=True):
        sums += part[pixels] * weights[:, None, None]
    return (sums >> BITS).clip(0, 255).astype(np.uint8)
