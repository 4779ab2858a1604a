"""A model -> a TFLite file with built-in ops alone, by way of a skeleton: the weights never pass through the converter.

TensorFlow's converter holds a large network several times over, and never gives the memory back. Here a child process
converts the same network with a handful of filters a layer; the real weights and channel counts are then put into the
flatbuffer it made. Parity proves the result, as it proves every export.

    python -m export.to_tflite SAVED_MODEL OUT.tflite     (what the child process runs)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from vggkeras import files
from vggkeras.errors import InputError

SKELETON_UNITS = 8  # filters and units of the network that is converted
FILE_IDENTIFIER = b"TFL3"


def write(model: Any, path: Path, about: dict[str, Any], opset: int | None = None) -> None:
    """Write what `to_saved_model.inference_model` made.

    Raises:
        InputError (a ValueError): weights of more than 2 GB, which a flatbuffer cannot hold.
        OSError: the file cannot be written.
    """
    total = sum(weight.shape.num_elements() for weight in model.weights) * 4
    if total > 2**31 - 2**20:
        raise InputError(
            f"A TFLite file holds at most 2 GB; the weights take {total / 1e9:.1f} GB: reduce width or fc_units."
        )
    graph = schema.ModelT.InitFromPackedBuf(_converted_skeleton(model, about, path.parent))
    shape = model.input_shape[1:]
    _put_weights(graph, model, about["input"]["smallest"] if None in shape else shape)
    builder = _packed(graph, total)
    with open(path, "wb") as file:
        file.write(memoryview(builder.Bytes)[builder.Head() :])
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("labels.txt", "\n".join(about["class_names"]) + "\n")
        archive.writestr("vggkeras.json", json.dumps(about))


def _converted_skeleton(model: Any, about: dict[str, Any], folder: Path) -> bytes:
    """The TFLite file of the same network with SKELETON_UNITS filters and units in every hidden layer."""
    import keras

    from export import to_saved_model

    images = keras.Input(model.input_shape[1:], dtype="uint8", name="images")
    x, random = images, np.random.default_rng(0)
    for layer in model.layers[1:]:
        config = layer.get_config()
        if layer.name == "flatten":
            config["units"] = int(np.prod(layer.input.shape[1:3])) * SKELETON_UNITS
        elif layer.weights and layer.name != "predictions":
            config["filters" if "filters" in config else "units"] = SKELETON_UNITS
        copy = layer.__class__.from_config(config)
        x = copy(x)
        # No two weights alike and none zero: the converter shares equal ones and drops zero biases.
        copy.set_weights([random.uniform(0.1, 1.0, weight.shape) for weight in copy.weights])
    skeleton = keras.Model(images, {"probabilities": x})
    with tempfile.TemporaryDirectory(dir=folder, prefix=f"{files.PARTIAL}{os.getpid()}-skeleton-") as temporary:
        saved, converted = Path(temporary, "saved_model"), Path(temporary, "skeleton.tflite")
        to_saved_model.write(skeleton, saved, about)
        child = subprocess.run(
            [sys.executable, "-m", "export.to_tflite", str(saved), str(converted)], capture_output=True, text=True
        )
        if child.returncode != 0:
            raise RuntimeError(f"TensorFlow's TFLite converter failed: {child.stderr.strip()[-1000:]}")
        return converted.read_bytes()


def _put_weights(graph: schema.ModelT, model: Any, smallest: Sequence[int]) -> None:
    """Put the model's weights, in TFLite's order of axes, and its channel counts into a converted skeleton."""
    (subgraph,) = graph.subgraphs
    tensors = subgraph.tensors
    layers = iter([layer for layer in model.layers if layer.weights])

    def fill(index: int, values: np.ndarray) -> None:
        tensor = tensors[index]
        if len(tensor.shape) != values.ndim:
            raise RuntimeError(f"unexpected weight {tensor.name!r} of shape {tensor.shape} for {values.shape}")
        tensor.shape = np.array(values.shape, np.int32)
        graph.buffers[tensor.buffer].data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)

    channels = tensors[subgraph.inputs[0]].shape[-1]
    for operator in subgraph.operators:
        code = graph.operatorCodes[operator.opcodeIndex]
        kind = max(code.builtinCode, code.deprecatedBuiltinCode)
        if kind in (schema.BuiltinOperator.CONV_2D, schema.BuiltinOperator.FULLY_CONNECTED):
            kernel, bias = (weight.numpy() for weight in next(layers).weights)
            # [h, w, in, out] -> [out, h, w, in], and [in, out] -> [out, in]
            fill(operator.inputs[1], np.moveaxis(kernel, -1, 0))
            fill(operator.inputs[2], bias)
            channels = kernel.shape[-1]
        elif kind == schema.BuiltinOperator.RESHAPE:
            channels = model.get_layer("flatten").output.shape[-1]
            graph.buffers[tensors[operator.inputs[1]].buffer].data = np.array([-1, channels], np.int32).view(np.uint8)
            if operator.builtinOptions is not None:
                operator.builtinOptions.newShape = np.array([-1, channels], np.int32)
        for output in operator.outputs:
            for field in ("shape", "shapeSignature"):
                shape = getattr(tensors[output], field)
                if shape is not None:
                    setattr(tensors[output], field, np.array([*shape[:-1], channels], np.int32))
    if (left := next(layers, None)) is not None:
        raise RuntimeError(f"the converted skeleton has no place for layer {left.name}")
    images = tensors[subgraph.inputs[0]]
    images.name, tensors[subgraph.outputs[0]].name = "images", "probabilities"
    images.shape = np.array([1, *smallest], np.int32)  # what an interpreter plans for first: a dense network's are ones


class _AlignedBuffer(schema.BufferT):
    """A buffer on a 16-byte boundary, as TFLite's schema demands and the generated code forgets."""

    def Pack(self, builder):  # the generated code's name
        data = self.data if self.data is not None else np.empty(0, np.uint8)
        builder.StartVector(1, len(data), 16)
        builder.head -= len(data)
        builder.Bytes[builder.head : builder.head + len(data)] = memoryview(data)
        vector = builder.EndVector()
        schema.BufferStart(builder)
        if len(data):
            schema.BufferAddData(builder, vector)
        return schema.BufferEnd(builder)


def _packed(graph: schema.ModelT, weights: int):
    import flatbuffers

    for buffer in graph.buffers:
        buffer.__class__ = _AlignedBuffer
    builder = flatbuffers.Builder(weights + (1 << 20))  # large enough from the start, for it grows by doubling
    builder.Finish(graph.Pack(builder), FILE_IDENTIFIER)
    return builder


def _convert(saved_model: str, path: str) -> None:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(saved_model)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]  # anything else is an error
    Path(path).write_bytes(converter.convert())


if __name__ == "__main__":
    _convert(*sys.argv[1:])
