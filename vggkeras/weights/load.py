"""Load trained weights: all of a network, or what a new one can start from (section 3.1).

python -m vggkeras train --arch D --init-from runs/A
python -m vggkeras convert keras:vgg16 vgg16.keras
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from vggkeras import models
from vggkeras.configs import FC
from vggkeras.errors import InputError
from vggkeras.weights.identify import Source, open_source

FIRST_CONVOLUTIONS = 4  # that a deeper network takes from a shallower one, with the FC layers


def weighted(model: keras.Model) -> dict[str, Any]:
    """Return layer name -> layer, of those with weights."""
    return {layer.name: layer for layer in model.layers if layer.weights}


def _shapes(layer: Any) -> list[tuple[int, ...]]:
    return [tuple(weight.shape) for weight in layer.weights]


def _fill(layer: Any, weights: list[np.ndarray]) -> None:
    """Assign a layer's weights. TensorFlow takes their memory over, or would copy it twice."""
    tensors: list[Any] = weights
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tensors = [tf.experimental.dlpack.from_dlpack(w.__dlpack__()) for w in weights]
    layer.set_weights(tensors)


def _opened(source: Source | str | os.PathLike) -> Source:
    return source if isinstance(source, Source) else open_source(source)


def _kernel_map(input_shape: Sequence[int], kernel: Sequence[int]) -> tuple[int, int, int]:
    """Return the feature map (h, w, c) that fc1 reads in a network for images of a shape."""
    h, w = input_shape[0] // 32, input_shape[1] // 32
    return h, w, kernel[0] // (h * w)


# ---- start a new network ------------------------------------------------------------------------


def init_from(
    model: keras.Model, source: Source | str | os.PathLike, class_names: Sequence[str]
) -> dict[str, str | None]:
    """Copy trained weights into a new network, layer by layer.

    - The same configuration: every layer.
    - A shallower one: its first four convolutions (with their batch normalization) and its FC
      layers, as the paper did; the rest keeps its initialization.
    - With other classes, or boxes instead: not the last layer, `predictions`.
    - With images of another size, so that fc1 covers another map, or from a source without FC
      layers: none of the FC layers.

    The mean that `model` subtracts stays as it is. `explain` says in words what was not copied.

    Args:
        model: of `build()`.
        source: of `open_source()`, or what that takes.
        class_names: the new model's classes, in order.

    Returns:
        Layer name -> where its weights came from, or None where they stay; in the network's order.

    Raises:
        InputError (a ValueError): see `open_source`; a deeper or another kind of network; a layer
            whose shapes differ.
    """
    source = _opened(source)
    layers = weighted(model)
    taken = _taken(model, source, class_names)
    for name in taken:
        shapes = _shapes(layers[name])
        if shapes != source.shapes[name]:
            flag = "--fc-units" if name.startswith("fc") else "--width or configuration"
            raise InputError(
                f"--init-from {source.name}: layer {name} has shapes {source.shapes[name]} there "
                f"and {shapes} here (the {flag} differ): give this network the other's sizes."
            )
    for name in taken:
        _fill(layers[name], source.read(name))
    return {name: source.origin(name) if name in taken else None for name in layers}


def _taken(model: keras.Model, source: Source, class_names: Sequence[str]) -> list[str]:
    """Return the layers whose weights a network takes from a source, in the source's order."""
    layers = weighted(model)
    batch_norm = any("_bn" in name for name in layers)
    last = {"predictions"} if "boxes" in layers else set()  # which boxes take the place of
    surplus = [name for name in source.shapes if name not in {*layers, *last}]
    if surplus:
        raise InputError(
            f"--init-from {source.name} is {source.network} with a layer {surplus[0]!r} that "
            f"{model.name} does not have: start from the same configuration or a shallower one, "
            "with batch normalization in both or in neither."
        )
    if batch_norm and not source.batch_norm:
        raise InputError(
            f"--init-from {source.name} is {source.network} without batch normalization, which "
            f"{model.name} has: start from a run with --batch-norm, or train without it."
        )
    taken = [name for name in source.shapes if name in layers]
    convolutions = [name for name in taken if "_conv" in name]
    if len(convolutions) < sum("_conv" in name for name in layers):
        first = convolutions[:FIRST_CONVOLUTIONS]
        kept = {*first, *(name.replace("conv", "bn") for name in first), *FC}
        taken = [name for name in taken if name in kept]
    if "fc1" in taken and _other_map(model, source):
        taken = [name for name in taken if name not in FC]
    if list(source.card.class_names) != list(class_names):
        taken = [name for name in taken if name != "predictions"]
    return taken


def _other_map(model: keras.Model, source: Source) -> bool:
    """Return whether the two fc1 differ only in the size of the map that they cover."""
    (kernel, bias), (source_kernel, source_bias) = (
        _shapes(model.get_layer("fc1")),
        source.shapes["fc1"],
    )
    here = _kernel_map(model.input_shape[1:], kernel)
    there = _kernel_map(source.input_shape, source_kernel)
    return here[:2] != there[:2] and here[2] == there[2] and bias == source_bias


def explain(copied: dict[str, str | None], source: Source, model: keras.Model) -> list[str]:
    """Return what `init_from` did not copy and why, a sentence each."""
    fresh = [name for name, origin in copied.items() if origin is None]
    middle = [name for name in fresh if name not in (*FC, "boxes")]
    sentences = []
    if middle:
        listed = ", ".join(middle[:3]) + (" …" if len(middle) > 3 else "")
        sentences.append(
            f"{len(middle)} layers start anew ({listed}): {source.name} is a shallower network, of "
            f"which the first {FIRST_CONVOLUTIONS} convolutions are taken"
        )
    if "fc1" in fresh and "fc1" not in source.shapes:
        anew = ", ".join(name for name in FC if name in fresh)
        sentences.append(f"{anew} start anew: {source.name} has no FC layers")
    elif "fc1" in fresh:
        kernel = _shapes(model.get_layer("fc1"))[0]
        there = _kernel_map(source.input_shape, source.shapes["fc1"][0])
        here = _kernel_map(model.input_shape[1:], kernel)
        sentences.append(
            f"fc1 starts anew: its kernel covers {' x '.join(map(str, there))} there and "
            f"{' x '.join(map(str, here))} here; so do fc2 and predictions, which read it"
        )
    elif "boxes" in fresh:
        sentences.append(f"boxes starts anew: {source.name} is a classifier")
    elif "predictions" in fresh:
        classes = model.output_shape[-1]
        if source.classes is None:
            reason = f"{source.name} has none"
        elif source.classes != classes:
            reason = f"{source.classes} classes there, {classes} here"
        else:
            reason = f"the {classes} classes there have other names, or none"
        sentences.append(f"predictions starts anew: {reason}")
    return sentences


# ---- take all of a network ----------------------------------------------------------------------


def load_weights(
    model: keras.Model, source: Source | str | os.PathLike, *, head: bool = True
) -> dict[str, str]:
    """Fill a network with all of a source's weights, so that it gives the source's own answers.

    Every tensor of the source is used exactly once and every weight of the model filled exactly
    once. The model's first layer then subtracts the source's mean RGB, and functions that it had
    traced (predict, evaluate, fit) are traced anew.

    Args:
        model: of `build()`, of the same configuration and sizes as the source.
        source: of `open_source()`, or what that takes.
        head: False leaves `predictions` as it is, and the other FC layers too where the source has
            none.

    Returns:
        Layer name -> where its weights came from.

    Raises:
        InputError (a ValueError): see `open_source`; what is missing and what is left over, by
            name; a layer whose shapes differ; other class counts, or a source without FC layers,
            with head=True. The model is then as it was.
    """
    source = _opened(source)
    layers = weighted(model)
    kept = [n for n in FC if not head and (n == "predictions" or n not in source.shapes)]
    filled = [name for name in layers if name not in kept]
    _check_layers(model, source, filled, [name for name in source.shapes if name not in kept])
    for name in filled:
        _check_shapes(name, _shapes(layers[name]), source)
    if not any(layer.name == "mean_rgb" for layer in model.layers):
        raise InputError(
            f"load_weights expects a model of vggkeras.build(); {model.name!r} has no layer "
            "mean_rgb: build the network with it."
        )
    for name in filled:
        _fill(layers[name], source.read(name))
    model.get_layer("mean_rgb").offset = [-value for value in source.mean_rgb]
    # They hold the mean that they were traced with.
    model.predict_function = model.test_function = model.train_function = None
    return {name: source.origin(name) for name in filled}


def _check_layers(
    model: keras.Model, source: Source, expected: list[str], received: list[str]
) -> None:
    """Raise InputError where the layers of a model and of a source are not the same."""
    missing = [name for name in expected if name not in received]
    unexpected = [name for name in received if name not in expected]
    if missing and missing == [n for n in FC if n not in source.shapes] and not unexpected:
        raise InputError(
            f"{source.name} has no {', '.join(missing)}: pass head=False to fill the other layers "
            "alone, and train these."
        )
    differences = [
        f"{len(names)} {what}, first {', '.join(names[:3])}"
        for what, names in (
            ("layers of the model are not in it", missing),
            ("of its layers are not in the model", unexpected),
        )
        if names
    ]
    if any(layer.name == "lrn" for layer in model.layers) != (source.arch == "A-LRN"):
        differences.append("one of them has local response normalization")
    if differences:
        norm = " with batch normalization" if source.batch_norm else ""
        raise InputError(
            f"{source.name} is {source.network}{norm} and the model {model.name}: "
            f"{'; '.join(differences)}. Build the same configuration, or use "
            "vggkeras.pretrained(source)."
        )


def _check_shapes(name: str, shapes: list[tuple[int, ...]], source: Source) -> None:
    """Raise InputError where a layer has other shapes in the source than in the model."""
    received = source.shapes[name]
    if shapes == received:
        return
    if name == "predictions" and shapes[0][0] == received[0][0]:
        raise InputError(
            f"{source.name} has {source.classes} classes and the model {shapes[1][0]}: build it "
            f"with classes={source.classes}, or pass head=False to keep its own last layer."
        )
    raise InputError(
        f"{source.name}: layer {name} has shapes {received} there and {shapes} in the model: build "
        f"it with input_shape={source.input_shape}, width={source.width:g}, "
        f"fc_units={source.fc_units}."
    )


def pretrained(source: Source | str | os.PathLike) -> keras.Model:
    """Return the network that weights are of, filled with them.

    It takes images 0-255, RGB, and gives the source's own answers.

    Args:
        source: of `open_source()`, or what that takes; with its FC layers.

    Raises:
        InputError (a ValueError): see `open_source`; a source without FC layers.
    """
    source = _opened(source)
    if source.fc_units is None or source.classes is None:
        lacking = ", ".join(name for name in FC if name not in source.shapes)
        raise InputError(
            f"{source.name} has no {lacking}, so it classifies nothing: start a training from it "
            f"with --init-from {source.name}, or give a file with the FC layers."
        )
    model = models.build(
        source.arch,
        source.input_shape,
        source.classes,
        batch_norm=source.batch_norm,
        width=source.width,
        fc_units=source.fc_units,
        mean_rgb=source.mean_rgb,
        init="zeros",
    )
    load_weights(model, source)
    return model
