"""How fast training is: the step alone, the pipeline alone, both together, and a plain pipeline to compare with.

python -m vggkeras benchmark --arch D --scale 256:512 --batch-size 16
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from PIL import Image
from rich.console import Console

from vggkeras import configs, models
from vggkeras import recipe as recipe_module
from vggkeras.data import augment
from vggkeras.data import sources as sources_module
from vggkeras.data.splits import Split
from vggkeras.errors import InputError
from vggkeras.recipe import Recipe
from vggkeras.terminal import progress_bar
from vggkeras.training.optimizer import compile_model
from vggkeras.training.pipeline import training_batches
from vggkeras.training.runs import versions

WARM = 2  # steps or batches before the clock starts
PLAIN, CROPS, PIPELINE = "rescale, then crop", "crops in one pass", "whole pipeline, with colour"
STEP, TRAINING = "bare step", "training, end to end"


def benchmark(
    recipe: Recipe,
    images: int = 480,
    steps: int = 4,
    rounds: int = 3,
    console: Console | None = None,
) -> dict:
    """Measure a recipe's training on this machine, every part in turn, `rounds` times; rates are over all rounds.

    Args:
        recipe: arch, sizes, scale, batch, precision; `data` is a data string whose training images are used, or
            `generated`: photograph-like JPEGs of 500 x 375 and 375 x 500 px.
        images: read through each pipeline a round.
        steps: trained a round, on a batch in memory and again from the pipeline.
        rounds: how often everything is measured, in turn: what slows the machine slows all.
        console: for the progress bar.

    Returns:
        Of each part: images a second, and where it trains milliseconds a step and GFLOP/s (a forward pass is two
        floating-point operations a multiply-add, a training step three forward passes); ratios; what was measured on.

    Raises:
        InputError (a ValueError): unknown data, a scale below the crop, counts below one.
    """
    for name, number in {"images": images, "steps": steps, "rounds": rounds}.items():
        if number < 1:
            raise InputError(f"{name} must be 1 or more; received {number}.")
    size = recipe.image_size or 224
    scale = recipe_module.scale_range(recipe.scale, size)
    if recipe.data == "generated":
        split, classes = photograph_like(60), 1000
    else:
        data = sources_module.load_data(recipe.data)
        split, classes = data.split("train"), len(data.class_names)
    basis = augment.color_basis(np.full((3, 3), 3500.0) + np.eye(3) * 500)
    sizes: dict[str, Any] = {
        "batch_norm": recipe.batch_norm,
        "width": recipe.width,
        "fc_units": recipe.fc_units,
    }
    model = models.build(
        recipe.arch, (size, size, 3), classes, **sizes, precision=recipe.precision, seed=recipe.seed
    )
    compile_model(model, recipe)
    batch = recipe.batch_size // recipe.accumulate
    resident = _resident(training_batches(split, recipe, size, scale, basis=basis))
    parts: dict[str, Callable[[], tuple[int, float]]] = {
        PLAIN: lambda: _read(_plain_batches(split, recipe, size, scale), images, batch),
        CROPS: lambda: _read(training_batches(split, recipe, size, scale), images, batch),
        PIPELINE: lambda: _read(
            training_batches(split, recipe, size, scale, basis=basis), images, batch
        ),
        STEP: lambda: _train(model, resident, steps, batch),
        TRAINING: lambda: _train(
            model, training_batches(split, recipe, size, scale, basis=basis), steps, batch
        ),
    }
    totals: dict[str, list[float]] = {name: [0, 0.0] for name in parts}
    with progress_bar(console or Console()) as bar:
        task = bar.add_task("", total=rounds * len(parts))
        for _ in range(rounds):
            for name, measure in parts.items():
                bar.update(task, description=name)
                for i, value in enumerate(measure()):
                    totals[name][i] += value
                bar.advance(task)
    plan = configs.plan(recipe.arch, (size, size, 3), classes, **sizes)
    operations = (
        3 * 2 * sum(layer.multiply_adds for layer in plan)
    )  # of one image, forward and backward
    rows: dict[str, dict[str, float]] = {}
    for name, (count, seconds) in totals.items():
        rows[name] = {"images": count, "seconds": seconds, "images_per_second": count / seconds}
        if name in (STEP, TRAINING):
            rows[name] |= {
                "milliseconds_per_step": 1e3 * seconds / count * batch,
                "gflops": count / seconds * operations / 1e9,
            }
    return {
        "arch": recipe.arch,
        "image_size": size,
        "scale": list(scale),
        **sizes,
        "images_per_step": batch,
        "precision": recipe.precision,
        "data": recipe.data,
        "classes": classes,
        "parts": rows,
        "crops_over_plain": rows[CROPS]["images_per_second"] / rows[PLAIN]["images_per_second"],
        "training_over_step": rows[TRAINING]["images_per_second"] / rows[STEP]["images_per_second"],
        "rounds": rounds,
        "cores": os.cpu_count(),
        "versions": versions(),
    }


def photograph_like(count: int, seed: int = 0) -> Split:
    """Pictures with a photograph's spectrum, 500 x 375 and 375 x 500 px, as JPEGs of about 95 kB, labelled 0 and 1."""
    sources = []
    for i in range(count):
        h, w = ((375, 500), (500, 375))[i % 2]
        noise = np.fft.rfft2(np.random.default_rng([seed, i]).normal(size=(3, h, w)))
        frequency = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w))
        frequency[0, 0] = 1
        picture = np.fft.irfft2(noise / frequency**1.1, s=(h, w)).transpose(1, 2, 0)
        grey = picture.mean(axis=2, keepdims=True)
        picture = grey + 0.4 * (picture - grey)  # colours of one place are alike
        levels = (
            (120 + 55 * (picture - picture.mean()) / picture.std()).clip(0, 255).astype(np.uint8)
        )
        buffer = io.BytesIO()
        Image.fromarray(levels).save(buffer, "JPEG", quality=90)
        sources.append(buffer.getvalue())
    return Split("generated", count, np.arange(count, dtype=np.int64) % 2, sources)


def _plain_batches(split: Split, recipe: Recipe, size: int, scale: tuple[int, int]):
    """The same crops as a plain tf.data pipeline makes them: decode all, rescale all by TensorFlow's op, crop, mirror."""
    import tensorflow as tf

    def example(epoch, index, encoded, label):
        uniform, _ = augment.draws(recipe.seed, epoch, index)
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        image.set_shape([None, None, 3])
        sides = tf.cast(tf.shape(image)[:2], tf.float32)
        side = scale[0] + tf.floor(uniform[0] * (scale[1] - scale[0] + 1))
        rescaled = tf.cast(tf.round(sides * side / tf.reduce_min(sides)), tf.int32)
        image = augment.crop_of_rescaled(
            tf.image.resize(image, rescaled, antialias=True), size, uniform, recipe.flip
        )
        return tf.cast(tf.round(image), tf.uint8), label

    data = split.shuffled(recipe.seed).map(example, tf.data.AUTOTUNE)
    return data.batch(recipe.batch_size // recipe.accumulate, drop_remainder=True).prefetch(2)


def _resident(batches):
    """One batch again and again, from memory."""
    import tensorflow as tf

    return tf.data.Dataset.from_tensors(next(iter(batches))).repeat()


def _read(batches, images: int, batch: int) -> tuple[int, float]:
    """(images, seconds) of reading batches, once the first are there."""
    iterator = iter(batches)
    for _ in range(WARM + 2):  # what was made ahead while it started
        next(iterator)
    count = max(1, round(images / batch))
    start = time.perf_counter()
    for _ in range(count):
        next(iterator)
    return count * batch, time.perf_counter() - start


def _train(model: keras.Model, batches, steps: int, batch: int) -> tuple[int, float]:
    """(images, seconds) of training steps, once the first are done."""
    ends: list[float] = []

    def end(step: int, logs: dict[str, Any]) -> None:
        float(logs["loss"])  # waits for the step, as train() does
        ends.append(time.perf_counter())

    callback = keras.callbacks.LambdaCallback(on_train_batch_end=end)
    model.fit(
        batches,
        steps_per_epoch=WARM + steps,
        epochs=1,
        shuffle=False,
        verbose=0,
        callbacks=[callback],
    )
    return steps * batch, ends[-1] - ends[WARM - 1]
