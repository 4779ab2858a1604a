"""TODO"""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from vggkeras.card import INPUT_NAME, Form, ModelCard
from vggkeras.errors import InputError
from vggkeras.runtimes.forms import has_mean, smallest_shape
from vggkeras.runtimes.predictor import Predictor
from vggkeras.runtimes.providers import check_tensorflow_gpu, tensorflow_device, tensorflow_threads


def load(path: Path, provider: str, threads: int | None, tf32: bool) -> Predictor:
    import keras

    if keras.backend.backend() == "tensorflow":  # which starts with the first weight
        check_tensorflow_gpu(provider)
        tensorflow_threads(threads)
    from vggkeras import models

    model, card = models.load_model(path)
    return keras_predictor(model, card, path, provider, threads=threads, tf32=tf32)


def keras_predictor(
    model: Any,
    card: ModelCard,
    path: Path = Path("model.keras"),
    provider: str = "cpu",
    *,
    threads: int | None = None,
    tf32: bool = False,
) -> Predictor:
    """A `Predictor` over a Keras model in memory, on any backend; the options are `load`'s."""
    import keras

    from vggkeras import layers, models

    inputs = getattr(model, "inputs", None) or [model.input_spec]
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        raise InputError(
            f"{path} has {len(inputs)} inputs, the first of shape {list(inputs[0].shape)}: expected one, images "
            "[batch, H, W, C]; give an image classifier."
        )
    any_size = None in model.input_shape[1:]
    shape = smallest_shape(path, card) if any_size else tuple(model.input_shape[1:])
    backend = keras.backend.backend()
    known = threads
    if backend == "tensorflow":
        import tensorflow as tf

        check_tensorflow_gpu(provider)
        known = tensorflow_threads(threads)
        # One trace for every batch size; Keras' own predict() compiles with XLA, which is slower on a CPU.
        function = tf.function(
            lambda images: model(images, training=False),
            input_signature=[tf.TensorSpec(model.input_shape, tf.uint8)],
        )

        def run(images: np.ndarray) -> np.ndarray:
            with tensorflow_device(provider, tf32):
                return function(tf.constant(images)).numpy()
    elif provider != "cpu" or threads is not None:
        asked = f"provider {provider}" if provider != "cpu" else f"{threads} threads"
        raise InputError(
            f"{asked}: a .keras file has them with Keras' TensorFlow backend only, and this is {backend}: set "
            "KERAS_BACKEND=tensorflow and start again, or use the .onnx file."
        )
    else:
        run = model.predict_on_batch

    def make_form(form: Form) -> Predictor:
        make = models.dense_classifier if form is Form.DENSE else models.dense_features
        described = replace(card, input_shape=shape, form=form)
        return keras_predictor(make(model), described, path, provider, threads=threads, tf32=tf32)

    form = card.form if any_size else Form.CLASSIFIER
    if has_mean(model) and not card.mean_rgb:
        card = replace(card, mean_rgb=layers.mean_rgb(model))
    return Predictor(
        path,
        "keras",
        f"{keras.__version__} ({backend} {version(backend)})",
        provider,
        shape,
        model.output_shape[-1],
        INPUT_NAME,
        form.output_name,
        card,
        run,
        form,
        make_form,
        known,
        tf32,
    )
