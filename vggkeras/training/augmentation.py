"""Augmentation by Keras' own layers, beyond the paper, inside tf.data.

Keras' layers draw from a generator that remembers how often it was asked. Here they draw from keys,
so that what happens to an image is a pure function of the seed, the epoch and the image, and a run
can be resumed anywhere, on every backend.
"""

from __future__ import annotations

from typing import Any

import keras

AFTER_COLOR = 2  # number of RandAugment's key among an image's keys; `augment.draws` has two
ANY_EPOCH = -1  # stands for the epoch in the key of a batch, which may straddle two


class KeyedSeeds(keras.random.SeedGenerator):
    """The seeds that a layer draws, derived from a key in turn."""

    def __init__(self) -> None:
        """Wait for `start`."""
        super().__init__(0)
        self.key: Any = None
        self.drawn = 0

    def start(self, key) -> None:
        """Begin anew with a key, int64 `[2]`."""
        self.key, self.drawn = key, 0

    def next(self, ordered: bool = True):
        """Return the next seed, int64 `[2]`."""
        import tensorflow as tf

        self.drawn += 1
        return tf.random.experimental.stateless_fold_in(self.key, self.drawn)


class KeyedRandAugment(keras.layers.RandAugment):
    """Keras' RandAugment of one image, from a key."""

    def __init__(self, seed: int) -> None:
        """Take the run's seed."""
        super().__init__(value_range=(0, 255))
        self.run_seed, self.seeds = seed, KeyedSeeds()

    def _get_seed_generator(self, backend=None):
        return self.seeds

    def of_image(self, image, epoch, index):
        """Change image `index` in an epoch: 0-255 `[h, w, 3]` -> float32 `[h, w, 3]`, 0-255."""
        import tensorflow as tf

        fold_in = tf.random.experimental.stateless_fold_in
        key = fold_in(_key(self.run_seed, epoch), tf.cast(index, tf.int64))
        self.seeds.start(fold_in(key, AFTER_COLOR))
        return self(image)


class KeyedMixUp(keras.layers.MixUp):
    """Keras' MixUp of one batch, from a key."""

    def __init__(self, alpha: float, seed: int) -> None:
        """Take MixUp's alpha, and the run's seed."""
        super().__init__(alpha)
        self.run_seed, self.seeds = seed, KeyedSeeds()

    def _get_seed_generator(self, backend=None):
        return self.seeds

    def of_batch(self, step, images, labels):
        """Mix the batch of a step: `[B, h, w, 3]`, one-hot `[B, classes]` -> the same, float32."""
        import tensorflow as tf

        fold_in = tf.random.experimental.stateless_fold_in
        self.seeds.start(fold_in(_key(self.run_seed, ANY_EPOCH), step))
        mixed = self({"images": images, "labels": labels})
        return mixed["images"], mixed["labels"]


def _key(seed: int, epoch):
    import tensorflow as tf

    return tf.stack([tf.constant(seed, tf.int64), tf.cast(epoch, tf.int64)])
