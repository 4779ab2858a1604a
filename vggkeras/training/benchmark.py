"""How fast training is: the step alone, the pipeline alone, both together, and a plain pipeline.

python -m vggkeras benchmark --arch D --scale 256:512 --batch-size 16
"""

from __future__ import annotations

import functools
import io
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from vggkeras import configs, models
from vggkeras import recipe as recipe_module
from vggkeras.data import augment, sources
from vggkeras.data.splits import Split
from vggkeras.errors import InputError
from vggkeras.recipe import Recipe
from vggkeras.terminal import plain, progress_bar
from vggkeras.training.devices import check_memory
from vggkeras.training.optimizer import compile_model
from vggkeras.training.pipeline import Crops, training_batches
from vggkeras.training.runs import versions
from vggkeras.training.waiting import Waiting

WARM = 2  # steps or batches before the clock starts
PLAIN, CROPS, PIPELINE = "rescale, then crop", "crops in one pass", "whole pipeline, with colour"
STEP, TRAINING = "bare step", "training, end to end"
INPUT_BOUND = 0.1  # of its time that training waits for data, at least


@dataclass(frozen=True)
class Timing:
    """The time that one part took, over all rounds."""

    images: int
    seconds: float
    waited: float = 0.0  # seconds of them, for data

    @property
    def images_per_second(self) -> float:
        """The speed."""
        return self.images / self.seconds


@dataclass(frozen=True)
class Benchmark:
    """What was measured, on what."""

    recipe: Recipe
    size: int  # side of the crop, px
    scale: tuple[int, int]  # lowest and highest training scale S, px
    classes: int
    rounds: int
    timings: Mapping[str, Timing]  # by part
    operations: int  # floating-point operations of a training step, an image

    def milliseconds_per_step(self, part: str) -> float:
        """Return the duration of a part's training step."""
        return 1e3 / self.timings[part].images_per_second * self.recipe.images_per_step

    def gflops(self, part: str) -> float:
        """Return a part's billions of floating-point operations a second."""
        return self.timings[part].images_per_second * self.operations / 1e9

    def ratio(self, part: str, other: str) -> float:
        """Return how many times as fast as the other a part is."""
        return self.timings[part].images_per_second / self.timings[other].images_per_second

    @property
    def waiting(self) -> float:
        """The fraction of its time that training from the pipeline waits for data."""
        timing = self.timings[TRAINING]
        return timing.waited / timing.seconds

    def verdict(self) -> str:
        """Return in words whether training is input-bound, and what the pipeline could feed."""
        bound = "input-bound" if self.waiting >= INPUT_BOUND else "not input-bound"
        return (
            f"training waits for data {self.waiting:.1%} of its time: it is {bound}. The pipeline "
            f"could feed {self.timings[PIPELINE].images_per_second:.0f} images/s on "
            f"{os.cpu_count()} cores, {self.ratio(PIPELINE, STEP):.1f} times what the bare step "
            "takes"
        )

    def table(self) -> Table:
        """Return the figures for people."""
        recipe = self.recipe
        table = Table(
            title=f"{recipe.arch} at {self.size} px, width {recipe.width:g}, "
            f"{recipe.images_per_step} images a step, {recipe.precision}, scale {recipe.scale}, "
            f"{os.cpu_count()} cores"
        )
        table.add_column("part")
        for column in ("images/s", "ms a step", "GFLOP/s", f"of {STEP}", f"of {PLAIN}"):
            table.add_column(column, justify="right")
        for part, timing in self.timings.items():
            speed, trains = timing.images_per_second, part in (STEP, TRAINING)
            table.add_row(
                part,
                f"{speed:.1f}" if speed < 100 else f"{speed:.0f}",
                f"{self.milliseconds_per_step(part):.1f}" if trains else "",
                f"{self.gflops(part):.0f}" if trains else "",
                f"{self.ratio(TRAINING, STEP):.3f}" if part == TRAINING else "",
                f"{self.ratio(CROPS, PLAIN):.2f}" if part == CROPS else "",
            )
        return table

    def to_json(self) -> dict[str, Any]:
        """Return the figures for programs."""
        recipe = self.recipe
        parts: dict[str, dict[str, float]] = {}
        for part, timing in self.timings.items():
            parts[part] = {
                "images": timing.images,
                "seconds": timing.seconds,
                "images_per_second": timing.images_per_second,
            }
            if part in (STEP, TRAINING):
                parts[part]["milliseconds_per_step"] = self.milliseconds_per_step(part)
                parts[part]["gflops"] = self.gflops(part)
        return {
            "arch": recipe.arch,
            "image_size": self.size,
            "scale": list(self.scale),
            "batch_norm": recipe.batch_norm,
            "width": recipe.width,
            "fc_units": recipe.fc_units,
            "images_per_step": recipe.images_per_step,
            "precision": recipe.precision,
            "data": recipe.data,
            "classes": self.classes,
            "parts": parts,
            "crops_over_plain": self.ratio(CROPS, PLAIN),
            "training_over_step": self.ratio(TRAINING, STEP),
            "pipeline_over_step": self.ratio(PIPELINE, STEP),
            "waiting": self.waiting,
            "rounds": self.rounds,
            "cores": os.cpu_count(),
            "versions": versions(),
        }


def benchmark(
    recipe: Recipe,
    images: int = 480,
    steps: int = 4,
    rounds: int = 3,
    console: Console | None = None,
) -> Benchmark:
    """Measure a recipe's training on this machine, every part in turn, `rounds` times.

    A forward pass is two floating-point operations a multiply-add, a training step three forward
    passes.

    Args:
        recipe: arch, sizes, scale, batch and precision are used. `data` is a data string, or
            `generated`: photograph-like JPEGs of 500 x 375 and 375 x 500 px.
        images: number read through each pipeline, a round.
        steps: number trained on a batch in memory, and again from the pipeline, a round.
        rounds: how often everything is measured in turn, so that what slows the machine slows all.
        console: for the progress bar.

    Raises:
        InputError (a ValueError): unknown data, a scale below the crop, counts below one.
    """
    for name, number in {"images": images, "steps": steps, "rounds": rounds}.items():
        if number < 1:
            raise InputError(f"{name} must be 1 or more; received {number}.")
    size = recipe.image_size or 224
    scale = recipe_module.scale_range(recipe.scale, size)
    split, classes = _training_split(recipe)
    check_memory(recipe, size, classes, recipe.batch_size)
    sizes: dict[str, Any] = {
        "batch_norm": recipe.batch_norm,
        "width": recipe.width,
        "fc_units": recipe.fc_units,
    }
    shape = (size, size, 3)
    model = models.build(
        recipe.arch, shape, classes, **sizes, precision=recipe.precision, seed=recipe.seed
    )
    compile_model(model, recipe)
    parts = _parts(recipe, split, size, scale, model)
    totals = {part: Timing(0, 0.0) for part in parts}
    with progress_bar(plain(console), "measurements") as bar:
        task = bar.add_task("measuring", total=rounds * len(parts))
        for _ in range(rounds):
            for part, measure in parts.items():
                bar.update(task, description=part)
                total, timing = totals[part], measure(steps if part in (STEP, TRAINING) else images)
                totals[part] = Timing(
                    total.images + timing.images,
                    total.seconds + timing.seconds,
                    total.waited + timing.waited,
                )
                bar.advance(task)
    plan = configs.plan(recipe.arch, shape, classes, **sizes)
    operations = 3 * 2 * sum(layer.multiply_adds for layer in plan)
    return Benchmark(recipe, size, scale, classes, rounds, totals, operations)


def _training_split(recipe: Recipe) -> tuple[Split, int]:
    """Return the training images, and the number of classes."""
    if recipe.data == "generated":
        return replace(photograph_like(60), exif=recipe.exif), 1000
    loaded = sources.load_data(recipe.data).upright(recipe.exif)
    return loaded.split("train"), len(loaded.class_names)


def _parts(
    recipe: Recipe, split: Split, size: int, scale: tuple[int, int], model: keras.Model
) -> dict[str, Callable[[int], Timing]]:
    """Return the parts: functions of the number of images to read, or of steps to train."""
    batch = recipe.images_per_step
    basis = augment.color_basis(np.full((3, 3), 3500.0) + np.eye(3) * 500)
    crops = Crops(size, scale, recipe.flip)
    colored = Crops(size, scale, recipe.flip, basis)
    resident = _resident(training_batches(split, recipe, colored))

    def feed(images: int, threads: int | None = None) -> Timing:
        batches = training_batches(split, recipe, colored)
        return _read(_limited(batches, threads) if threads else batches, images, batch)

    return {
        PLAIN: lambda images: _read(_plain_batches(split, recipe, crops), images, batch),
        CROPS: lambda images: _read(training_batches(split, recipe, crops), images, batch),
        **{in_threads(n): functools.partial(feed, threads=n) for n in thread_counts()},
        PIPELINE: feed,
        STEP: lambda steps: _train(model, resident, steps, batch),
        TRAINING: lambda steps: _train(
            model, training_batches(split, recipe, colored), steps, batch
        ),
    }


def thread_counts() -> list[int]:
    """Return the powers of two below the number of cores."""
    cores = os.cpu_count() or 1
    return [1 << i for i in range(cores.bit_length()) if 1 << i < cores]


def in_threads(count: int) -> str:
    """Return the name of the part that is the whole pipeline in fewer threads than cores."""
    return f"{PIPELINE}, {count} thread{'s' * (count > 1)}"


def _limited(batches, threads: int):
    """Return batches whose images are prepared in so many threads at most."""
    import tensorflow as tf

    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    return batches.with_options(options)


def photograph_like(count: int, seed: int = 0) -> Split:
    """Return JPEGs of about 95 kB with a photograph's spectrum, 500 x 375 and 375 x 500 px.

    Their labels are 0 and 1 in turn.
    """
    encoded = []
    for i in range(count):
        h, w = ((375, 500), (500, 375))[i % 2]
        noise = np.fft.rfft2(np.random.default_rng([seed, i]).normal(size=(3, h, w)))
        frequency = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w))
        frequency[0, 0] = 1
        picture = np.fft.irfft2(noise / frequency**1.1, s=(h, w)).transpose(1, 2, 0)
        gray = picture.mean(axis=2, keepdims=True)
        picture = gray + 0.4 * (picture - gray)  # the channels of a photograph are correlated
        levels = 120 + 55 * (picture - picture.mean()) / picture.std()
        buffer = io.BytesIO()
        Image.fromarray(levels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        encoded.append(buffer.getvalue())
    return Split("generated", count, np.arange(count, dtype=np.int64) % 2, encoded)


def _plain_batches(split: Split, recipe: Recipe, crops: Crops):
    """Return the same crops from a plain pipeline, which decodes and rescales whole images."""
    import tensorflow as tf

    def example(epoch, index, encoded, label):
        uniform, _ = augment.draws(recipe.seed, epoch, index)
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        image.set_shape([None, None, 3])
        sides = tf.cast(tf.shape(image)[:2], tf.float32)
        low, high = crops.scale
        side = low + tf.floor(uniform[0] * (high - low + 1))
        rescaled = tf.cast(tf.round(sides * side / tf.reduce_min(sides)), tf.int32)
        image = tf.image.resize(image, rescaled, antialias=True)
        image = augment.crop_of_rescaled(image, crops.size, uniform, crops.flip)
        return tf.cast(tf.round(image), tf.uint8), label

    data = split.shuffled(recipe.seed).map(example, tf.data.AUTOTUNE)
    return data.batch(recipe.images_per_step, drop_remainder=True).prefetch(2)


def _resident(batches):
    """Return a dataset of one batch again and again, from memory."""
    import tensorflow as tf

    return tf.data.Dataset.from_tensors(next(iter(batches))).repeat()


def _read(batches, images: int, batch: int) -> Timing:
    """Measure the reading of batches, once the first are there."""
    iterator = iter(batches)
    for _ in range(WARM + 2):  # and what is prefetched while it starts
        next(iterator)
    count = max(1, round(images / batch))
    start = time.perf_counter()
    for _ in range(count):
        next(iterator)
    return Timing(count * batch, time.perf_counter() - start)


def _train(model: keras.Model, batches, steps: int, batch: int) -> Timing:
    """Measure training steps, once the first are done."""
    ends: list[tuple[float, float]] = []
    waiting = Waiting()

    def end(step: int, logs: dict[str, Any]) -> None:
        float(logs["loss"])  # waits for the step, as train() does
        ends.append((time.perf_counter(), waiting.seconds))

    callback = keras.callbacks.LambdaCallback(on_train_batch_end=end)
    model.fit(
        waiting.timed(batches),
        steps_per_epoch=WARM + steps,
        epochs=1,
        shuffle=False,
        verbose=0,
        callbacks=[callback],
    )
    seconds, waited = np.subtract(ends[-1], ends[WARM - 1]).tolist()
    return Timing(steps * batch, seconds, waited)
