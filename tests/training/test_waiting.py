"""How much of training is waiting for data: a slow pipeline, and a slow step."""

from __future__ import annotations

import io
import re
import time

import keras
import numpy as np
import pytest
from helpers import tiny
from rich.console import Console

from vggkeras.training.train import train
from vggkeras.training.waiting import Waiting


@pytest.mark.parametrize(("data", "step", "waits"), [(0.2, 0.0, True), (0.0, 0.2, False)])
def test_waiting_is_told_from_computing(data, step, waits):
    """In `fit`, where TensorFlow takes the batches within its graph; every batch comes, in order.

    One of the two sleeps as long as the other could take on a machine that is busy.
    """
    import tensorflow as tf

    def slow(i: np.ndarray) -> np.ndarray:
        time.sleep(data)
        return np.full((2, 4), i, np.float32)

    def example(i):
        image = tf.numpy_function(slow, [i], tf.float32)
        return tf.ensure_shape(image, (2, 4)), tf.zeros(2)

    class Step(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(float(logs["loss"]) * (batch + 1))  # the loss is the mean so far
            ends.append((time.monotonic(), waiting.seconds))
            time.sleep(step)

    seen, ends = [], []
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, "linear", use_bias=False)])
    model.layers[0].set_weights([np.full((4, 1), 0.25, np.float32)])
    model.compile(keras.optimizers.SGD(0.0), "mean_absolute_error")
    waiting = Waiting()
    batches = waiting.timed(tf.data.Dataset.range(100).map(example).prefetch(2))
    model.fit(batches, steps_per_epoch=8, verbose=0, shuffle=False, callbacks=[Step()])
    np.testing.assert_allclose(np.diff([0, *seen]), np.arange(8), atol=1e-4)
    seconds, waited = np.subtract(ends[-1], ends[1])  # the first step compiles
    assert (waited > seconds / 2) == waits


@pytest.mark.integration
def test_an_epochs_line_says_how_much_was_waiting(tmp_path, photos):
    console = Console(file=io.StringIO(), width=200)
    train(tiny(tmp_path / "run", data=str(photos), epochs=1, batch_norm=False), console)
    line = next(s for s in console.file.getvalue().splitlines() if s.startswith("epoch   1/1"))
    share = re.search(r"images/s, (\d+)% of training waiting for data$", line)
    assert share, line
    assert int(share[1]) <= 100
