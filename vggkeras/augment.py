"""One image's way from its encoded bytes to a training crop, or to a test crop (paper, sections 3.1 and 3.2).

Test crops are cut by Pillow alone: one decoder and one filter, whatever runtime gives the answers, and no TensorFlow
needed where a .onnx or .tflite file is evaluated. Training crops are cut by tf.data.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from vggkeras.datasets import Split, decode, in_threads
from vggkeras.errors import InputError


def rescale(image: np.ndarray, side: int) -> np.ndarray:
    """Rescale isotropically so that the smallest side is `side` px: uint8 `[H, W, 3]` -> uint8 `[h, w, 3]`.

    The filter is Pillow's BILINEAR: triangular, and as wide as the reduction needs, so that nothing aliases.
    """
    h, w = image.shape[:2]
    if min(h, w) == side:
        return image
    size = (side, max(side, round(h * side / w))) if w <= h else (max(side, round(w * side / h)), side)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def center_crop(image: np.ndarray, side: int, crop: tuple[int, int]) -> np.ndarray:
    """The central `crop` (height, width) of an image rescaled to smallest side `side`: uint8 `[*crop, 3]`.

    Raises InputError when the rescaled image is smaller than the crop.
    """
    image = rescale(image, side)
    top, left = (image.shape[0] - crop[0]) // 2, (image.shape[1] - crop[1]) // 2
    if top < 0 or left < 0:
        raise InputError(
            f"A crop of {crop[0]} x {crop[1]} px does not fit an image rescaled to {image.shape[0]} x {image.shape[1]}: "
            f"give a scale of {max(crop)} px or more (received {side})."
        )
    return image[top : top + crop[0], left : left + crop[1]]


def decode_and_rescale(encoded, side: int):
    """`decode` and `rescale` as TensorFlow ops, for tf.data: a string -> uint8 `[h, w, 3]`, smallest side `side`.

    JPEG goes through TensorFlow's decoder with the accurate DCT, which gives Pillow's pixels; the rest through Pillow.
    The filter is TensorFlow's antialiased bilinear, within one level of Pillow's.
    """
    import tensorflow as tf

    image = tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE"),
        # Outside a graph, TensorFlow hands the bytes over in an array of no dimensions.
        lambda: tf.numpy_function(lambda x: decode(np.asarray(x).item()), [encoded], tf.uint8, stateful=False),
    )
    image = tf.ensure_shape(image, [None, None, 3])
    sides = tf.cast(tf.shape(image)[:2], tf.float64)
    target = tf.maximum(side, tf.cast(tf.round(sides * (side / tf.reduce_min(sides))), tf.int32))
    image = tf.image.resize(image, target, antialias=True)
    return tf.cast(tf.round(image), tf.uint8)


def random_crop(image, crop: int, seed, flip: bool):
    """A square crop at a random place, mirrored or not: uint8 `[h, w, 3]` -> uint8 `[crop, crop, 3]`.

    Which place and whether mirrored is a pure function of `seed`, two integers.
    """
    import tensorflow as tf

    draws = tf.random.stateless_uniform([3], seed)
    room = tf.cast(tf.shape(image)[:2] - crop + 1, tf.float32)
    corner = tf.cast(tf.floor(draws[:2] * room), tf.int32)
    image = tf.slice(image, [corner[0], corner[1], 0], [crop, crop, 3])
    return tf.reverse(image, [1]) if flip and draws[2] < 0.5 else image


def center_crops(split: Split, crop: tuple[int, int], side: int) -> Iterator[tuple[int, np.ndarray, int]]:
    """(index, `center_crop`, label) of every image of a split, in order; decoding runs ahead in threads.

    Raises InputError naming the image when one cannot be read.
    """

    def one(index: int, encoded: bytes, label: int) -> tuple[int, np.ndarray, int]:
        return index, center_crop(decode(encoded, split.image_name(index)), side, crop), label

    return in_threads(one, split.examples())
