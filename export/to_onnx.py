"""Write a network's layers as an ONNX file, with the weights in place.

One loop emits the operators, so nothing is converted: the largest network is written in the time
that its bytes take. The graph has one Transpose, from the images' channels-last to the
convolutions' channels-first order: fc1's rows are permuted to C, H, W order, and no second one is
needed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import keras
import numpy as np
import onnx
from onnx import TensorProto, helper

from export.operations import (
    WEIGHTED,
    Constant,
    Operation,
    bias_of,
    check_size,
    kernel_of,
    operations,
    output_name,
)
from export.quantize import Int8Plan, quantize_kernel
from vggkeras.card import ModelCard
from vggkeras.containers import key

DEFAULT_OPSET = 18
IR_VERSION = 8  # the oldest that every supported operator set allows
GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9  # field numbers of ModelProto, GraphProto and TensorProto


def write(
    model: keras.Model,
    path: Path,
    card: ModelCard,
    opset: int | None = None,
    plan: Int8Plan | None = None,
) -> None:
    """Write what `to_saved_model.inference_model` made, checked by onnx.checker.

    The tensors go by the layers' names: `block1_conv1` is that layer's output after the ReLU,
    `predictions` the scores before soft-max. Every other runtime may ignore the metadata.

    Args:
        model: the graph.
        path: the file.
        card: what travels in it; its precision is the file's.
        opset: 14 to 18; by default 18.
        plan: of `quantize.calibrate`, for int8.

    Raises:
        InputError (a ValueError): weights of more than 2 GB, which one ONNX file cannot hold.
    """
    precision = card.precision
    check_size(model, precision, "ONNX")
    plan = plan if precision == "int8" else None
    graph = _Graph(output_name(model), half=precision == "float16", plan=plan)
    for operation in operations(model):
        graph.emit(operation)
    graph.finish()
    shape, output_shape = card.shapes
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, shape)
    output = helper.make_tensor_value_info(graph.output, TensorProto.FLOAT, output_shape)
    proto = helper.make_model(
        helper.make_graph(graph.nodes, model.name, [images], [output]),
        opset_imports=[helper.make_opsetid("", opset or DEFAULT_OPSET)],
        ir_version=IR_VERSION,
        producer_name="vggkeras",
        producer_version=card.written_with,
    )
    labels = {"labels": json.dumps(card.class_names)} if card.class_names else {}
    helper.set_model_props(proto, {**labels, "vggkeras": json.dumps(card.to_description())})
    with open(path, "wb") as file:
        _write(file, proto, graph.constants)
    onnx.checker.check_model(str(path), full_check=True)


class _Graph:
    """The nodes and constants so far, and the tensor that the next operation takes."""

    def __init__(self, output: str, *, half: bool, plan: Int8Plan | None) -> None:
        self.output = output
        self.half, self.plan = half, plan
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Constant] = {}
        self.tensor = "images"
        self.is_half = False  # whether the tensor is float16
        self.quantized_as = ""  # the layer whose scale and zero point the tensor has
        self.is_quantized = False
        self.flattened: tuple[int, ...] = ()  # (H, W, C) of the map that the next layer has as rows

    def emit(self, operation: Operation) -> None:
        """Add the nodes of one operation."""
        name, layer = operation.name, operation.layer
        if operation.kind == "center":
            self.add("Cast", "cast", to=TensorProto.FLOAT)
            self.add(
                "Sub", name, [self.constant(f"{name}.mean", -np.array(layer.offset, np.float32))]
            )
            self.add("Transpose", "transpose", perm=[0, 3, 1, 2])
            self.quantize_as(name)
        elif operation.kind == "lrn":
            # Its squares leave float16's range. ONNX divides alpha by n, the paper does not.
            self.cast(False)
            alpha = layer.alpha * layer.n
            self.add("LRN", name, alpha=alpha, beta=layer.beta, bias=layer.k, size=layer.n)
            self.quantize_as(name)
        elif operation.kind in WEIGHTED:
            self.weighted(operation)
        elif operation.kind == "pool":
            self.add(
                "MaxPool", name, kernel_shape=list(layer.pool_size), strides=list(layer.strides)
            )
            self.requantize()
        elif operation.kind == "flatten":
            self.flattened = tuple(int(side or 0) for side in operation.input_shape[1:])
            shape = np.array([-1, operation.shape[-1]], np.int64)
            self.add("Reshape", name, [self.constant(f"{name}.shape", shape)])
            self.requantize()
        elif operation.kind == "mean":
            self.cast(False)
            self.add("GlobalAveragePool", f"{name}.pool")
            self.add("Flatten", self.output if name == self.output else name, axis=1)
        elif operation.kind == "softmax":
            self.cast(False)
            self.add("Softmax", "softmax", output=self.output, axis=-1)

    def weighted(self, operation: Operation) -> None:
        """Add a convolution or a fully connected layer, with what follows it."""
        name, layer = operation.name, operation.layer
        self.cast(self.half)
        kind, options, axis = "Gemm", dict[str, Any](), 1
        if operation.kind == "conv":
            padding = [k // 2 if layer.padding == "same" else 0 for k in layer.kernel_size]
            kind, options, axis = "Conv", {"pads": padding * 2}, 0
        inputs = self.kernel(operation, axis)
        node = f"{name}.{kind.lower()}"
        followed = operation.relu or name == self.output  # by what gets the name
        self.add(kind, node, inputs, output=node if followed else name, **options)
        if operation.relu:
            self.add("Relu", f"{name}.relu", output=name)
        if self.plan is None or name != self.plan.weighted[-1]:
            self.quantize_as(name)
        if operation.softmax:
            self.cast(False)
            self.add("Softmax", "softmax", output=self.output, axis=-1)

    def finish(self) -> None:
        """Give the last tensor, where no soft-max or average follows it, the output's name.

        It is of boxes: float32, and a map of them channels last.
        """
        if self.tensor == self.output:
            return
        if self.nodes[-1].op_type == "Conv":
            self.add("Transpose", f"{self.output}.transpose", perm=[0, 2, 3, 1])
        self.cast(False)
        self.nodes[-1].output[0] = self.tensor = self.output

    def kernel(self, operation: Operation, axis: int) -> list[str]:
        """Add a layer's kernel and bias, and return their names; `axis` is the filters' in ONNX."""
        name, layer = operation.name, operation.layer
        if self.plan is not None and self.plan.quantizes(name):
            return self.int8_kernel(operation, axis)
        dtype = np.dtype(np.float16 if self.half else np.float32)
        shape = _kernel_shape(operation)
        rows = self.rows(operation)
        self.constants[f"{name}.kernel"] = Constant(
            shape, dtype, lambda: _in_onnx_order(rows(kernel_of(layer)), axis)
        )
        self.constant(f"{name}.bias", bias_of(layer).astype(dtype))
        return [f"{name}.kernel", f"{name}.bias"]

    def int8_kernel(self, operation: Operation, axis: int) -> list[str]:
        """Add a layer's int8 kernel and int32 bias, and the nodes that dequantize them.

        Where activations are symmetric, for TensorRT, the bias stays float32, as that dequantizes
        no int32; and no sum of it is of 16 bits, so no pair of weights is lowered.
        """
        assert self.plan is not None
        name, quantization = operation.name, self.plan.activations[self.quantized_as]
        scale = quantization.scale
        kernel, bias = self.rows(operation)(kernel_of(operation.layer)), bias_of(operation.layer)
        pairs = not quantization.symmetric
        integers, scales, biases = quantize_kernel(kernel, bias, scale, pairs=pairs)
        del kernel
        self.constant(f"{name}.kernel.int8", _in_onnx_order(integers, axis))
        self.constant(f"{name}.kernel.scale", scales)
        self.constant(f"{name}.kernel.zero", np.zeros(len(scales), np.int8))
        parts = [("kernel", "int8", axis)]
        if quantization.symmetric:
            self.constant(f"{name}.bias", bias.astype(np.float32))
        else:
            self.constant(f"{name}.bias.int32", biases)
            self.constant(f"{name}.bias.scale", scales * np.float32(scale))
            parts.append(("bias", "int32", 0))
        for part, kind, at in parts:
            # A bias has no zero point: ONNX Runtime recognizes the pattern without.
            zero = [f"{name}.kernel.zero"] if part == "kernel" else []
            inputs, output = (
                [f"{name}.{part}.{kind}", f"{name}.{part}.scale", *zero],
                f"{name}.{part}",
            )
            self.nodes.append(
                helper.make_node("DequantizeLinear", inputs, [output], output, axis=at)
            )
        return [f"{name}.kernel", f"{name}.bias"]

    def rows(self, operation: Operation) -> Callable[[np.ndarray], np.ndarray]:
        """Return how a kernel's rows are brought into the order that ONNX has them in.

        What `flatten` gives is in C, H, W order here, and in H, W, C order in Keras.
        """
        if operation.kind != "dense" or len(self.flattened) != 3:
            return lambda kernel: kernel
        (h, w, c), self.flattened = self.flattened, ()
        return lambda kernel: (
            kernel.reshape(h, w, c, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
        )

    def add(
        self, kind: str, node: str, inputs: Sequence[str] = (), output: str = "", **options: Any
    ) -> None:
        """Add a node that takes the current tensor first; its output is the next one."""
        output = output or node
        self.nodes.append(helper.make_node(kind, [self.tensor, *inputs], [output], node, **options))
        self.tensor = output

    def constant(self, name: str, array: np.ndarray) -> str:
        """Add an array, and return its name."""
        self.constants[name] = Constant.of(array)
        return name

    def cast(self, half: bool) -> None:
        """Make the tensor float16 or float32, where it is not."""
        if half != self.is_half:
            kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
            self.add("Cast", f"{self.tensor}.float{'16' if half else '32'}", to=kind)
            self.is_half = half

    def quantize_as(self, layer: str) -> None:
        """Give the tensor the scale and zero point of a layer's output, where int8 is wanted."""
        if self.plan is not None and layer in self.plan.activations:
            self.quantized_as, self.is_quantized = layer, self.plan.quantizes_output(layer)
            self.requantize()

    def requantize(self) -> None:
        """Quantize and dequantize the tensor: pooling and flattening keep scale and zero point.

        A runtime that knows the pattern computes in int8 (ONNX Runtime's QLinearConv and QGemm);
        any other gives the same answers in float32.
        """
        if not self.is_quantized:
            return
        assert self.plan is not None
        layer, tensor = self.quantized_as, self.tensor
        quantization = self.plan.activations[layer]
        scale = self.constant(f"{layer}.scale", np.array(quantization.scale, np.float32))
        kind = np.int8 if quantization.symmetric else np.uint8
        zero = self.constant(f"{layer}.zero", np.array(quantization.zero_point, kind))
        self.add("QuantizeLinear", f"{tensor}.quantize", [scale, zero], f"{tensor}.{kind.__name__}")
        self.add("DequantizeLinear", f"{tensor}.steps", [scale, zero], f"{tensor}.steps")


def _kernel_shape(operation: Operation) -> tuple[int, ...]:
    """Return the kernel's shape in ONNX: `[out, in, h, w]` or `[in, out]`."""
    shape = tuple(operation.layer.kernel.shape)
    return (shape[3], shape[2], shape[0], shape[1]) if operation.kind == "conv" else shape


def _in_onnx_order(kernel: np.ndarray, axis: int) -> np.ndarray:
    """Return `[h, w, in, out]` as `[out, in, h, w]`; `[in, out]` as it is."""
    return kernel.transpose(3, 2, 0, 1) if axis == 0 else kernel


def _write(file: BinaryIO, proto: onnx.ModelProto, constants: dict[str, Constant]) -> None:
    """Write a model with its constants as initializers, each read only when its turn comes.

    The protobuf library would hold all weights twice. What is written is the same message: for a
    field that is a message, its key, its length, its content.
    """
    headers = {
        name: TensorProto(
            name=name,
            dims=constant.shape,
            data_type=helper.np_dtype_to_tensor_dtype(constant.dtype),
        ).SerializeToString()
        for name, constant in sorted(constants.items())
    }
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    tensors = {
        name: header + key(RAW_DATA, constants[name].nbytes) for name, header in headers.items()
    }
    sizes = {name: len(head) + constants[name].nbytes for name, head in tensors.items()}
    total = len(graph) + sum(len(key(INITIALIZER, size)) + size for size in sizes.values())
    file.write(proto.SerializeToString())
    file.write(key(GRAPH, total) + graph)
    for name, head in tensors.items():
        file.write(key(INITIALIZER, sizes[name]) + head)
        file.write(constants[name].content().data)
