"""TODO"""

from __future__ import annotations

import keras

from vggkeras.errors import InputError
from vggkeras.recipe import Recipe


def gpus() -> list:
    if keras.backend.backend() != "tensorflow":
        return []
    import tensorflow as tf

    return tf.config.list_logical_devices("GPU")


def distribution_strategy(recipe: Recipe):
    """MirroredStrategy where TensorFlow has several devices: all GPUs, or CPUs that someone has divided; else None.

    Raises InputError where a step's images cannot be shared out evenly: the gradient would weigh them unequally.
    """
    import tensorflow as tf

    if keras.backend.backend() != "tensorflow":
        if tf.config.list_physical_devices("GPU"):
            tf.config.set_visible_devices(
                [], "GPU"
            )  # tf.data needs none, and TensorFlow would take its memory
        return None
    devices = gpus() or tf.config.list_logical_devices("CPU")
    if len(devices) < 2:
        return None
    images = recipe.batch_size // recipe.accumulate
    if images % len(devices):
        raise InputError(
            f"A step's {images} images cannot be shared out evenly to {len(devices)} devices: give a --batch-size that is a "
            f"multiple of {len(devices) * recipe.accumulate}."
        )
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def device_text(strategy) -> str:
    return keras.backend.backend() + (
        f" with {strategy.num_replicas_in_sync} devices" if strategy else ""
    )
