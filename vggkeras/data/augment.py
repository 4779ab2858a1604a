"""One image's way from its encoded bytes to a training crop, or to a test crop (paper, sections 3.1 and 3.2).

One filter everywhere: Pillow's BILINEAR, which is antialiased. Test crops are cut by Pillow alone, so that no TensorFlow is
needed where a .onnx or .tflite file is evaluated; training crops by tf.data, which decodes only what it needs.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from vggkeras.data.decoding import decode, in_threads
from vggkeras.data.splits import Split
from vggkeras.errors import InputError

MARGIN = (
    2  # px more around a window: colour is often stored at half the resolution, and interpolated
)


def rescale(image: np.ndarray, side: int) -> np.ndarray:
    """Rescale isotropically so that the smallest side is `side` px: uint8 `[H, W, 3]` -> uint8 `[h, w, 3]`.

    The filter is Pillow's BILINEAR: triangular, and as wide as the reduction needs, so that nothing aliases.
    """
    h, w = image.shape[:2]
    if min(h, w) == side:
        return image
    size = (
        (side, max(side, round(h * side / w))) if w <= h else (max(side, round(w * side / h)), side)
    )
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def center_crop(image: np.ndarray, side: int, crop: tuple[int, int]) -> np.ndarray:
    """The central `crop` (height, width) of an image rescaled to smallest side `side`: uint8 `[*crop, 3]`.

    Raises InputError when the rescaled image is smaller than the crop.
    """
    return next(grid_crops(rescale(image, side), crop, 1))


def grid_crops(image: np.ndarray, crop: tuple[int, int], grid: int) -> Iterator[np.ndarray]:
    """Crops on a regular grid over a rescaled image, row by row: uint8 `[h, w, C]` -> `grid` x `grid` of `[*crop, C]`.

    The outermost ones touch the image's edges; a grid of one is the central crop.

    Raises InputError when the image is smaller than the crop.
    """
    top, left = (
        side - extent for side, extent in zip(image.shape[:2], crop, strict=True)
    )  # of the last crop
    if top < 0 or left < 0:
        raise InputError(
            f"A crop of {crop[0]} x {crop[1]} px does not fit an image rescaled to {image.shape[0]} x {image.shape[1]}: "
            f"give a scale of {max(crop)} px or more."
        )
    steps = [(i, grid - 1) for i in range(grid)] if grid > 1 else [(1, 2)]
    for y, x in ((top * i // n, left * j // m) for i, n in steps for j, m in steps):
        yield image[y : y + crop[0], x : x + crop[1]]


def in_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """What a network is shown of RGB, uint8 `[h, w, C]`: itself, or, for grey images, ITU-R 601 luma, as Pillow's "L"."""
    if channels == 1:
        return np.round(image @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)[..., None]
    return image


def draws(seed: int, epoch, index):
    """An image's random numbers in an epoch: uniform float32 `[4]` in [0, 1) and standard normal float32 `[3]`.

    They are a pure function of (seed, epoch, index of the image), whatever was drawn before, so that a run can be
    repeated, and taken up anywhere.
    """
    import tensorflow as tf

    epoch, index = tf.cast(epoch, tf.int64), tf.cast(index, tf.int64)
    key = tf.random.experimental.stateless_fold_in(
        tf.stack([tf.constant(seed, tf.int64), epoch]), index
    )
    colour = tf.random.experimental.stateless_fold_in(
        key, 1
    )  # another key: equal ones give related numbers
    return tf.random.stateless_uniform([4], key), tf.random.stateless_normal([3], colour)


def random_crop(encoded, crop: int, scale: tuple[int, int], uniform, flip: bool):
    """A training crop (section 3.1), straight from an encoded image: a string -> uint8 `[crop, crop, 3]`.

    The image is rescaled to a smallest side S drawn from `scale` = (lowest, highest), enlarged where it is smaller; a
    square is cut at a random place, and mirrored half of the time (`flip`). Not so much is done: of a JPEG, only the
    window under the crop is decoded, and only that is resized, by the filter of `rescale` at the very places where it
    would stand on the whole image. The pixels are `rescale`'s, cut, but where rounding takes a level the other way.

    Args:
        encoded: a JPEG, PNG, BMP or GIF file, a string tensor.
        crop: side of the crop, px.
        scale: (lowest, highest) S, px, at least `crop`.
        uniform: the four numbers of `draws`: S, row, column, mirror.
        flip: whether to mirror at all.
    """
    import tensorflow as tf

    def of_jpeg():
        first, extent, box = _window(tf.io.extract_jpeg_shape(encoded)[:2], crop, scale, uniform)
        window = tf.concat([first, extent], 0)
        # The accurate DCT gives Pillow's pixels.
        return tf.io.decode_and_crop_jpeg(
            encoded, window, channels=3, dct_method="INTEGER_ACCURATE"
        ), box

    def of_another_kind():
        # Outside a graph, TensorFlow hands the bytes over in an array of no dimensions.
        image = tf.numpy_function(
            lambda x: decode(np.asarray(x).item()), [encoded], tf.uint8, stateful=False
        )
        image = tf.ensure_shape(image, [None, None, 3])
        first, extent, box = _window(tf.shape(image)[:2], crop, scale, uniform)
        return tf.slice(image, tf.concat([first, [0]], 0), tf.concat([extent, [3]], 0)), box

    def resized(pixels: np.ndarray, box: np.ndarray) -> np.ndarray:
        top, left, bottom, right = box.tolist()
        image = Image.fromarray(pixels).resize(
            (crop, crop), Image.Resampling.BILINEAR, (left, top, right, bottom)
        )
        return np.asarray(image)

    pixels, box = tf.cond(tf.io.is_jpeg(encoded), of_jpeg, of_another_kind)
    # Pillow resizes three times as fast as TensorFlow's antialiased ops, outside Python's lock.
    image = tf.numpy_function(resized, [pixels, box], tf.uint8, stateful=False)
    return _mirrored(tf.ensure_shape(image, [crop, crop, 3]), uniform, flip)


def crop_of_rescaled(image, crop: int, uniform, flip: bool):
    """`random_crop` of an image that is rescaled already, to its one scale: uint8 `[h, w, 3]` -> `[crop, crop, 3]`."""
    import tensorflow as tf

    corner = _corner(tf.shape(image)[:2], crop, uniform)
    return _mirrored(tf.slice(image, tf.concat([corner, [0]], 0), [crop, crop, 3]), uniform, flip)


def _mirrored(image, uniform, flip: bool):
    import tensorflow as tf

    return (
        tf.cond(uniform[3] < 0.5, lambda: tf.reverse(image, [1]), lambda: image) if flip else image
    )


def _corner(size, crop: int, uniform):
    """Top left corner of the crop in a rescaled image of (height, width) `size`: int32 `[2]`, every place as likely."""
    import tensorflow as tf

    return tf.cast(tf.floor(uniform[1:3] * tf.cast(size - crop + 1, tf.float32)), tf.int32)


def _window(size, crop: int, scale: tuple[int, int], uniform):
    """Where a crop's pixels are in an original of (height, width) `size`.

    Returns the corner and the extent, int32 `[2]` each, of the window that holds all that the filter sees; and the crop's
    own (top, left, bottom, right) within that window, in fractions of pixels, float64 `[4]`.
    """
    import tensorflow as tf

    low, high = scale
    side = tf.cast(low + tf.floor(uniform[0] * (high - low + 1)), tf.float64)
    sides = tf.cast(size, tf.float64)
    # In the order of `rescale`: the quotient alone is rounded, so that a half is a half in both.
    rescaled = tf.maximum(side, tf.round(sides * side / tf.reduce_min(sides)))
    ratio = sides / rescaled  # original pixels to one of the rescaled image
    start = tf.cast(_corner(tf.cast(rescaled, tf.int32), crop, uniform), tf.float64) * ratio
    end = start + crop * ratio
    # The triangle reaches one pixel to each side, or one of the rescaled ones where they are larger.
    reach = tf.maximum(ratio, tf.ones_like(ratio)) + MARGIN
    first = tf.maximum(tf.floor(start - reach), tf.zeros_like(start))
    extent = tf.minimum(tf.math.ceil(end + reach), sides) - first
    # Rounding may put the end a hair outside, which Pillow refuses.
    box = tf.concat([start - first, tf.minimum(end - first, extent)], 0)
    return tf.cast(first, tf.int32), tf.cast(extent, tf.int32), box


def color_basis(covariance: np.ndarray) -> np.ndarray:
    """Columns p_i * lambda_i of AlexNet's colour shift: float32 `[3, 3]`, in levels of 0-255.

    p_i and lambda_i are the eigenvectors and eigenvalues of the covariance `[3, 3]` of RGB, 0-255. The product is no
    number of levels but of levels squared, so that the formula says something in one unit only: it is read on pixels in
    0-1, where all who reproduced it read it, and brought back to 0-255. On photographs one standard deviation, with
    alpha's 0.1, is then some six levels; on pixels in 0-255 it would be a thousand.
    """
    values, vectors = np.linalg.eigh(np.asarray(covariance, np.float64) / 255**2)
    return (255 * vectors * values).astype(np.float32)


def color_shift(image, basis, normal):
    """Add sum p_i alpha_i lambda_i to every pixel (Krizhevsky 2012, 4.1): uint8 `[h, w, 3]` -> float32, not clipped.

    Args:
        image: RGB, 0-255.
        basis: of `color_basis`.
        normal: three numbers of `draws`; alpha is a tenth of them.
    """
    import tensorflow as tf

    return tf.cast(image, tf.float32) + tf.linalg.matvec(basis, 0.1 * normal)


def center_crops(
    split: Split, crop: tuple[int, int], side: int
) -> Iterator[tuple[int, np.ndarray, int]]:
    """(index, `center_crop`, label) of every image of a split, in order; decoding runs ahead in threads.

    Raises InputError naming the image when one cannot be read.
    """

    def one(index: int, encoded: bytes, label: int) -> tuple[int, np.ndarray, int]:
        return index, center_crop(decode(encoded, split.image_name(index)), side, crop), label

    return in_threads(one, split.examples())
