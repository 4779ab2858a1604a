"""Run .keras files, and Keras models in memory, on any of Keras' backends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from vggkeras.card import INPUT_NAME, Form, ModelCard
from vggkeras.errors import InputError
from vggkeras.runtimes.forms import smallest_shape
from vggkeras.runtimes.predictor import Predictor, Sealed, taking_turns
from vggkeras.runtimes.providers import (
    ON_CPU,
    Options,
    check_tensorflow_gpu,
    tensorflow_device,
    tensorflow_threads,
)

MAKERS = {  # of `models`, which loads Keras
    Form.DENSE: "dense_classifier",
    Form.FEATURES: "dense_features",
    Form.DENSE_BOXES: "to_dense",
    Form.MAP: "to_dense",
}


def load(path: Path, options: Options) -> Predictor:
    """Return a predictor over a .keras file; see `vggkeras.load`."""
    import keras

    if keras.backend.backend() == "tensorflow":  # which starts with the first weight
        check_tensorflow_gpu(options.provider)
        tensorflow_threads(options.threads)
    from vggkeras import models

    model, card = models.load_model(path)
    return keras_predictor(model, card, path, options)


def keras_predictor(
    model: Any,
    card: ModelCard,
    path: Path = Path("model.keras"),
    options: Options = ON_CPU,
) -> Predictor:
    """Return a predictor over a Keras model in memory, on any backend.

    Args:
        model: a keras.Model that takes images `[N, H, W, C]`, 0-255.
        card: what travels with it.
        path: what messages call it.
        options: where and how it computes.

    Raises:
        InputError (a ValueError): another kind of model; options that this backend has not.
    """
    import keras

    from vggkeras import layers, models

    _check_takes_images(model, path)
    sealed: Sealed = "no" if card != ModelCard() else "foreign"
    any_size = None in model.input_shape[1:]
    shape = smallest_shape(path, card) if any_size else tuple(model.input_shape[1:])
    form = card.form if any_size else Form.BOXES if card.boxes else Form.CLASSIFIER
    if not card.mean_rgb and any(layer.name == "mean_rgb" for layer in model.layers):
        card = replace(card, mean_rgb=layers.mean_rgb(model))
    backend = keras.backend.backend()
    if backend == "tensorflow":
        check_tensorflow_gpu(options.provider)
        threads: int | None = tensorflow_threads(options.threads)
        run = _tensorflow_runner(model, options)
    else:
        _check_options(options, backend)
        # Other backends keep state of a call in the model: JAX gives its buffers away.
        threads, run = None, taking_turns(model.predict_on_batch)

    def make_form(form: Form) -> Predictor:
        other_card = replace(card, input_shape=shape, form=form)
        return keras_predictor(getattr(models, MAKERS[form])(model), other_card, path, options)

    return Predictor(
        path=path,
        runtime="keras",
        version=f"{keras.__version__} ({backend} {version(backend)})",
        provider=options.provider,
        input_shape=shape,
        outputs=model.output_shape[-1],
        input_name=INPUT_NAME,
        output_name=form.output_name,
        card=card,
        run=run,
        form=form,
        make_form=make_form,
        threads=threads,
        tf32=options.tf32,
        sealed=sealed,
        network=model,
    )


def _check_takes_images(model: Any, path: Path) -> None:
    inputs = getattr(model, "inputs", None) or [model.input_spec]
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        raise InputError(
            f"{path} has {len(inputs)} inputs, the first of shape {list(inputs[0].shape)}: "
            "expected one, images [batch, H, W, C]; give an image classifier."
        )


def _check_options(options: Options, backend: str) -> None:
    """Raise InputError for options that a backend other than TensorFlow has not."""
    if options.provider == "cpu" and options.threads is None:
        return
    on_gpu = options.provider != "cpu"
    received = f"provider {options.provider}" if on_gpu else f"{options.threads} threads"
    raise InputError(
        f"{received}: a .keras file has them with Keras' TensorFlow backend only, and this is "
        f"{backend}: set KERAS_BACKEND=tensorflow and start again, or use the .onnx file."
    )


def _tensorflow_runner(model: Any, options: Options) -> Callable[[np.ndarray], np.ndarray]:
    import tensorflow as tf

    # One trace for every batch size; Keras' own predict() compiles with XLA, slower on a CPU.
    function = tf.function(
        lambda images: model(images, training=False),
        input_signature=[tf.TensorSpec(model.input_shape, tf.uint8)],
    )

    def run(images: np.ndarray) -> np.ndarray:
        try:
            with tensorflow_device(options.provider, options.tf32):
                # Called itself, it warns of "retracing" where several models are loaded in turn.
                return function.get_concrete_function()(tf.constant(images)).numpy()
        except tf.errors.OpError as error:
            reason = " ".join(error.message.split())[:300]
            raise InputError(
                f"TensorFlow cannot compute {model.name} ({reason}): if it is memory, give smaller "
                "images; else the network is not whole, save it again."
            ) from error

    return run
