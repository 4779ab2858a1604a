"""TODO"""

from __future__ import annotations


def shuffled_indices(count: int, seed: int, start: int = 0):
    """tf.data.Dataset without end of (epoch, index), int64: the numbers below `count` in a new order every epoch.

    It begins at the `start`-th pair; an epoch's order is a pure function of (seed, epoch).
    """
    import tensorflow as tf

    def pair(place):
        epoch = place // count
        return epoch, tf.random.experimental.index_shuffle(
            place % count,
            tf.stack([tf.constant(seed, tf.int64), epoch]),
            tf.constant(count - 1, tf.int64),
        )

    return tf.data.Dataset.range(start, tf.int64.max).map(pair)
