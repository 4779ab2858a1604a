"""The layers of an inference model as the operations that ONNX and TFLite have.

Both exporters walk this one list. A ReLU belongs to the operation before it, and a tensor has the
name of the layer whose output it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import keras
import numpy as np
from keras import layers

from vggkeras.errors import InputError
from vggkeras.layers import LRN

Kind = Literal["center", "lrn", "conv", "pool", "flatten", "dense", "mean", "softmax"]
WEIGHTED = ("conv", "dense")
BYTES = {"float32": 4, "float16": 2, "int8": 1}
LARGEST_FILE = 2**31 - 2**20  # bytes: what a protocol buffer and a flatbuffer can hold
# Layers that are an operation by themselves; the others need a look at their activation or name.
KINDS: dict[type, Kind] = {
    layers.Rescaling: "center",
    layers.Conv2D: "conv",
    layers.Dense: "dense",
    LRN: "lrn",
    layers.MaxPooling2D: "pool",
    layers.GlobalAveragePooling2D: "mean",
    layers.Softmax: "softmax",
}


@dataclass(frozen=True)
class Operation:
    """One operation of the exported graph."""

    kind: Kind
    name: str  # of its output: the layer's name
    layer: Any  # the Keras layer that has the weights and the options
    shape: tuple[int | None, ...]  # of its output, channels last: [None, H, W, C] or [None, units]
    input_shape: tuple[int | None, ...]
    relu: bool = False
    softmax: bool = False  # of a dense layer, which then is followed by a softmax


@dataclass(frozen=True)
class Constant:
    """An array of the exported file, made when it is written: so one is in memory at a time."""

    shape: tuple[int, ...]
    dtype: np.dtype
    values: Callable[[], np.ndarray]

    @classmethod
    def of(cls, array: np.ndarray) -> Constant:
        """Return a constant that is in memory already."""
        return cls(array.shape, array.dtype, lambda: array)

    @property
    def nbytes(self) -> int:
        """Return its size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def content(self) -> np.ndarray:
        """Return the values' bytes in C order: uint8 `[nbytes]`."""
        return np.ascontiguousarray(self.values(), self.dtype).reshape(-1).view(np.uint8)


def kernel_of(layer: Any) -> np.ndarray:
    """Return a layer's kernel, float32, in Keras' order: `[h, w, in, out]` or `[in, out]`."""
    # TensorFlow's own memory: Keras would copy it.
    return np.asarray(layer.weights[0].value.read_value())


def bias_of(layer: Any) -> np.ndarray:
    """Return a layer's bias, float32 `[out]`."""
    return np.asarray(layer.weights[1].value.read_value())


def operations(model: keras.Model) -> list[Operation]:
    """Return the operations of what `to_saved_model.inference_model` made, in order.

    Raises:
        TypeError: a layer that `vggkeras.build()` does not use.
    """
    chain: list[Operation] = []
    for layer in model.layers[1:]:
        if isinstance(layer, layers.ReLU):
            chain[-1] = replace(chain[-1], relu=True)
            continue
        kind = next((kind for make, kind in KINDS.items() if isinstance(layer, make)), None)
        if layer.name == "flatten":
            kind = "flatten"
        if kind is None:
            raise TypeError(f"no operation for layer {layer.name} of class {type(layer).__name__}")
        activation = getattr(getattr(layer, "activation", None), "__name__", "linear")
        relu = activation == "relu" and kind in WEIGHTED
        softmax = activation == "softmax" and kind == "dense"
        shape, before = layer.output.shape, layer.input.shape
        chain.append(Operation(kind, layer.name, layer, shape, before, relu, softmax))
    return chain


def check_size(model: keras.Model, precision: str, kind: str) -> int:
    """Return how many bytes the weights take at a precision.

    Raises:
        InputError (a ValueError): they are more than one file can hold.
    """
    total = sum(math.prod(weight.shape) for weight in model.weights) * BYTES[precision]
    if total > LARGEST_FILE:
        raise InputError(
            f"One {kind} file holds at most 2 GB; the weights take {total / 1e9:.1f} GB: "
            "reduce width or fc_units."
        )
    return total


def output_name(model: keras.Model) -> str:
    """Return the name of the one output of what `to_saved_model.inference_model` made."""
    (name,) = model.output
    return name
