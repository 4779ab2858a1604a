"""A predictor of any runtime answers right when several threads call it at once."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest

import vggkeras
from vggkeras import Predictor
from vggkeras.runtimes.stderr import quiet_stderr

pytestmark = pytest.mark.integration

THREADS = 8


def stress(predictor: Predictor, calls: int) -> None:
    """Call from 8 threads, each with images of its own; of every three, one has as many as others.

    A runtime that is not safe mixes the answers up, or raises as another thread resizes its input.
    """
    rng = np.random.default_rng(0)
    shapes = [(1 + i % 3, *predictor.input_shape) for i in range(THREADS)]
    shown = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    expected = [predictor(images) for images in shown]
    together = Barrier(THREADS)

    def call(i: int) -> None:
        together.wait()
        for _ in range(calls):
            np.testing.assert_allclose(predictor(shown[i]), expected[i], atol=1e-5)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(call, range(THREADS)))


@pytest.mark.parametrize("name", ["saved_model", "model.onnx", "model.tflite", "model.keras"])
def test_every_thread_gets_the_answers_to_its_own_images(predictors, name):
    stress(predictors[name], calls=25)


STRESS = """
import sys
sys.path[:0] = sys.argv[2:]
import test_threads, vggkeras
test_threads.stress(vggkeras.load(sys.argv[1]), calls=3)
"""


@pytest.mark.full  # the lock is the same on TensorFlow, above
def test_keras_on_jax_is_safe_too(run):
    child = subprocess.run(
        [sys.executable, "-c", STRESS, run.path, os.path.dirname(__file__)],
        env=os.environ | {"KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr


def test_threads_that_load_keep_stderr(exports, capfd):
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda _: vggkeras.load(exports / "model.tflite"), range(2 * THREADS)))
    with quiet_stderr() as printed:
        os.write(2, b"kept back\n")
    os.write(2, b"shown\n")
    assert printed == ["kept back\n"]
    assert capfd.readouterr().err.endswith("shown\n")
