"""What every layer of a network computes, and whether its numbers fit into a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from vggkeras.errors import InputError

FLOAT16_MAX = 65504.0
BATCH = 4  # images at once: all activations of configuration D at 224 px take 60 MB each


@dataclass(frozen=True)
class Tensors:
    """The tensors of a network that int8 measures, as Keras' symbolic ones, by layer."""

    images: Any
    outputs: dict[str, Any]  # after the ReLU: of mean_rgb, lrn, and kernels but the last
    inputs: dict[str, Any]  # of every layer with a kernel


def tensors_of(graph: keras.Model) -> Tensors:
    """Return the tensors of what `to_saved_model.inference_model` made, in the network's order."""
    images = x = keras.Input(graph.input_shape[1:], dtype="uint8")
    outputs: dict[str, Any] = {}
    inputs: dict[str, Any] = {}
    for layer in graph.layers[1:]:  # a chain, whose layers belong to another model as well
        if layer.weights:
            inputs[layer.name] = x
        x = layer(x)
        if layer.name in ("mean_rgb", "lrn") or (layer.weights and layer.name != "predictions"):
            outputs[layer.name] = x
        elif isinstance(layer, layers.ReLU):
            outputs[list(outputs)[-1]] = x
    return Tensors(images, outputs, inputs)


def activations(graph: keras.Model, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return every layer's output after the ReLU, and the class scores of `predictions`.

    Args:
        graph: what `to_saved_model.inference_model` made.
        images: uint8 `[N, H, W, C]`.
    """
    tensors = tensors_of(graph)
    network = keras.Model(tensors.images, tensors.outputs)
    values = {
        name: ops.convert_to_numpy(value) for name, value in network(images, training=False).items()
    }
    last = [layer for layer in graph.layers if layer.weights][-1]
    if last.name == "predictions":
        kernel, bias = (ops.convert_to_numpy(weight) for weight in last.weights)
        values["predictions"] = linear(last, kernel, bias, values["fc2"])
    return values


def linear(layer: layers.Layer, kernel: np.ndarray, bias: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return what a layer gives before its activation, with another kernel and bias."""
    if isinstance(layer, layers.Dense):
        return x @ kernel + bias
    return ops.convert_to_numpy(ops.conv(x, kernel, padding=layer.padding)) + bias


def check_finite(graph: keras.Model, images: np.ndarray | None = None) -> None:
    """Check that a network's weights and, given images, its activations are finite.

    Raises:
        InputError (a ValueError): they are not; it names the first such layer.
    """
    for layer in graph.layers:
        for weight in layer.weights:
            if not np.isfinite(ops.convert_to_numpy(weight)).all():
                raise InputError(
                    f"Layer {layer.name} has NaN or infinite numbers in its {weight.name}: "
                    "expected a trained network; train it again, or export an earlier one."
                )
    if images is None:
        return
    for name, values in activations(graph, images).items():
        if not np.isfinite(values).all():
            raise InputError(
                f"Layer {name} gives NaN or infinite numbers: its weights are finite but too "
                "large; train again with a lower learning rate, or export an earlier network."
            )


def check_float16(graph: keras.Model, images: np.ndarray) -> None:
    """Check that a network's weights and its activations fit into float16.

    Raises:
        InputError (a ValueError): they do not; it names the first such layer.
    """
    for layer in graph.layers:
        for weight in layer.weights:
            if (largest := np.abs(ops.convert_to_numpy(weight)).max()) > FLOAT16_MAX:
                raise InputError(
                    f"Layer {layer.name} does not fit float16: expected weights up to "
                    f"{FLOAT16_MAX:g}; its {weight.name} reaches {largest:.4g}: export it as "
                    "float32 or int8."
                )
    for start in range(0, len(images), BATCH):
        for name, values in activations(graph, images[start : start + BATCH]).items():
            if (largest := np.abs(values).max()) > FLOAT16_MAX:
                raise InputError(
                    f"Layer {name} does not fit float16: expected outputs up to {FLOAT16_MAX:g}; "
                    f"they reach {largest:.4g}: export it as float32 or int8."
                )
