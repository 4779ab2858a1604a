"""A model -> an ONNX file, by way of a skeleton: the weights never pass through the converter.

Converting a network with its weights takes tens of gigabytes. Here tf2onnx converts a function of the image *and of
every weight*, a graph of a few kilobytes, and the weights are then put in as initializers, already in ONNX's order.
The graph has one Transpose, from the images' channels-last to the convolutions' channels-first: fc1's rows are
permuted to C, H, W order, which makes the second one needless.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import tensorflow as tf
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from vggkeras.errors import InputError

DEFAULT_OPSET = 18


def write(model: keras.Model, path: Path, about: dict[str, Any], opset: int | None = None) -> None:
    """Write what `to_saved_model.inference_model` made, checked by onnx.checker.

    Raises:
        InputError (a ValueError): weights of more than 2 GB, which one ONNX file cannot hold.
    """
    total = sum(weight.shape.num_elements() for weight in model.weights) * 4
    if total > 2**31 - 2**20:
        raise InputError(
            f"An ONNX file holds at most 2 GB; the weights take {total / 1e9:.1f} GB: reduce width or fc_units."
        )
    proto = _skeleton(model, opset or DEFAULT_OPSET)
    graph = proto.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    constants |= {f"weight{i}": weight.numpy() for i, weight in enumerate(_weights(model))}
    _fold_constants(graph, constants)
    if any(layer.name == "flatten" for layer in model.layers):  # a dense network has none
        _drop_second_transpose(graph, constants, model.get_layer("flatten").input.shape[1:])

    used = {name for node in graph.node for name in node.input}
    del graph.initializer[:], graph.input[1:], graph.value_info[:]
    for name in sorted(used & constants.keys()):
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(constants.pop(name)), name))
    for value in (graph.input[0], graph.output[0]):
        for dim, name in zip(value.type.tensor_type.shape.dim, ("batch", "height", "width"), strict=False):
            if not dim.dim_value:
                dim.dim_param = name
    graph.name = model.name
    proto.producer_name, proto.producer_version = "vggkeras", about["versions"]["vggkeras"]
    onnx.helper.set_model_props(proto, {"labels": json.dumps(about["class_names"]), "vggkeras": json.dumps(about)})
    onnx.save(proto, str(path))
    del proto, graph
    onnx.checker.check_model(str(path), full_check=True)


def _weights(model: keras.Model) -> list:
    return [*model.trainable_variables, *model.non_trainable_variables]


def _skeleton(model: keras.Model, opset: int) -> onnx.ModelProto:
    import tf2onnx
    from keras.src.export.tf2onnx_lib import patch_tf2onnx

    trainable = len(model.trainable_variables)

    def network(images, *weights):
        return model.stateless_call(weights[:trainable], weights[trainable:], images, training=False)[0]

    signature = [tf.TensorSpec([None, *model.input_shape[1:]], tf.uint8, name="images")]
    signature += [tf.TensorSpec(w.shape, tf.float32, name=f"weight{i}") for i, w in enumerate(_weights(model))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the patch for NumPy 2 looks for np.object
        patch_tf2onnx()
    return tf2onnx.convert.from_function(tf.function(network), signature, opset=opset)[0]


def _fold_constants(graph: onnx.GraphProto, constants: dict[str, np.ndarray]) -> None:
    """Compute the nodes that depend on weights alone: transposed kernels, reshaped biases."""
    kept = []
    for node in graph.node:
        if all(name in constants for name in node.input):
            feeds = {name: constants[name] for name in node.input}
            outputs: Any = ReferenceEvaluator(node).run(None, feeds)
            constants[node.output[0]] = outputs[0]
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


def _drop_second_transpose(
    graph: onnx.GraphProto, constants: dict[str, np.ndarray], map_shape: tuple[int, int, int]
) -> None:
    """Flatten in C, H, W order: remove the Transpose before the Reshape, and permute fc1's rows instead."""
    makers = {output: node for node in graph.node for output in node.output}
    readers = {name: node for node in graph.node for name in node.input}
    (reshape,) = (n for n in graph.node if n.op_type == "Reshape" and readers[n.output[0]].op_type == "MatMul")
    transpose, matmul = makers[reshape.input[0]], readers[reshape.output[0]]
    if tuple(map_shape[:2]) == (1, 1) and transpose.op_type != "Transpose":
        return  # one pixel is in any order, and tf2onnx has seen it
    perm = list(transpose.attribute[0].ints) if transpose.op_type == "Transpose" else None
    if perm != [0, 2, 3, 1]:
        raise RuntimeError(f"unexpected graph before the flattening: {transpose.op_type} {perm}")
    h, w, c = map_shape
    kernel = constants[matmul.input[1]]  # [h * w * c, units]
    constants[matmul.input[1]] = kernel.reshape(h, w, c, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
    reshape.input[0] = transpose.input[0]
    graph.node.remove(transpose)
