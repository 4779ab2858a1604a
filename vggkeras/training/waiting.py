"""How long training waits for its images: whether its input or its computation is the slower."""

from __future__ import annotations


class Waiting:
    """The seconds that training has waited for batches.

    TensorFlow takes batches within its graph, where no callback can tell waiting from computing. So
    the last stage of the pipeline reads the clock before it asks for a batch and after. It runs
    when the next batch is asked for, in the thread that asks, on TensorFlow and on JAX.
    """

    def __init__(self) -> None:
        """Begin with none."""
        import tensorflow as tf

        with tf.device("CPU"):
            self._seconds = tf.Variable(0.0, trainable=False, dtype=tf.float64)

    @property
    def seconds(self) -> float:
        """The seconds so far."""
        return float(self._seconds.numpy())

    def timed(self, batches):
        """Return a tf.data.Dataset of the same batches, the waiting for which is counted."""
        import tensorflow as tf

        def count(start, batch, end):
            self._seconds.assign_add(end - start)
            return batch

        clock = tf.data.Dataset.range(tf.int64.max).map(lambda _: tf.timestamp())
        options = tf.data.Options()
        options.experimental_optimization.inject_prefetch = False  # it would ask ahead
        return tf.data.Dataset.zip(clock, batches, clock).map(count).with_options(options)
