"""TODO"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console

from vggkeras.data import augment, decoding
from vggkeras.data.splits import Split, shuffled_indices
from vggkeras.recipe import Recipe
from vggkeras.terminal import progress_bar

CACHE_BYTES = 1 << 30  # rescaled images are kept in memory when all of them take less


def training_batches(
    split: Split,
    recipe: Recipe,
    size: int,
    scale: tuple[int, int],
    mirrors: bool = True,
    basis: np.ndarray | None = None,
    start: int = 0,
    rescaled: Rescaled | None = None,
):
    """tf.data.Dataset without end of (images `[B, size, size, 3]`, labels int64 `[B]`), a new order every epoch.

    A batch is what one step sees. Which image comes when, its scale, crop, mirroring and colour are pure functions of
    (seed, epoch, index of the image). Batches straddle the epochs, so that all are full and every image is seen equally
    often. What waits is bounded: as many images as there are cores, and two batches.

    Args:
        split: the training images.
        recipe: its seed, batch and whether to flip.
        size: side of the crop, px.
        scale: (lowest, highest) training scale S, px.
        mirrors: whether a mirrored image is still one of its class.
        basis: of `augment.color_basis`; images are then float32, with their colours shifted, otherwise uint8.
        start: how many images to pass over from the very first one on.
        rescaled: the images in memory, from `rescaled_images`, where they fit.
    """
    import tensorflow as tf

    flip = recipe.flip and mirrors

    def example(epoch, index, crop, label):
        uniform, normal = augment.draws(recipe.seed, epoch, index)
        image = crop(uniform)
        return (image if basis is None else augment.color_shift(image, basis, normal)), label

    if rescaled is not None:

        def of_rescaled(epoch, index):
            image = rescaled.image(index)
            return example(
                epoch,
                index,
                lambda u: augment.crop_of_rescaled(image, size, u, flip),
                rescaled.labels[index],
            )

        data = shuffled_indices(split.count, recipe.seed, start).map(
            of_rescaled, tf.data.AUTOTUNE
        )
    else:

        def of_encoded(epoch, index, encoded, label):
            return example(
                epoch, index, lambda u: augment.random_crop(encoded, size, scale, u, flip), label
            )

        data = split.shuffled(recipe.seed, start).map(of_encoded, tf.data.AUTOTUNE)
    return data.batch(recipe.batch_size // recipe.accumulate, drop_remainder=True).prefetch(2)


@dataclass(frozen=True)
class Rescaled:
    """A split's images, rescaled to one scale, in memory: end to end in one tensor, for they differ in size."""

    pixels: Any  # uint8 [all bytes]
    starts: Any  # int64 [count]
    sizes: Any  # int64 [count, 2], height and width
    labels: Any  # int64 [count]

    def image(self, index):
        """Image `index` as TensorFlow ops, uint8 `[h, w, 3]`."""
        import tensorflow as tf

        h, w = self.sizes[index][0], self.sizes[index][1]
        return tf.reshape(
            self.pixels[self.starts[index] : self.starts[index] + h * w * 3], [h, w, 3]
        )


def rescaled_images(split: Split, scale: tuple[int, int], console: Console) -> Rescaled | None:
    """The images rescaled once for all, where there is one scale and all of them take less than `CACHE_BYTES`."""
    import tensorflow as tf

    if (
        scale[0] != scale[1] or split.count * scale[0] ** 2 * 3 * 4 / 3 > CACHE_BYTES
    ):  # photographs are about 4:3
        return None

    def one(index: int, encoded: bytes, label: int) -> tuple[np.ndarray, int]:
        return augment.rescale(decoding.decode(encoded, split.image_name(index)), scale[0]), label

    with progress_bar(console) as bar:
        read = list(
            bar.track(
                decoding.in_threads(one, split.examples()),
                total=split.count,
                description=f"rescaling {split.name}",
            )
        )
    sizes = np.array([image.shape[:2] for image, _ in read], np.int64)
    lengths = sizes.prod(axis=1) * 3
    with tf.device("CPU"):
        return Rescaled(
            tf.constant(np.concatenate([image.reshape(-1) for image, _ in read])),
            tf.constant(np.cumsum(lengths) - lengths),
            tf.constant(sizes),
            tf.constant([label for _, label in read], tf.int64),
        )


def validation_batches(split: Split, batch_size: int, size: int, scale: int):
    """tf.data.Dataset of (central crops uint8 `[B, size, size, 3]`, labels int64 `[B]`): just what `evaluate` reads."""
    import tensorflow as tf

    def crops() -> Iterator[tuple[np.ndarray, int]]:
        yield from (
            (crop, label) for _, crop, label in augment.center_crops(split, (size, size), scale)
        )

    signature = (tf.TensorSpec((size, size, 3), tf.uint8), tf.TensorSpec((), tf.int64))
    data = tf.data.Dataset.from_generator(crops, output_signature=signature)
    data = data.apply(tf.data.experimental.assert_cardinality(split.count)).batch(batch_size)
    if split.count * size * size * 3 < CACHE_BYTES:
        data = data.cache()
    return data.prefetch(2)
