"""Decode the window of an encoded image that a training crop needs, as TensorFlow ops.

Of a JPEG only the window is decoded, also of one that is stored sideways, and a large one may be
decoded reduced.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vggkeras.data import formats
from vggkeras.data.decoding import (
    EXCHANGED,
    FACTORS,
    GAP_TENTHS,
    REVERSED,
    UPRIGHT,
    decoded,
    orientation_of,
)

# Pixels around a window: color is often stored at half the resolution, and interpolated.
MARGIN = 2


class Place(NamedTuple):
    """Where a crop is in an upright image, as tensors."""

    side: Any  # S, the smallest side of the image once rescaled, px: int32 []
    start: Any  # its (top, left), px of the image: float64 [2]
    end: Any  # its (bottom, right): float64 [2]
    ratio: Any  # px of the image to one of the crop: float64 [2]


def pixels_of_jpeg(encoded, place_of: Callable, exif: bool, fast: bool):
    """Decode a window of a JPEG.

    Args:
        encoded: the file, a string tensor.
        place_of: gives the `Place` of the crop in an upright image of (height, width).
        exif: whether to read its orientation.
        fast: whether to decode a large one at its `reduction`.

    Returns:
        The window's pixels as they are stored, uint8 `[h, w, 3]`; the crop's box in the upright
        window; and the orientation, int32 `[]`.
    """
    import tensorflow as tf

    def decode(factor: int) -> Callable:
        return lambda: tf.io.decode_and_crop_jpeg(
            encoded,
            tf.concat([first, extent], 0),
            channels=3,
            ratio=factor,
            dct_method="INTEGER_ACCURATE",  # gives Pillow's pixels
        )

    stored, orientation = tf.io.extract_jpeg_shape(encoded)[:2], tf.constant(UPRIGHT)
    if exif:
        orientation = tf.numpy_function(_orientation, [encoded], tf.int32, stateful=False)
        orientation = tf.ensure_shape(orientation, [])
    size = tf.where(orientation < EXCHANGED, stored, stored[::-1])
    place = place_of(size)
    # From the end that is stored first. The last pixels of a reduced image reach beyond it.
    is_reversed = tf.gather(
        tf.constant([[o in axis for axis in REVERSED] for o in range(9)]), orientation
    )
    branch = _branch(size, place.side) if fast else tf.constant(0)
    factor = tf.gather(tf.constant(FACTORS), branch)
    reduced = -(-size // factor)
    beyond = tf.cast(tf.where(is_reversed, reduced * factor - size, 0), tf.float64)
    first, extent, box = _window(reduced, place, tf.cast(factor, tf.float64), beyond)
    if exif:
        first, extent = _stored_window(first, extent, reduced, orientation, is_reversed)
    pixels = tf.switch_case(branch, [decode(f) for f in FACTORS]) if fast else decode(1)()
    return pixels, box, orientation


def _branch(size, side):
    """Return the index in `FACTORS` of what `decoding.reduction` returns, int32 `[]`."""
    import tensorflow as tf

    least = GAP_TENTHS * side * tf.constant(FACTORS[1:])
    return tf.reduce_sum(tf.cast(10 * tf.reduce_min(size) >= least, tf.int32))


def _window(size, place: Place, factor=1.0, beyond=0.0):
    """Find the window of a reduced image that holds all that the filter of a crop sees.

    Args:
        size: height and width of the reduced image, int32 `[2]`.
        place: where the crop is in the whole image.
        factor: by how much the image is reduced, float64 `[]`.
        beyond: px of the whole image by which the reduced one begins before it, float64 `[2]`.

    Returns:
        Corner and extent, int32 `[2]` each, of the window; and the crop's (top, left, bottom,
        right) in that window, in fractions of pixels, float64 `[4]`.
    """
    import tensorflow as tf

    start, end = ((edge + beyond) / factor for edge in (place.start, place.end))
    ratio = place.ratio / factor
    # The triangle reaches one pixel to each side, or one of the rescaled ones if they are larger.
    reach = tf.maximum(ratio, tf.ones_like(ratio)) + MARGIN
    first = tf.maximum(tf.floor(start - reach), tf.zeros_like(start))
    extent = tf.minimum(tf.math.ceil(end + reach), tf.cast(size, tf.float64)) - first
    # Rounding may put the end just outside, which Pillow refuses.
    box = tf.concat([start - first, tf.minimum(end - first, extent)], 0)
    return tf.cast(first, tf.int32), tf.cast(extent, tf.int32), box


def pixels_of_other(encoded, place_of: Callable, exif: bool):
    """Return what `pixels_of_jpeg` returns, of an upright window of any other image."""
    import tensorflow as tf

    def size_of(encoded: bytes | np.ndarray) -> np.ndarray:
        with _opened(encoded) as image:
            exchanged = exif and orientation_of(image) >= EXCHANGED
            return np.array(image.size if exchanged else image.size[::-1], np.int32)

    def pixels_of(encoded: bytes | np.ndarray, corners: np.ndarray) -> np.ndarray:
        top, left, bottom, right = corners.tolist()
        box = (left, top, right, bottom)
        return decoded(
            _content(encoded), "image", lambda image: np.asarray(image.crop(box)), exif=exif
        )

    size = tf.numpy_function(size_of, [encoded], tf.int32, stateful=False)
    size = tf.ensure_shape(size, [2])
    first, extent, box = _window(size, place_of(size))
    corners = tf.concat([first, first + extent], 0)
    image = tf.numpy_function(pixels_of, [encoded, corners], tf.uint8, stateful=False)
    return tf.ensure_shape(image, [None, None, 3]), box, tf.constant(UPRIGHT)


def _content(encoded: bytes | np.ndarray) -> bytes:
    # Outside a graph, TensorFlow passes the bytes in an array of no dimensions. An array made of
    # bytes here would lose zeros at their end.
    return encoded if isinstance(encoded, bytes) else encoded.item()


def _opened(encoded: bytes | np.ndarray) -> Image.Image:
    return Image.open(io.BytesIO(_content(encoded)), formats=formats.PLUGINS)


def _orientation(encoded: bytes | np.ndarray) -> np.ndarray:
    """Return the EXIF orientation of an encoded image, int32 `[]`."""
    with _opened(encoded) as image:
        return np.array(orientation_of(image), np.int32)


def _stored_window(first, extent, size, orientation, is_reversed):
    """Return where a window of an upright image of (height, width) `size` is in its file.

    Args:
        first: its corner (top, left), int32 `[2]`.
        extent: its height and width, int32 `[2]`.
        size: of the upright image, int32 `[2]`.
        orientation: EXIF's, int32 `[]`.
        is_reversed: whether its rows, and its columns, are stored from the other end, bool `[2]`.

    Returns:
        Corner and extent in the image as it is stored, int32 `[2]` each.
    """
    import tensorflow as tf

    first = tf.where(is_reversed, size - first - extent, first)
    exchanged = orientation >= EXCHANGED
    return tf.where(exchanged, first[::-1], first), tf.where(exchanged, extent[::-1], extent)
