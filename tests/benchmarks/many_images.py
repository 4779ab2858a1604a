"""Measure the way to the first training step of a folder with many images, and its memory.

python tests/benchmarks/many_images.py FOLDER 100000 1000

FOLDER gets class folders of JPEGs of 40 x 40 px, unless it is there. Two processes in turn train a
tiny network until its first step ends: the first one reads all images, and the second one knows
that they are the same. Their memory is that of a process which has loaded the libraries, and more.
"""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

TOGETHER = 100  # images that differ in their bytes; the others are copies of them


def write_folder(folder: Path, images: int, classes: int) -> None:
    """Write as many images to each class folder."""
    rng = np.random.default_rng(0)
    contents = []
    for _ in range(TOGETHER):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
        buffer = io.BytesIO()
        coarse.resize((40, 40), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
        contents.append(buffer.getvalue())
    for number in range(classes):
        of_class = folder / f"class-{number:04d}"
        of_class.mkdir(parents=True)
        for image in range(images // classes):
            (of_class / f"{image:06d}.jpg").write_bytes(contents[(number + image) % TOGETHER])


class FirstStepEnded(Exception):
    """Ends the training."""


def child(folder: str, scale: str) -> None:
    """Train until the first step ends, and print what it took as JSON."""
    import keras
    import tensorflow as tf

    from vggkeras.data import sources
    from vggkeras.recipe import Recipe
    from vggkeras.training import train as training

    tf.constant(0)
    libraries, start = megabytes(), time.monotonic()
    took = {}

    def timed(module, name: str) -> None:
        function = getattr(module, name)

        def call(*arguments, **options):
            began = time.monotonic()
            try:
                return function(*arguments, **options)
            finally:
                took[name] = round(time.monotonic() - began, 1)

        setattr(module, name, call)

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise FirstStepEnded

    timed(sources, "load_data")
    timed(training, "read_through")
    timed(training, "rescaled_images")
    with tempfile.TemporaryDirectory() as out:
        recipe = Recipe(
            "A", folder, Path(out) / "run", image_size=32, width=0.05, fc_units=8, scale=scale
        )
        try:
            training.train(recipe, callbacks=[Stop()])
        except FirstStepEnded:
            took["first step"] = round(time.monotonic() - start, 1)
    print(json.dumps({**took, "MB": megabytes() - libraries, "libraries' MB": libraries}))


def megabytes() -> int:
    """Return the most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    """Write the folder, and measure twice."""
    folder, images, classes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    if not folder.exists():
        write_folder(folder, images, classes)
    with tempfile.TemporaryDirectory() as cache:
        for scale in sys.argv[4:] or ["36:40"]:
            for state in ("cold", "warm"):
                said = subprocess.run(
                    [sys.executable, __file__, "child", str(folder), scale],
                    env={**os.environ, "XDG_CACHE_HOME": cache, "TF_CPP_MIN_LOG_LEVEL": "3"},
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                ).stdout
                print(f"{images:,} images, scale {scale}, {state}: {said.splitlines()[-1]}")


if __name__ == "__main__":
    child(*sys.argv[2:]) if sys.argv[1] == "child" else main()
