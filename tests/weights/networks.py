"""Networks of ours and of keras.applications with drawn weights, and a test of equal scores."""

from __future__ import annotations

import os
from pathlib import Path

import keras
import numpy as np
from helpers import photo
from PIL import Image
from safetensors.numpy import save_file

import vggkeras
from vggkeras.data import decoding, sources


def photographs(side: int, count: int = 2) -> np.ndarray:
    """uint8 [count, side, side, 3]; real ones where TFDS_DATA_DIR has Imagenette."""
    if os.environ.get("TFDS_DATA_DIR"):
        split = sources.load_data("tfds:imagenette/160px-v2").split("validation")
        images = []
        for _, encoded, _ in split.examples():
            image = Image.fromarray(decoding.decode(encoded))
            images.append(np.asarray(image.resize((side, side), Image.Resampling.BILINEAR)))
            if len(images) == count:
                return np.stack(images)
    return np.stack([photo(seed, side, side) for seed in range(count)])


def scores(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Our network's class scores before soft-max, [N, classes]."""
    kernel, bias = model.get_layer("predictions").get_weights()
    hidden = keras.Model(model.input, model.get_layer("fc2_dropout").output)(images)
    return keras.ops.convert_to_numpy(hidden) @ kernel + bias


def assert_same_scores(model: keras.Model, images: np.ndarray, expected: np.ndarray) -> None:
    """Within 1e-4 of the largest score; the scores differ between images and between classes."""
    assert expected.std(axis=0).max() > 1e-3
    assert expected.std(axis=1).max() > 1e-2
    np.testing.assert_allclose(
        scores(model, images), expected, rtol=0, atol=1e-4 * np.abs(expected).max()
    )
    powers = np.exp(expected - expected.max(axis=1, keepdims=True))
    np.testing.assert_allclose(
        np.asarray(model(images)), powers / powers.sum(axis=1, keepdims=True), rtol=0, atol=1e-4
    )


def randomized(model: keras.Model, seed: int = 1) -> keras.Model:
    """Draw weights that keep a signal's size, biases and statistics too."""
    rng = np.random.default_rng(seed)

    def drawn(layer: keras.Layer, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) > 1:
            return rng.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape)
        return rng.uniform(0.5, 1.5, shape) if "bn" in layer.name else rng.normal(0, 0.1, shape)

    for layer in model.layers:
        layer.set_weights([drawn(layer, weight.shape) for weight in layer.weights])
    return model


def ours(
    arch: str = "D", side: int = 64, classes: int = 10, seed: int = 1, **options
) -> keras.Model:
    """A narrow network of `build()`."""
    options = {"width": 0.125, "fc_units": 24, **options}
    return randomized(vggkeras.build(arch, (side, side, 3), classes, **options), seed)


def write(path: str, tensors: dict[str, np.ndarray]) -> str:
    """A .safetensors file as torchvision's; returns the source's name."""
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, path)
    return f"torchvision:{path}"


def narrow_keras_twin(
    arch: str = "D", side: int = 64, classes: int = 10, top: bool = True
) -> keras.Model:
    """keras.applications' network with an eighth of its filters: the same layer names."""
    layers, counts = keras.layers, {"D": (2, 2, 3, 3, 3), "E": (2, 2, 4, 4, 4)}[arch]
    x = images = keras.Input((side, side, 3))
    for block, (count, filters) in enumerate(zip(counts, (8, 16, 32, 64, 64), strict=True), 1):
        for i in range(1, count + 1):
            name = f"block{block}_conv{i}"
            x = layers.Conv2D(filters, 3, padding="same", activation="relu", name=name)(x)
        x = layers.MaxPooling2D(2, name=f"block{block}_pool")(x)
    if top:
        x = layers.Flatten(name="flatten")(x)
        x = layers.Dense(24, activation="relu", name="fc1")(x)
        x = layers.Dense(24, activation="relu", name="fc2")(x)
        x = layers.Dense(classes, name="predictions")(x)
    return randomized(keras.Model(images, x))


def caffe_scores(net: keras.Model, images: np.ndarray) -> np.ndarray:
    """A network's answers with keras.applications' preprocessing."""
    return np.asarray(net(keras.applications.vgg16.preprocess_input(images.astype(np.float32))))


def save_legacy(net: keras.Model, path: Path, inside: str = "") -> Path:
    """The released files' layout; `inside` a group of it, as a whole model's .h5 has it."""
    import h5py
    from keras.src.legacy.saving import legacy_h5_format

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        group = file.create_group(inside) if inside else file
        legacy_h5_format.save_weights_to_hdf5_group(group, net)
    return path
