"""The input pipelines of training and validation, as tf.data (section 3.1)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from vggkeras.data import augment
from vggkeras.data.order import ALL, Share, shuffled_indices
from vggkeras.data.reading import read_images
from vggkeras.data.splits import Split
from vggkeras.localization import regression
from vggkeras.recipe import Recipe
from vggkeras.terminal import progress_bar
from vggkeras.training.augmentation import KeyedMixUp, KeyedRandAugment

CACHE_BYTES = 1 << 30  # rescaled images are kept in memory when all of them take less


@dataclass(frozen=True)
class Crops:
    """How a training image becomes a crop."""

    size: int  # side of the crop, px
    scale: tuple[int, int]  # lowest and highest training scale S, px
    flip: bool = True  # mirror half of them
    basis: np.ndarray | None = None  # of `augment.color_basis`; None: no color shift
    channels: int = 3  # of the crop; 1: gray
    fast: bool = True  # decode large JPEGs at their `decoding.reduction`


@dataclass(frozen=True)
class Rescaled:
    """A split's images in memory, rescaled to one scale. They differ in size, so lie end to end."""

    pixels: Any  # uint8 [all bytes]
    starts: Any  # int64 [count]
    sizes: Any  # int64 [count, 2], height and width
    labels: Any  # int64 [count]

    def image(self, index):
        """Return image `index` as TensorFlow ops, uint8 `[h, w, 3]`."""
        import tensorflow as tf

        h, w = self.sizes[index][0], self.sizes[index][1]
        start = self.starts[index]
        return tf.reshape(self.pixels[start : start + h * w * 3], [h, w, 3])


@dataclass(frozen=True)
class Padding:
    """One host's rows of validation, whose last batch is filled up so that devices divide it.

    Rows from the number of images on are empty, and weigh 0. The loss is a mean over all rows, so
    the others weigh somewhat more than 1, and the mean is that over the images.
    """

    own: tuple[int, ...]  # this host's rows, in order
    weight: float  # of an image
    hosts: int

    @classmethod
    def of(cls, count: int, batch: int, devices: int, host: int, hosts: int) -> Padding:
        """Return the padding of `count` images in batches of `batch`, a multiple of `devices`."""
        rows = -(-count // devices) * devices
        own: list[int] = []
        for start in range(0, rows, batch):
            part = min(batch, rows - start) // hosts
            own += range(start + host * part, start + (host + 1) * part)
        return cls(tuple(own), rows / count, hosts)


def training_batches(
    split: Split,
    recipe: Recipe,
    crops: Crops,
    start: int = 0,
    rescaled: Rescaled | None = None,
    classes: int = 0,
    share: Share = ALL,
):
    """Return an endless tf.data.Dataset of (images `[B, size, size, C]`, labels int64 `[B]`).

    Where the recipe smooths or mixes labels, they are float32 `[B, classes]`; for boxes, targets.
    A batch is what one step sees. Every epoch has a new order. Which image comes when, its scale,
    crop, mirroring, RandAugment and color shift are pure functions of (seed, epoch, index of the
    image), and what MixUp mixes is one of (seed, step). Batches straddle the epochs, so that all
    are full and every image is seen equally often. As many images as there are cores, and two
    batches, are prepared ahead.

    Args:
        split: the training images.
        recipe: its seed, batch and augmentation are used.
        crops: how images become crops: uint8, and float32 where more than cropping is done.
        start: the number of images to pass over, from the very first one on: whole steps.
        rescaled: the images in memory, from `rescaled_images`, where they fit.
        classes: their number.
        share: the rows of each batch that this host reads; with MixUp it makes all of them first.
    """
    import tensorflow as tf

    read = ALL if recipe.mixup else share
    if rescaled and split.boxes:  # images in memory are numbered without those that are left out
        split = replace(split, boxes=split.boxes.some(split.indices()))
    example = _augmented(split, recipe, crops)

    def of_rescaled(epoch, index):
        def crop(uniform):
            return augment.crop_of_rescaled(rescaled.image(index), crops.size, uniform, crops.flip)

        return example(epoch, index, crop, rescaled.labels[index])

    def of_encoded(epoch, index, encoded, label):
        def crop(uniform):
            how = crops.scale, uniform, crops.flip, split.exif, crops.fast
            return augment.random_crop(encoded, crops.size, *how)

        return example(epoch, index, crop, label)

    if rescaled is None:
        data = split.shuffled(recipe.seed, start, read).map(of_encoded, tf.data.AUTOTUNE)
    else:
        order = shuffled_indices(split.count, recipe.seed, start, read)
        data = order.map(of_rescaled, tf.data.AUTOTUNE)
    return _batches(data, recipe, start, classes, share).prefetch(2)


def _augmented(split: Split, recipe: Recipe, crops: Crops) -> Callable:
    """Return (epoch, index, crop, label) -> (image, label), as TensorFlow ops.

    `crop` makes the crop of the uniform numbers of `augment.draws`.
    """
    random_augment = KeyedRandAugment(recipe.seed) if recipe.randaugment else None
    target = _box_targets(split, crops) if recipe.boxes else lambda index, label, uniform: label

    def example(epoch, index, crop, label):
        uniform, normal = augment.draws(recipe.seed, epoch, index)
        image = crop(uniform)
        if random_augment:
            image = random_augment.of_image(image, epoch, index)
        image = augment.crop_in_channels(image, crops.channels)
        if crops.basis is not None:
            image = augment.color_shift(image, crops.basis, normal)
        return image, target(index, label, uniform)

    return example


def _box_targets(split: Split, crops: Crops) -> Callable:
    """Return (index, label, numbers of `draws`) -> `regression.targets`, as TensorFlow ops."""
    import tensorflow as tf

    boxes, crop = split.boxes, (crops.size, crops.size)
    assert boxes
    sizes = np.array(boxes.sizes, np.int64)

    def target(index, label, scale, offset, mirror) -> np.ndarray:
        scale, mirror = int(scale), bool(mirror)
        return regression.targets(boxes, int(index), int(label), scale, offset, crop, mirror)

    def of_crop(index, label, uniform):
        size = tf.constant(sizes)[index]
        place = augment.placed(size, crops.size, crops.scale, uniform, crops.flip)
        made = tf.numpy_function(target, [index, label, *place], tf.float32, stateful=False)
        return tf.ensure_shape(made, [1 + 4 * boxes.most])

    return of_crop


def _batches(data, recipe: Recipe, start: int, classes: int, share: Share):
    """Return examples in batches, with labels as the recipe's loss takes them."""
    import tensorflow as tf

    rows = recipe.images_per_step // (1 if recipe.mixup else share.hosts)
    batches = data.batch(rows, drop_remainder=True)
    if recipe.one_hot:
        batches = batches.map(lambda images, labels: (images, tf.one_hot(labels, classes)))
    if recipe.mixup:
        mix = KeyedMixUp(recipe.mixup, recipe.seed).of_batch
        steps = batches.enumerate(start // recipe.images_per_step)
        batches = steps.map(lambda step, batch: mix(step, *batch), tf.data.AUTOTUNE)
        if share.hosts > 1:
            own = slice(share.first, share.first + share.rows)
            batches = batches.map(lambda images, labels: (images[own], labels[own]))
    return batches


def rescaled_images(
    split: Split,
    scale: tuple[int, int],
    console: Console,
    stop: threading.Event | None = None,
    fast: bool = True,
) -> Rescaled | None:
    """Rescale all images once; return None where the scale varies or `CACHE_BYTES` are too few.

    Args:
        split: the images.
        scale: lowest and highest training scale S, px.
        console: shows the progress.
        stop: raises KeyboardInterrupt once it is set.
        fast: decode large JPEGs at their `decoding.reduction`.
    """
    import tensorflow as tf

    bytes_of_all = split.count * scale[0] ** 2 * 3 * 4 / 3  # photographs are about 4:3
    if scale[0] != scale[1] or bytes_of_all > CACHE_BYTES:
        return None

    def whole(image: Image.Image) -> np.ndarray | None:
        rescaled = augment.Rescaled(image, scale[0])
        return None if rescaled.is_long else rescaled.whole

    pixels, sizes, labels = bytearray(), [], []  # an array of each would take as much again
    with progress_bar(console) as bar:
        for _, label, image in bar.track(
            read_images(split, whole, scale[0] if fast else None),
            total=split.count,
            description=f"rescaling {split.name}",
        ):
            if stop and stop.is_set():
                raise KeyboardInterrupt
            if image is None or len(pixels) + image.nbytes > CACHE_BYTES:
                return None  # longer than photographs are
            pixels += image.data
            sizes.append(image.shape[:2])
            labels.append(label)
    lengths = np.array(sizes, np.int64).prod(axis=1) * 3
    with tf.device("CPU"):
        return Rescaled(
            tf.constant(np.frombuffer(pixels, np.uint8)),
            tf.constant(np.cumsum(lengths) - lengths),
            tf.constant(sizes, tf.int64),
            tf.constant(labels, tf.int64),
        )


def validation_batches(
    split: Split,
    batch_size: int,
    size: int,
    scale: int,
    channels: int = 3,
    one_hot: int = 0,
    padding: Padding | None = None,
):
    """Return a tf.data.Dataset of (central crops uint8 `[B, size, size, C]`, labels int64 `[B]`).

    These are the same crops that `evaluate` reads. Where `one_hot` is the number of classes, labels
    are float32 `[B, one_hot]`; of a split with boxes they are the targets of `regression`. With
    `padding`, a batch is of this host's rows, and has weights float32 `[B]` as well.
    """
    import tensorflow as tf

    own = split
    if padding:
        indices = split.indices()
        others = set(indices) - {indices[row] for row in padding.own if row < split.count}
        own = split.without(others) if others else split
    boxes, crop_size = own.boxes, (size, size)
    # As long on every host, whichever images it has.
    most = split.boxes.most if split.boxes else 0
    target = np.zeros(1 + 4 * most, np.float32) if most else np.zeros((), np.int64)

    def crops() -> Iterator[tuple[np.ndarray, int | np.ndarray, float]]:
        for index, crop, label in augment.center_crops(own, crop_size, scale):
            true: int | np.ndarray = label
            if boxes:
                true = regression.central_target(boxes, index, label, scale, (size, size))
                true = np.append(true, np.tile(true[-4:], (len(target) - len(true)) // 4))
            yield augment.in_channels(crop, channels), true, padding.weight if padding else 1.0
        for _ in range(count - own.count):
            yield np.zeros((size, size, channels), np.uint8), target, 0.0

    count = len(padding.own) if padding else split.count
    signature = (
        tf.TensorSpec((size, size, channels), tf.uint8),
        tf.TensorSpec(target.shape, target.dtype),
        tf.TensorSpec((), tf.float32),
    )
    data = tf.data.Dataset.from_generator(crops, output_signature=signature)
    data = data.apply(tf.data.experimental.assert_cardinality(count))
    data = data.batch(batch_size // (padding.hosts if padding else 1))
    if not padding:
        data = data.map(lambda images, labels, _: (images, labels))
    if count * size * size * channels < CACHE_BYTES:
        data = data.cache()
    if one_hot:
        data = data.map(lambda images, labels, *w: (images, tf.one_hot(labels, one_hot), *w))
    return data.prefetch(2)
