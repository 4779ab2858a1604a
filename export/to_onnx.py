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

from export.quantize import Plan, kernel_steps
from vggkeras.errors import InputError

DEFAULT_OPSET = 18
BYTES = {"float32": 4, "float16": 2, "int8": 1}


def write(
    model: keras.Model,
    path: Path,
    about: dict[str, Any],
    opset: int | None = None,
    plan: Plan | None = None,
) -> None:
    """Write what `to_saved_model.inference_model` made, at `about`'s precision, checked by onnx.checker.

    The tensors go by the layers' names: `block1_conv1` is that layer's output after the ReLU, `predictions` the scores
    before soft-max. Every other runtime may ignore the metadata.

    Args:
        plan: of `quantize.calibrate`, for int8.

    Raises:
        InputError (a ValueError): weights of more than 2 GB, which one ONNX file cannot hold.
    """
    precision = about.get("precision", "float32")
    total = sum(weight.shape.num_elements() for weight in model.weights) * BYTES[precision]
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
    _fuse_bias(graph, constants)
    _name(graph, constants, model)
    if precision == "float16":
        _to_float16(graph, constants)
    elif precision == "int8":
        assert plan is not None
        _to_int8(graph, constants, plan)

    used = {name for node in graph.node for name in node.input}
    del graph.initializer[:], graph.input[1:], graph.value_info[:]
    for name in sorted(used & constants.keys()):
        graph.initializer.append(
            numpy_helper.from_array(np.ascontiguousarray(constants.pop(name)), name)
        )
    for value in (graph.input[0], graph.output[0]):
        for dim, name in zip(
            value.type.tensor_type.shape.dim, ("batch", "height", "width"), strict=False
        ):
            if not dim.dim_value:
                dim.dim_param = name
    graph.name, graph.doc_string = (
        model.name,
        "",
    )  # the converter's has a number that another process need not give
    proto.producer_name, proto.producer_version = "vggkeras", about["versions"]["vggkeras"]
    labels = (
        {"labels": json.dumps(about["class_names"])} if about["class_names"] else {}
    )  # features have none
    onnx.helper.set_model_props(proto, {**labels, "vggkeras": json.dumps(about)})
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
        return model.stateless_call(
            weights[:trainable], weights[trainable:], images, training=False
        )[0]

    signature = [tf.TensorSpec([None, *model.input_shape[1:]], tf.uint8, name="images")]
    signature += [
        tf.TensorSpec(w.shape, tf.float32, name=f"weight{i}") for i, w in enumerate(_weights(model))
    ]
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
    (reshape,) = (
        n for n in graph.node if n.op_type == "Reshape" and readers[n.output[0]].op_type == "MatMul"
    )
    transpose, matmul = makers[reshape.input[0]], readers[reshape.output[0]]
    if tuple(map_shape[:2]) == (1, 1) and transpose.op_type != "Transpose":
        return  # one pixel is in any order, and tf2onnx has seen it
    perm = list(transpose.attribute[0].ints) if transpose.op_type == "Transpose" else None
    if perm != [0, 2, 3, 1]:
        raise RuntimeError(f"unexpected graph before the flattening: {transpose.op_type} {perm}")
    h, w, c = map_shape
    kernel = constants[matmul.input[1]]  # [h * w * c, units]
    constants[matmul.input[1]] = (
        kernel.reshape(h, w, c, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
    )
    reshape.input[0] = transpose.input[0]
    graph.node.remove(transpose)


def _fuse_bias(graph: onnx.GraphProto, constants: dict[str, np.ndarray]) -> None:
    """MatMul and Add are one Gemm; so are Conv and Add, which a convolution of one filter becomes, one Conv."""
    adds = {node.input[0]: node for node in graph.node if node.op_type == "Add"}
    for node in list(graph.node):
        if node.op_type == "MatMul" or (node.op_type == "Conv" and len(node.input) == 2):
            add = adds[node.output[0]]
            constants[add.input[1]] = constants[add.input[1]].reshape(-1)
            node.op_type = node.op_type.replace("MatMul", "Gemm")
            node.input.append(add.input[1])
            node.output[0] = add.output[0]
            graph.node.remove(add)


WEIGHTED = ("Conv", "Gemm")


def _name(graph: onnx.GraphProto, constants: dict[str, np.ndarray], model: keras.Model) -> None:
    """Call nodes, weights and tensors by the layers they come from."""
    weighted = iter([layer.name for layer in model.layers if layer.weights])
    pools = iter(
        [layer.name for layer in model.layers if isinstance(layer, keras.layers.MaxPooling2D)]
    )
    others = {"Sub": "mean_rgb", "LRN": "lrn", "Reshape": "flatten", "Softmax": "softmax"}
    layer, renamed, seen = "", dict[str, str](), set()
    for i, node in enumerate(graph.node):
        kind = node.op_type
        if kind in WEIGHTED:
            layer = next(weighted)
            for place, name in enumerate((f"{layer}.kernel", f"{layer}.bias"), start=1):
                constants[name] = constants.pop(node.input[place])
                node.input[place] = name
        elif kind == "Sub":
            constants["mean_rgb.mean"] = constants.pop(node.input[1])
            node.input[1] = "mean_rgb.mean"
        for place, name in enumerate(node.input):
            if (
                name in constants and "." not in name
            ):  # a shape, an axis, by a name that counts what came before
                node.input[place] = f"{kind.lower()}{i}.constant{place}"
                constants[node.input[place]] = constants[name]  # which another node may share
        if kind in WEIGHTED or (kind == "Relu" and layer):
            node.name = f"{layer}.{kind.lower()}"
            followed = i + 1 < len(graph.node) and graph.node[i + 1].op_type == "Relu"
            tensor = node.name if followed else layer
        else:
            tensor = next(pools) if kind == "MaxPool" else others.get(kind, kind.lower())
            while tensor in seen:  # a dense network reshapes more than once
                tensor += "_"
            seen.add(tensor)
            node.name = tensor
        for j, name in enumerate(node.input):
            node.input[j] = renamed.get(name, name)
        if node.output[0] != graph.output[0].name:
            renamed[node.output[0]] = tensor
            node.output[0] = tensor


def _to_float16(graph: onnx.GraphProto, constants: dict[str, np.ndarray]) -> None:
    """Weights and computation in float16, but for centring, LRN and soft-max, which need float32's range or digits."""
    nodes: list[onnx.NodeProto] = []

    def cast(tensor: str, to: int) -> str:
        name = f"{tensor}.float{'16' if to == onnx.TensorProto.FLOAT16 else '32'}"
        nodes.append(onnx.helper.make_node("Cast", [tensor], [name], name, to=to))
        return name

    half, renamed = False, dict[str, str]()
    for node in graph.node:
        kind = node.op_type
        node.input[:] = [renamed.get(name, name) for name in node.input]
        wants = {"LRN": False, "Softmax": False}.get(kind, half or kind in WEIGHTED)
        if kind not in ("Cast", "Sub") and wants != half:
            node.input[0] = cast(
                node.input[0], onnx.TensorProto.FLOAT16 if wants else onnx.TensorProto.FLOAT
            )
            half = wants
        for name in node.input:
            if half and name in constants and constants[name].dtype == np.float32:
                constants[name] = constants[name].astype(np.float16)
        nodes.append(node)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(nodes)


def _to_int8(graph: onnx.GraphProto, constants: dict[str, np.ndarray], plan: Plan) -> None:
    """QuantizeLinear and DequantizeLinear around what computes in int8: S8 kernels, a scale a filter; U8 activations.

    A runtime that knows the pattern computes in int8 (ONNX Runtime's QLinearConv and QGemm); any other gives the same
    answers in float.
    """
    nodes: list[onnx.NodeProto] = []
    add = onnx.helper.make_node

    def in_steps(tensor: str, site: str) -> str:
        """The tensor, counted in the site's steps and back."""
        scale, zero = f"{site}.scale", f"{site}.zero"
        constants[scale] = np.array(plan.steps[site].scale, np.float32)
        constants[zero] = np.array(plan.steps[site].zero, np.uint8)
        nodes.append(
            add("QuantizeLinear", [tensor, scale, zero], [f"{tensor}.uint8"], f"{tensor}.quantize")
        )
        nodes.append(
            add(
                "DequantizeLinear",
                [f"{tensor}.uint8", scale, zero],
                [f"{tensor}.steps"],
                f"{tensor}.steps",
            )
        )
        return f"{tensor}.steps"

    def kernel(layer: str, site: str, axis: int) -> list[str]:
        """The names of a layer's dequantized kernel and bias."""
        whole, bias = constants.pop(f"{layer}.kernel"), constants.pop(f"{layer}.bias")
        steps, scales, biases = kernel_steps(
            np.moveaxis(whole, axis, -1), bias, plan.steps[site].scale
        )
        del whole
        constants[f"{layer}.kernel.int8"] = np.moveaxis(steps, -1, axis)
        constants[f"{layer}.bias.int32"] = biases
        constants[f"{layer}.kernel.scale"] = scales
        constants[f"{layer}.bias.scale"] = scales * np.float32(plan.steps[site].scale)
        constants[f"{layer}.kernel.zero"] = np.zeros(len(scales), np.int8)
        for name, kind, at in (("kernel", "int8", axis), ("bias", "int32", 0)):
            # A bias has no zero point: ONNX Runtime recognises the pattern without.
            zero = [f"{layer}.kernel.zero"] if name == "kernel" else []
            inputs = [f"{layer}.{name}.{kind}", f"{layer}.{name}.scale", *zero]
            nodes.append(
                add("DequantizeLinear", inputs, [f"{layer}.{name}"], f"{layer}.{name}", axis=at)
            )
        return [f"{layer}.kernel", f"{layer}.bias"]

    site, counted = "mean_rgb", False
    renamed: dict[str, str] = {}
    kinds = [node.op_type for node in graph.node] + [""]
    for node, following in zip(graph.node, kinds[1:], strict=True):
        node.input[:] = [renamed.get(name, name) for name in node.input]
        layer = node.name.split(".")[0]
        if node.op_type == "Conv" and site == "mean_rgb" and plan.in_steps(site):
            node.input[0] = in_steps(node.input[0], site)
        if node.op_type in WEIGHTED and plan.quantizes(layer):
            node.input[1:] = kernel(layer, site, 0 if node.op_type == "Conv" else 1)
        nodes.append(node)
        if (
            layer in plan.steps
            and node.op_type in (*WEIGHTED, "Relu", "LRN")
            and following != "Relu"
        ):
            site, counted = layer, plan.in_steps(layer)
        elif node.op_type not in ("MaxPool", "Reshape"):
            continue
        if counted:  # pooling and flattening keep the steps
            renamed[node.output[0]] = in_steps(node.output[0], site)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(nodes)
