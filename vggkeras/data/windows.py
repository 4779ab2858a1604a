"""Decode the window of an encoded image that a training crop needs, as TensorFlow ops.

Of a JPEG only the window is decoded, also of one that is stored sideways.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from vggkeras.data import formats
from vggkeras.data.decoding import EXCHANGED, UPRIGHT, decoded, orientation_of


def pixels_of_jpeg(encoded, window_of: Callable, exif: bool):
    """Decode a window of a JPEG.

    Args:
        encoded: the file, a string tensor.
        window_of: gives a window of an upright image of (height, width): its corner and its
            extent, int32 `[2]` each, and the crop's box in it.
        exif: whether to read its orientation.

    Returns:
        The window's pixels as they are stored, uint8 `[h, w, 3]`; the crop's box in the upright
        window; and the orientation, int32 `[]`.
    """
    import tensorflow as tf

    stored, orientation = tf.io.extract_jpeg_shape(encoded)[:2], tf.constant(UPRIGHT)
    if exif:
        orientation = tf.numpy_function(_orientation, [encoded], tf.int32, stateful=False)
        orientation = tf.ensure_shape(orientation, [])
    size = tf.where(orientation < EXCHANGED, stored, stored[::-1])
    first, extent, box = window_of(size)
    if exif:
        first, extent = _stored_window(first, extent, size, orientation)
    pixels = tf.io.decode_and_crop_jpeg(
        encoded,
        tf.concat([first, extent], 0),
        channels=3,
        dct_method="INTEGER_ACCURATE",  # gives Pillow's pixels
    )
    return pixels, box, orientation


def pixels_of_other(encoded, window_of: Callable, exif: bool):
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
    first, extent, box = window_of(tf.ensure_shape(size, [2]))
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


def _stored_window(first, extent, size, orientation):
    """Return where a window of an upright image of (height, width) `size` is in its file.

    Args:
        first: its corner (top, left), int32 `[2]`.
        extent: its height and width, int32 `[2]`.
        size: of the upright image, int32 `[2]`.
        orientation: EXIF's, int32 `[]`.

    Returns:
        Corner and extent in the image as it is stored, int32 `[2]` each.
    """
    import tensorflow as tf

    # Counted from the other end: of the rows in 3, 4, 7 and 8, of the columns in 2, 3, 6 and 7.
    is_reversed = tf.gather(
        tf.constant([[o in (3, 4, 7, 8), o in (2, 3, 6, 7)] for o in range(9)]), orientation
    )
    first = tf.where(is_reversed, size - first - extent, first)
    exchanged = orientation >= EXCHANGED
    return tf.where(exchanged, first[::-1], first), tf.where(exchanged, extent[::-1], extent)
