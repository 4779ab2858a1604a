"""The devices that a run trains on: one, several of this machine, or those of several hosts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import keras

from vggkeras import configs, memory
from vggkeras.errors import InputError
from vggkeras.recipe import Recipe
from vggkeras.training.hosts import Hosts
from vggkeras.training.pipeline import Padding


def gpus() -> list:
    """Return TensorFlow's GPUs, none on another backend."""
    if keras.backend.backend() != "tensorflow":
        return []
    import tensorflow as tf

    return tf.config.list_logical_devices("GPU")


def distribution_strategy(recipe: Recipe) -> Any:
    """Return what distributes a step over several devices; None for a single one.

    TensorFlow's MirroredStrategy for the GPUs (or logical CPUs) of this machine, or Keras'
    DataParallel for the devices of JAX, on all hosts.

    Raises:
        InputError (a ValueError): the devices would get unequal numbers of a step's images, and so
            weigh them unequally.
    """
    import tensorflow as tf

    backend = keras.backend.backend()
    if backend != "tensorflow" and tf.config.list_physical_devices("GPU"):
        # tf.data needs no GPU, and TensorFlow would take its memory.
        tf.config.set_visible_devices([], "GPU")
    if backend == "torch":
        return None
    if backend == "jax":
        devices = keras.distribution.list_devices()
    else:
        devices = gpus() or tf.config.list_logical_devices("CPU")
    if len(devices) < 2:
        return None
    check_divides(recipe, len(devices), "devices")
    if backend == "jax":
        return keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def check_divides(recipe: Recipe, count: int, what: str) -> None:
    """Raise InputError where the images of a step cannot be divided evenly."""
    images = recipe.images_per_step
    if images % count:
        raise InputError(
            f"A step's {images} images cannot be divided evenly among {count} {what}: give a "
            f"--batch-size that is a multiple of {count * recipe.accumulate}"
            f"{', or hide some devices with CUDA_VISIBLE_DEVICES' if what == 'devices' else ''}."
        )


def around_training(strategy: Any) -> AbstractContextManager:
    """Return the scope of all of a training; MirroredStrategy's is for making a model."""
    return strategy.scope() if is_padded(strategy) else nullcontext()


@contextmanager
def undistributed() -> Iterator[None]:
    """Let variables that are made belong to this host alone: Keras makes some to save a model."""
    distribution = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(distribution)


def is_padded(strategy: Any) -> bool:
    """Return whether the devices take none but batches that they divide: those of JAX do."""
    return isinstance(strategy, keras.distribution.DataParallel)


def padding(strategy: Any, count: int, batch: int, hosts: Hosts) -> Padding | None:
    """Return how `count` images of validation fill the devices; None where they need not."""
    if not is_padded(strategy):
        return None
    return Padding.of(count, batch, count_devices(strategy), hosts.index, hosts.count)


def count_devices(strategy: Any) -> int:
    """Return the number of devices that share a step."""
    if is_padded(strategy):
        return strategy.num_model_replicas
    return strategy.num_replicas_in_sync if strategy else 1


def check_memory(recipe: Recipe, size: int, classes: int, images: int) -> None:
    """Check that a recipe's training can fit in memory, before long work is done for it.

    Args:
        recipe: of which the network, the batch and the precision are used.
        size: side of the crop, px.
        classes: their number.
        images: the training images; no batch has more.

    Raises:
        InputError (a ValueError): not even the least that it takes fits.
    """
    import tensorflow as tf

    plan = configs.plan(
        recipe.arch,
        (size, size, recipe.channels),
        classes,
        batch_norm=recipe.batch_norm,
        width=recipe.width,
        fc_units=recipe.fc_units,
    )
    step = max(1, min(recipe.batch_size, images) // recipe.accumulate)
    if keras.backend.backend() != "tensorflow" or tf.config.list_physical_devices("GPU"):
        step = 1  # another memory holds the batch, or another library decides what is held
    value_bytes = 4 if recipe.precision == "float32" else 2
    # Adam keeps two moments of every weight, where SGD has its momentum.
    copies = memory.TRAINING_COPIES + (recipe.optimizer == "adamw") + (recipe.ema is not None)
    needed = memory.needed_bytes(plan, copies, step, value_bytes)
    memory.check(needed, f"Training {recipe.arch} at {size} px, {step} images a step,")


def device_text(strategy: Any, hosts: int = 1) -> str:
    """Return the backend and the number of devices, in words."""
    devices = f" with {count_devices(strategy)} devices" if strategy else ""
    return keras.backend.backend() + devices + (f" on {hosts} hosts" if hosts > 1 else "")
