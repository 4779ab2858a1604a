"""Which example comes when in training, and on which of several hosts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """The rows of every batch that one of several hosts reads: the first host's come first."""

    host: int
    hosts: int
    batch: int  # rows of a whole batch, a multiple of `hosts`

    @property
    def rows(self) -> int:
        """The rows of a batch that are this host's."""
        return self.batch // self.hosts

    @property
    def first(self) -> int:
        """The first of them."""
        return self.host * self.rows

    def position(self, own):
        """Return the position among all examples of this host's example number `own`."""
        return own // self.rows * self.batch + self.first + own % self.rows

    def has(self, position):
        """Return whether the example at a position is this host's."""
        return position % self.batch // self.rows == self.host


ALL = Share(0, 1, 1)


def shuffled_indices(count: int, seed: int, start: int = 0, share: Share = ALL):
    """Return an endless tf.data.Dataset of (epoch, index), int64, every epoch in another order.

    Indices are 0 to `count` - 1. The data set begins at the `start`-th pair, the first one of a
    batch of `share`, and of each batch has those of `share`. The order of an epoch is a pure
    function of (seed, epoch).
    """
    import tensorflow as tf

    def pair(own):
        position = share.position(own)
        epoch = position // count
        key = tf.stack([tf.constant(seed, tf.int64), epoch])
        last = tf.constant(count - 1, tf.int64)
        return epoch, tf.random.experimental.index_shuffle(position % count, key, last)

    return tf.data.Dataset.range(start // share.hosts, tf.int64.max // share.hosts).map(pair)
