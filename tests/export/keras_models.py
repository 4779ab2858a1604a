"""Keras classifiers that vggkeras did not build, shared by two test modules."""

from __future__ import annotations

import keras
import numpy as np
from helpers import photo
from keras import layers
from keras.applications import imagenet_utils

import vggkeras
from export import keras_export
from vggkeras.card import ModelCard

CARD = ModelCard(
    tuple("abcde"), (0.0,) * 3, scale=73, input_shape=(64, 64, 3), outputs=5, written_with="test"
)


MODES = {"-1-1": "tf", "caffe": "caffe", "torch": "torch"}


def photos(count: int, height: int, width: int | None = None) -> np.ndarray:
    """Smooth pictures, uint8 [count, height, width, 3]."""
    return np.stack([photo(seed, height, width or height) for seed in range(count)])


def prepared(images: np.ndarray, pixels: str) -> np.ndarray:
    """What a network of that input takes, by Keras' own function where it has one."""
    images = images.astype(np.float32)
    if pixels in MODES:
        return imagenet_utils.preprocess_input(images, mode=MODES[pixels])
    return images / 255 if pixels == "0-1" else images


def lively(model: keras.Model, pixels: str) -> keras.Model:
    """Give a fresh network answers that follow the image, as a trained one's do.

    Its batch norm takes the averages of real images, and its last layer scores that are apart.
    """
    norms = [
        layer
        for layer in keras_export.all_layers(model)
        if isinstance(layer, layers.BatchNormalization)
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    images = prepared(photos(16, *model.inputs[0].shape[1:3]), pixels)
    model(images, training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    last = model.layers[-1]
    kernel, bias = last.get_weights()
    scores = np.asarray(keras.Model(model.inputs[0], last.input)(images)) @ kernel
    # Not larger: a deep network's rounding grows by this factor too.
    kernel *= 0.1 / scores.std(axis=0).mean()
    last.set_weights([kernel, np.linspace(-0.1, 0.1, len(bias))])
    return model


def pooled() -> tuple[keras.Model, str]:
    base = vggkeras.build("A", (32, 32, 3), 4, width=0.125, fc_units=8, init="he", seed=0)
    x = layers.GlobalAveragePooling2D()(base.get_layer("block5_pool").output)
    return keras.Model(base.input, layers.Dense(5, "softmax")(x)), "0-255"


def classifier(shape=(8, 8, 3), units: int = 5, **options) -> keras.Model:
    parts = [layers.Flatten(), layers.Dense(units, "softmax", **options)]
    return keras.Sequential([keras.Input(shape), *parts], name="network")
