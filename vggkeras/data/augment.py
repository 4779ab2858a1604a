"""Rescale and crop images: random training crops with a color shift (section 3.1), and test crops.

One filter everywhere: Pillow's BILINEAR, which is antialiased. Test crops are cut by Pillow alone,
so that evaluating a .onnx or .tflite file needs no TensorFlow. Training crops are TensorFlow ops
for tf.data; of a JPEG they decode only what they need.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
from PIL import Image

from vggkeras.configs import rescaled_shape
from vggkeras.data import resampling, windows
from vggkeras.data.decoding import TURNS, UPRIGHT, pixels, whole_of
from vggkeras.data.reading import read_images
from vggkeras.data.splits import Split
from vggkeras.errors import InputError

# A long image once rescaled: more squares of its smallest side, and more px, than photographs have.
LONG, LONG_PIXELS = 8, 1 << 22
LUMA = 19595, 38470, 7471  # weights of R, G and B in the luma, of 65536
LARGEST_WHOLE = 1 << 24  # px of a long one that is held whole; D's first block takes 9 GB for it

# Test crops (section 3.2)


class Rescaled:
    """An image rescaled isotropically to smallest side `side` px, as a whole or in crops.

    Pillow's BILINEAR is a triangle as wide as the reduction needs, so that nothing aliases. A small
    file can be very long: 1 x 10,000 px are 256 x 2,560,000 once rescaled. Crops of such an image
    are computed alone.
    """

    def __init__(self, image: np.ndarray | Image.Image, side: int) -> None:
        """Take an image, RGB, or uint8 `[H, W, 3]`; nothing is computed yet.

        It may be a reduction (see `whole_of`), but of a long image, which would have to be larger
        than any that is read.
        """
        self.image, self.side = image, side
        if isinstance(image, Image.Image):
            self.original = whole_of(image).size
        else:
            self.original = image.shape[1], image.shape[0]
        w, h = self.original
        self.shape = rescaled_shape((h, w), side)

    @property
    def is_long(self) -> bool:
        """Whether the whole is so much longer than photographs that its crops are cut alone."""
        return max(self.shape) > LONG * self.side and self._pixels > LONG_PIXELS

    @functools.cached_property
    def whole(self) -> np.ndarray:
        """The whole rescaled image, uint8 `[h, w, 3]`.

        Raises InputError where it is long and has more than `LARGEST_WHOLE` px.
        """
        h, w = self.shape
        if self.is_long and self._pixels > LARGEST_WHOLE:
            raise InputError(
                f"{self.original[0]:,} x {self.original[1]:,} px rescaled to a smallest side of "
                f"{self.side} px are {w:,} x {h:,}, and {LARGEST_WHOLE:,} px of so long an image "
                "are the most that is held: give a smaller scale, or replace or remove it."
            )
        if self.original == (w, h):
            return pixels(self.image) if isinstance(self.image, Image.Image) else self.image
        picture = self._picture
        return np.asarray(picture.resize((w, h), Image.Resampling.BILINEAR, whole_of(picture).box))

    def crops(self, crop: tuple[int, int], grid: int = 1) -> Iterator[np.ndarray]:
        """Yield the crops that `grid_crops` yields of the whole; errors are its too."""
        if not self.is_long:
            yield from grid_crops(self.whole, crop, grid)
            return
        (height, width), (w, h) = self.shape, self.original
        for top, left in corners(self.shape, crop, grid):
            yield resampling.window(
                self._picture, (h, height, top, crop[0]), (w, width, left, crop[1])
            )

    @property
    def _pixels(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def _picture(self) -> Image.Image:
        image = self.image
        return image if isinstance(image, Image.Image) else Image.fromarray(image)


def rescale(image: np.ndarray | Image.Image, side: int) -> np.ndarray:
    """Rescale isotropically to smallest side `side` px: uint8 `[h, w, 3]`; see `Rescaled`."""
    return Rescaled(image, side).whole


def center_crop(image: np.ndarray | Image.Image, side: int, crop: tuple[int, int]) -> np.ndarray:
    """Return the central `crop` (height, width) of an image rescaled to `side`: uint8 `[*crop, 3]`.

    Raises InputError when the rescaled image is smaller than the crop.
    """
    return next(Rescaled(image, side).crops(crop))


def grid_crops(image: np.ndarray, crop: tuple[int, int], grid: int) -> Iterator[np.ndarray]:
    """Yield the crops of a regular grid over a rescaled image, row by row.

    The outermost crops touch the edges of the image; a grid of one is the central crop.

    Args:
        image: uint8 `[h, w, C]`.
        crop: (height, width) of a crop, px.
        grid: crops a side; the paper's multi-crop has 5.

    Raises:
        InputError (a ValueError): the image is smaller than the crop.
    """
    for y, x in corners(image.shape[:2], crop, grid):
        yield image[y : y + crop[0], x : x + crop[1]]


def corners(shape: tuple[int, ...], crop: tuple[int, int], grid: int) -> Iterator[tuple[int, int]]:
    """Yield the corner (top, left) of each crop of `grid_crops`."""
    # Corner of the last crop.
    top, left = (side - extent for side, extent in zip(shape, crop, strict=True))
    if top < 0 or left < 0:
        raise InputError(
            f"A crop of {crop[0]} x {crop[1]} px does not fit an image rescaled to "
            f"{shape[0]} x {shape[1]}: give a scale of {max(crop)} px or more."
        )
    steps = [(i, grid - 1) for i in range(grid)] if grid > 1 else [(1, 2)]
    yield from ((top * i // n, left * j // m) for i, n in steps for j, m in steps)


def in_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Return RGB, uint8 `[h, w, 3]`, or its ITU-R 601 luma where `channels` is 1: `[h, w, 1]`.

    The luma is Pillow's "L", to the last bit.
    """
    if channels == 1:
        weighted = image.astype(np.int32) * np.array(LUMA, np.int32)
        return (weighted.sum(axis=-1, keepdims=True) + (1 << 15) >> 16).astype(np.uint8)
    return image


def center_crops(
    split: Split, crop: tuple[int, int], side: int
) -> Iterator[tuple[int, np.ndarray, int]]:
    """Yield (index, `center_crop`, label) of every image of a split, in order.

    Raises InputError naming the image when one cannot be read.
    """
    for index, label, image in read_images(split, lambda image: center_crop(image, side, crop)):
        yield index, image, label


# Training crops (section 3.1)


def draws(seed: int, epoch, index):
    """Draw an image's random numbers in an epoch.

    They are a pure function of (seed, epoch, index of the image), whatever was drawn before, so
    that a run can be repeated, and resumed anywhere.

    Returns:
        Uniform float32 `[4]` in [0, 1), and standard normal float32 `[3]`.
    """
    import tensorflow as tf

    epoch, index = tf.cast(epoch, tf.int64), tf.cast(index, tf.int64)
    fold_in = tf.random.experimental.stateless_fold_in
    key = fold_in(tf.stack([tf.constant(seed, tf.int64), epoch]), index)
    color_key = fold_in(key, 1)  # the same key would give related numbers
    return tf.random.stateless_uniform([4], key), tf.random.stateless_normal([3], color_key)


def random_crop(
    encoded,
    crop: int,
    scale: tuple[int, int],
    uniform,
    flip: bool,
    exif: bool = False,
    fast: bool = False,
):
    """Cut a training crop straight from an encoded image: a string -> uint8 `[crop, crop, 3]`.

    The image is rescaled to a smallest side S drawn from `scale`, enlarged where it is smaller; a
    square is cut at a random position, and mirrored with probability 1/2. Only the window under the
    crop is decoded (of a JPEG) and resized, by the filter of `rescale` at the positions that it has
    in the whole image. The pixels are `rescale`'s, cut, except where rounding takes a level the
    other way.

    Args:
        encoded: an image file, a string tensor.
        crop: side of the crop, px.
        scale: (lowest, highest) S, px, at least `crop`.
        uniform: the four numbers of `draws`: S, row, column, mirror.
        flip: whether to mirror at all.
        exif: whether to turn the image upright first, as its EXIF data say.
        fast: whether to decode a large JPEG at its `decoding.reduction`.
    """
    import tensorflow as tf

    def resize(pixels: np.ndarray, box: np.ndarray, orientation: np.ndarray) -> np.ndarray:
        top, left, bottom, right = box.tolist()
        window, box_of_crop = Image.fromarray(pixels), (left, top, right, bottom)
        if int(orientation) != UPRIGHT:
            window = window.transpose(TURNS[int(orientation)])
        return np.asarray(window.resize((crop, crop), Image.Resampling.BILINEAR, box_of_crop))

    def place_of(size):
        return _place(size, crop, scale, uniform)

    window = tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: windows.pixels_of_jpeg(encoded, place_of, exif, fast),
        lambda: windows.pixels_of_other(encoded, place_of, exif),
    )
    # Pillow resizes three times as fast as TensorFlow's antialiased ops, outside Python's lock.
    image = tf.numpy_function(resize, list(window), tf.uint8, stateful=False)
    return _mirror(tf.ensure_shape(image, [crop, crop, 3]), uniform, flip)


def crop_of_rescaled(image, crop: int, uniform, flip: bool):
    """Cut a training crop from a rescaled image: uint8 `[h, w, 3]` -> uint8 `[crop, crop, 3]`."""
    import tensorflow as tf

    corner = _corner(tf.shape(image)[:2], crop, uniform)
    return _mirror(tf.slice(image, tf.concat([corner, [0]], 0), [crop, crop, 3]), uniform, flip)


def _mirror(image, uniform, flip: bool):
    import tensorflow as tf

    if not flip:
        return image
    return tf.cond(_is_mirrored(uniform), lambda: tf.reverse(image, [1]), lambda: image)


def _is_mirrored(uniform):
    return uniform[3] < 0.5


def placed(size, crop: int, scale: tuple[int, int], uniform, flip: bool):
    """Return where a training crop is: its S, its corner (top, left) and whether it is mirrored.

    Args:
        size: height and width of the image, int `[2]`.
        crop: side of the crop, px.
        scale: (lowest, highest) S, px.
        uniform: the numbers of `draws`.
        flip: whether crops are mirrored at all.
    """
    import tensorflow as tf

    side, rescaled = _rescaled(size, scale, uniform)
    corner = _corner(tf.cast(rescaled, tf.int32), crop, uniform)
    return tf.cast(side, tf.int32), corner, tf.logical_and(flip, _is_mirrored(uniform))


def _corner(size, crop: int, uniform):
    """Draw the corner (top, left) of a crop in a rescaled image of (height, width) `size`.

    Every position is equally likely. The corner is int32 `[2]`.
    """
    import tensorflow as tf

    return tf.cast(tf.floor(uniform[1:3] * tf.cast(size - crop + 1, tf.float32)), tf.int32)


def _place(size, crop: int, scale: tuple[int, int], uniform) -> windows.Place:
    """Find where a crop's pixels are in an original image of (height, width) `size`."""
    import tensorflow as tf

    side, rescaled = _rescaled(size, scale, uniform)
    sides = tf.cast(size, tf.float64)
    ratio = sides / rescaled  # original pixels to one of the rescaled image
    start = tf.cast(_corner(tf.cast(rescaled, tf.int32), crop, uniform), tf.float64) * ratio
    return windows.Place(tf.cast(side, tf.int32), start, start + crop * ratio, ratio)


def _rescaled(size, scale: tuple[int, int], uniform):
    """Draw S, and return it with the image's height and width at S: float64 `[]` and `[2]`."""
    import tensorflow as tf

    low, high = scale
    side = tf.cast(low + tf.floor(uniform[0] * (high - low + 1)), tf.float64)
    sides = tf.cast(size, tf.float64)
    # The order of operations is that of `rescale`: only the quotient is rounded.
    return side, tf.maximum(side, tf.round(sides * side / tf.reduce_min(sides)))


def crop_in_channels(crop, channels: int):
    """Return `in_channels` of a training crop, uint8 `[h, w, 3]`, as TensorFlow ops."""
    import tensorflow as tf

    if channels == 1:
        weighted = tf.reduce_sum(tf.cast(crop, tf.int32) * tf.constant(LUMA), -1, keepdims=True)
        return tf.cast(tf.bitwise.right_shift(weighted + (1 << 15), 16), tf.uint8)
    return crop


def color_basis(covariance: np.ndarray) -> np.ndarray:
    """Return the columns p_i * lambda_i of AlexNet's PCA color shift: float32 `[3, 3]`, in levels.

    p_i and lambda_i are the eigenvectors and eigenvalues of the covariance `[3, 3]` of RGB, 0-255.
    The product has the unit of squared levels, so the formula depends on the unit of the pixels. As
    others who reproduced it did, it is applied to pixels in 0-1 and the shift scaled to 0-255. On
    photographs one standard deviation, with alpha's 0.1, is then some six levels; with pixels in
    0-255 it would be a thousand.
    """
    values, vectors = np.linalg.eigh(np.asarray(covariance, np.float64) / 255**2)
    return (255 * vectors * values).astype(np.float32)


def color_shift(image, basis, normal):
    """Add sum p_i alpha_i lambda_i to every pixel (Krizhevsky 2012, section 4.1).

    Args:
        image: RGB, 0-255, uint8 `[h, w, 3]`.
        basis: the result of `color_basis`.
        normal: three numbers of `draws`; alpha is a tenth of them.

    Returns:
        float32 `[h, w, 3]`, not clipped.
    """
    import tensorflow as tf

    return tf.cast(image, tf.float32) + tf.linalg.matvec(basis, 0.1 * normal)
