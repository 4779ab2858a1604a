"""Make the graph that is exported of a model, and write that graph as a SavedModel folder.

The graph takes `images`, uint8 `[batch, H, W, C]`, RGB, and gives `probabilities`, float32
`[batch, classes]`; the SavedModel has it as its signature serving_default. A dense one takes any H
and W from the training crop up; so does one of features, which gives `features`, float32
`[batch, units]`. One of boxes gives `boxes`, float32 `[batch, outputs]`, and a dense one a map.
"""

from __future__ import annotations

import contextlib
import json
import logging
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops
from tensorflow.core.protobuf import fingerprint_pb2

from vggkeras import models
from vggkeras.card import Form, ModelCard
from vggkeras.errors import InputError

ABOUT = Path("assets.extra", "vggkeras.json")
# By these layers the networks of vggkeras.build() are known.
LAYERS = {"mean_rgb", "flatten", "fc1", "fc2"}
LAST = ("predictions", "boxes")


def is_vgg(model: keras.Model) -> bool:
    """Return whether a model is a network of `vggkeras.build()`.

    It is where it is a chain of those layers, from images to classes, or to boxes.
    """
    names = [layer.name for layer in model.layers]
    chain = all(
        layer.input is before.output
        for before, layer in zip(model.layers, model.layers[1:], strict=False)
        if isinstance(model, keras.Model) and layer.name in (*LAYERS, *LAST)
    )
    return set(names) >= LAYERS and names[-1] in LAST and chain


def ends_in_scores(model: keras.Model) -> bool:
    """Return whether a network of `vggkeras.build()` gives class scores, without the soft-max."""
    activation = model.get_layer("predictions").activation
    return keras.activations.serialize(activation) == "linear"


def add_softmax(model: keras.Model) -> None:
    """Make a network of `vggkeras.build()` that ends in class scores end in their soft-max."""
    model.get_layer("predictions").activation = keras.activations.softmax


def inference_model(model: keras.Model, form: Form = Form.CLASSIFIER) -> keras.Model:
    """Return the model as it is exported: no dropout, and batch norm inside the kernels.

    It takes uint8 images and gives a dict of one output. Layers that need no change are shared
    with the model, not copied; of the forms for any size (`models.dense_classifier`,
    `models.dense_features`, `models.to_dense` of boxes), a copy is.

    A normalized convolution is the convolution with its kernel and bias scaled and shifted; left
    as it is, batch norm stays between transposes in the exported graph.

    Raises:
        InputError (a ValueError): the model is no network of `vggkeras.build()`, or a classifier
            that does not end in soft-max, which features do without.
    """
    form, names = Form(form), [layer.name for layer in model.layers]
    if not is_vgg(model):
        raise InputError(
            f"Expected a network of vggkeras.build(), with layers {', '.join(sorted(LAYERS))} and "
            f"{' or '.join(LAST)}; received {model.name!r} with {', '.join(names[:6])}…"
        )
    if form == Form.FEATURES:
        model = models.dense_features(model)
    elif form.is_boxes:
        model = models.to_dense(model) if form.takes_any_size else model
    elif keras.activations.serialize(model.get_layer("predictions").activation) != "softmax":
        raise InputError(
            "Expected a classifier that ends in soft-max: build it with "
            "classifier_activation='softmax'."
        )
    elif form == Form.DENSE:
        model = models.dense_classifier(model)

    images = x = keras.Input(model.input_shape[1:], dtype="uint8", name="images")
    for layer in model.layers[1:]:
        norm = layer.name.replace("conv", "bn")
        if isinstance(layer, layers.Dropout | layers.BatchNormalization):
            continue
        if isinstance(layer, layers.Flatten):
            x = _Flatten(layer.output.shape[-1], name=layer.name)(x)
        elif isinstance(layer, layers.Conv2D) and norm != layer.name and norm in names:
            conv = layers.Conv2D.from_config(layer.get_config())
            x = conv(x)
            conv.set_weights(_folded(layer, model.get_layer(norm)))
        else:  # the layer itself, for a copy of its weights would take as much memory again
            x = layer(x)
    return keras.Model(images, {form.output_name: x}, name=model.name)


def _folded(conv: layers.Conv2D, norm: layers.BatchNormalization) -> list[np.ndarray]:
    kernel, bias = conv.get_weights()
    gamma, beta, mean, variance = (weight.astype(np.float64) for weight in norm.get_weights())
    scale = gamma / np.sqrt(variance + norm.epsilon)
    return [(kernel * scale).astype(np.float32), (beta + (bias - mean) * scale).astype(np.float32)]


def write(
    model: keras.Model,
    path: Path,
    card: ModelCard,
    opset: int | None = None,
    plan: object = None,
) -> None:
    """Write what `inference_model` made.

    Args:
        model: the graph.
        path: the folder.
        card: what travels in it.
        opset: not used: ONNX's.
        plan: not used: int8's.

    Raises:
        OSError: the folder cannot be written.
    """
    # TensorFlow's own saving, of its own variables: Keras' ExportArchive stores every weight twice.
    module = tf.Module()
    module.weights = [weight.value for weight in model.weights]
    images = tf.TensorSpec([None, *model.input_shape[1:]], tf.uint8, name="images")
    module.serve = tf.function(
        lambda images: model(images, training=False), input_signature=[images]
    )
    try:
        with _without_notes():
            tf.saved_model.save(module, str(path), signatures={"serving_default": module.serve})
    except tf.errors.OpError as error:  # TensorFlow's own file system layer
        raise OSError(f"{path} cannot be written: {error}") from error
    _fix_fingerprint(path / "fingerprint.pb")
    (path / ABOUT).parent.mkdir()
    (path / ABOUT).write_text(json.dumps(card.to_description()))


@contextlib.contextmanager
def _without_notes() -> Iterator[None]:
    """Keep back what TensorFlow logs of every folder: its name, which is not the final one."""
    logger = logging.getLogger("tensorflow")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _fix_fingerprint(path: Path) -> None:
    """Replace the random name that TensorFlow gives a file by one that follows from its content."""
    fingerprint = fingerprint_pb2.FingerprintDef.FromString(path.read_bytes())
    fingerprint.uuid = ""
    fingerprint.uuid = str(uuid.uuid5(uuid.NAMESPACE_OID, fingerprint.SerializeToString().hex()))
    path.write_bytes(fingerprint.SerializeToString())


class _Flatten(layers.Layer):
    """Flatten to a constant target: Keras' own computes the batch size in a chain of small ops."""

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units

    def call(self, x: Any) -> Any:
        return ops.reshape(x, (-1, self.units))
