"""The devices that a run trains on: one, or several GPUs of this machine."""

from __future__ import annotations

import keras

from vggkeras import configs, memory
from vggkeras.errors import InputError
from vggkeras.recipe import Recipe


def gpus() -> list:
    """Return TensorFlow's GPUs, none on another backend."""
    if keras.backend.backend() != "tensorflow":
        return []
    import tensorflow as tf

    return tf.config.list_logical_devices("GPU")


def distribution_strategy(recipe: Recipe):
    """Return a MirroredStrategy for several GPUs (or logical CPUs) of TensorFlow, else None.

    Raises:
        InputError (a ValueError): the devices would get unequal numbers of a step's images, and so
            weigh them unequally.
    """
    import tensorflow as tf

    if keras.backend.backend() != "tensorflow":
        if tf.config.list_physical_devices("GPU"):
            # tf.data needs no GPU, and TensorFlow would take its memory.
            tf.config.set_visible_devices([], "GPU")
        return None
    devices = gpus() or tf.config.list_logical_devices("CPU")
    if len(devices) < 2:
        return None
    images = recipe.images_per_step
    if images % len(devices):
        raise InputError(
            f"A step's {images} images cannot be divided evenly among {len(devices)} devices: give "
            f"a --batch-size that is a multiple of {len(devices) * recipe.accumulate}."
        )
    return tf.distribute.MirroredStrategy([device.name for device in devices])


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


def device_text(strategy) -> str:
    """Return the backend and the number of devices, in words."""
    devices = f" with {strategy.num_replicas_in_sync} devices" if strategy else ""
    return keras.backend.backend() + devices
