"""Write a network's layers as a TFLite file, with built-in operators alone.

One loop emits the operators, with the weights in place, so nothing is converted. The flatbuffer is
built back to front in one buffer, and every weight is read when its turn comes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from export import metadata
from export.flatbuffer import Buffer, save
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
from export.quantize import Int8Plan, Quantization, quantize_kernel
from vggkeras.card import ModelCard

Op, Type = schema.BuiltinOperator, schema.TensorType
# The version of each operator that first has what is used here: (in float32, in int8).
VERSIONS = {
    Op.CONV_2D: (1, 3),
    Op.FULLY_CONNECTED: (1, 12),
    Op.MAX_POOL_2D: (1, 2),
    Op.RESHAPE: (1, 1),
    Op.QUANTIZE: (1, 1),
    Op.DEQUANTIZE: (3, 2),  # of float16; of int8
    Op.SUB: (1, 2),
    Op.SOFTMAX: (1, 2),
}
# Of a file whose images and answers are int8: its images are bytes minus 128, and TFLite demands
# the scale and zero point of the probabilities.
IMAGES, PROBABILITIES = Quantization(1.0, 0), Quantization(1 / 256, 0)


def write(
    model: keras.Model,
    path: Path,
    card: ModelCard,
    opset: int | None = None,
    plan: Int8Plan | None = None,
) -> None:
    """Write what `to_saved_model.inference_model` made, at `card`'s precision.

    The tensors go by the layers' names, as in ONNX: `block1_conv1` is that layer's output after the
    ReLU.

    Args:
        model: the graph.
        path: the file.
        card: what travels in it; its precision is the file's.
        opset: not used: ONNX's.
        plan: of `quantize.calibrate`, for int8.

    Raises:
        InputError (a ValueError): weights of more than 2 GB, which a flatbuffer cannot hold.
        OSError: the file cannot be written.
    """
    precision = card.precision
    total = check_size(model, precision, "TFLite")
    plan = plan if precision == "int8" else None
    graph = _Graph(output_name(model), half=precision == "float16", plan=plan)
    # What an interpreter plans for first; a dense network takes other sizes, too.
    smallest = [1, *(card.input_shape or model.input_shape[1:])]
    signature = [-1 if side is None else side for side in model.input_shape]
    if graph.scores:
        images = graph.new("images", smallest, Type.INT8, signature, IMAGES)
    else:
        images = graph.new("images", smallest, Type.UINT8, signature)
    graph.tensor = images
    for operation in operations(model):
        graph.emit(operation)
    proto = graph.model(images, card)
    save(proto, path, total)
    metadata.append_labels(path, card)


class _Graph:
    """The operators and tensors so far, and the tensor that the next operation takes."""

    def __init__(self, output: str, *, half: bool, plan: Int8Plan | None) -> None:
        self.output, self.half, self.plan = output, half, plan
        # The class scores'; None where the network ends in float32.
        self.scores = plan.scores if plan else None
        self.tensors: list[schema.TensorT] = []
        self.operators: list[schema.OperatorT] = []
        self.dequantized: list[schema.OperatorT] = []  # float16 weights, before all others
        self.codes: list[schema.OperatorCodeT] = []
        self.buffers = [Buffer()]  # the first one is the empty one, by TFLite's convention
        self.tensor = -1  # the index of what the next operation takes
        self.range: Quantization | None = None  # the tensor's, or what it would be in int8

    def emit(self, operation: Operation) -> None:
        """Add the operators of one operation."""
        name, layer, shape = operation.name, operation.layer, operation.shape
        if operation.kind == "center":
            self.center(name, -np.array(layer.offset, np.float32), shape)
            self.range = self.plan.activations[name] if self.plan else None
        elif operation.kind == "lrn":
            options = schema.LocalResponseNormalizationOptionsT()
            options.radius, options.bias = layer.n // 2, layer.k
            options.alpha, options.beta = layer.alpha, layer.beta
            self.as_float()
            self.add(Op.LOCAL_RESPONSE_NORMALIZATION, name, shape, options=options)
            self.range = self.plan.activations[name] if self.plan else None
            if self.scores:  # LRN alone has no integers
                self.as_int8()
        elif operation.kind in WEIGHTED:
            self.weighted(operation)
        elif operation.kind == "pool":
            options = schema.Pool2DOptionsT()
            options.padding = schema.Padding.VALID
            options.filterHeight, options.filterWidth = layer.pool_size
            options.strideH, options.strideW = layer.strides
            self.add(Op.MAX_POOL_2D, name, shape, options=options, keeps=True)
        elif operation.kind == "flatten":
            target = np.array([-1, shape[-1]], np.int32)
            options = schema.ReshapeOptionsT()
            options.newShape = target
            constant = self.constant(f"{name}.shape", target)
            self.add(Op.RESHAPE, name, shape, [constant], options, keeps=True)
        elif operation.kind == "mean":
            options = schema.ReducerOptionsT()
            options.keepDims = False
            axes = self.constant(f"{name}.axes", np.array([1, 2], np.int32))
            self.as_float()
            self.add(Op.MEAN, name, shape, [axes], options)
        elif operation.kind == "softmax":
            self.softmax(shape)

    def center(self, name: str, mean: np.ndarray, shape: tuple[int | None, ...]) -> None:
        """Add the subtraction of the mean, in float32 from bytes, or in int8."""
        if self.scores:
            assert self.plan is not None
            steps = Quantization.of_range(float(mean.min()), float(mean.max()))
            integers = np.rint(mean / steps.scale) + (steps.zero_point - 128)
            constant = Constant.of(integers.astype(np.int8))
            index = self.stored(f"{name}.mean", constant, Type.INT8, steps)
            self.add(
                Op.SUB, name, shape, [index], schema.SubOptionsT(),
                quantization=self.plan.activations[name], version=VERSIONS[Op.SUB][1],
            )  # fmt: skip
            return
        cast = schema.CastOptionsT()
        cast.inDataType, cast.outDataType = Type.UINT8, Type.FLOAT32
        self.add(Op.CAST, "cast", shape, options=cast)
        self.add(Op.SUB, name, shape, [self.constant(f"{name}.mean", mean)], schema.SubOptionsT())

    def softmax(self, shape: tuple[int | None, ...]) -> None:
        """Add the last operator, of a classifier."""
        options = schema.SoftmaxOptionsT()
        options.beta = 1.0
        in_int8 = self.scores is not None and self.tensors[self.tensor].type == Type.INT8
        if not in_int8:
            self.as_float()
        self.add(
            Op.SOFTMAX, self.output, shape, options=options,
            quantization=PROBABILITIES if in_int8 else None, version=VERSIONS[Op.SOFTMAX][in_int8],
        )  # fmt: skip
        if self.scores:  # whose layer may be kept in float32
            self.range = PROBABILITIES
            self.as_int8()

    def weighted(self, operation: Operation) -> None:
        """Add a convolution or a fully connected layer, with its ReLU.

        In int8, the last one takes float32 and gives it: of 256 values between the smallest and
        the largest score, two classes would often have the same one. Its kernel is int8 all the
        same. Where the plan has the scores' range, it gives int8 too.
        """
        name, layer = operation.name, operation.layer
        quantized = self.plan is not None and self.plan.quantizes(name)
        last = self.plan is not None and name == self.plan.weighted[-1] and not self.scores
        conv = operation.kind == "conv"
        relu = schema.ActivationFunctionType.RELU if operation.relu else 0
        options = schema.Conv2DOptionsT() if conv else schema.FullyConnectedOptionsT()
        options.fusedActivationFunction = relu
        if conv:
            same = layer.padding == "same"
            options.padding = schema.Padding.SAME if same else schema.Padding.VALID
            options.strideH = options.strideW = 1
            options.dilationHFactor = options.dilationWFactor = 1
        if quantized and not last:
            self.as_int8()
        else:
            self.as_float()
        if quantized:
            assert self.range is not None
            inputs = self.int8_kernel(layer, None if last else self.range.scale)
        else:
            inputs = [self.weight(layer, "kernel"), self.weight(layer, "bias")]
        output = self.plan.activations.get(name, self.scores) if self.plan and not last else None
        kind = Op.CONV_2D if conv else Op.FULLY_CONNECTED
        self.add(
            kind, name, operation.shape, inputs, options,
            quantization=output if quantized else None, version=VERSIONS[kind][quantized],
        )  # fmt: skip
        self.range = output or self.range
        if operation.softmax:
            self.softmax(operation.shape)

    def weight(self, layer: Any, part: str) -> int:
        """Add a layer's kernel, filters first, or its bias.

        In float16, DEQUANTIZE makes float32 of them; a runtime that computes in float16 takes the
        halves as they are.
        """

        def values() -> np.ndarray:
            return bias_of(layer) if part == "bias" else np.moveaxis(kernel_of(layer), -1, 0)

        shape = tuple(layer.bias.shape if part == "bias" else layer.kernel.shape)
        shape, name = (shape[-1], *shape[:-1]), f"{layer.name}.{part}"
        if not self.half:
            return self.stored(name, Constant(shape, np.dtype(np.float32), values), Type.FLOAT32)
        halves = Constant(shape, np.dtype(np.float16), values)
        half = self.stored(f"{name}.float16", halves, Type.FLOAT16)
        whole = self.new(name, shape, Type.FLOAT32)
        self.dequantized.append(self.operator(Op.DEQUANTIZE, 3, [half], whole))
        return whole

    def int8_kernel(self, layer: Any, scale: float | None) -> list[int]:
        """Add a kernel in int8, with a scale for each filter, and its bias in int32.

        For a float32 input (`scale` None) the bias is float32.
        """
        kernel, bias, name = kernel_of(layer), bias_of(layer), f"{layer.name}.bias"
        integers, scales, biases = quantize_kernel(kernel, bias, scale or 1.0)
        index = self.constant(f"{layer.name}.kernel", np.moveaxis(integers, -1, 0), scales)
        if scale is None:
            return [index, self.constant(name, bias)]
        return [index, self.constant(name, biases, scales * np.float32(scale))]

    def as_int8(self) -> None:
        """Quantize the tensor, where it is float32."""
        current = self.tensors[self.tensor]
        if current.type == Type.FLOAT32:
            assert self.range is not None
            self.follow(Op.QUANTIZE, 1, Type.INT8, "int8", self.range)

    def as_float(self) -> None:
        """Dequantize the tensor, where it is int8."""
        if self.tensors[self.tensor].type == Type.INT8:
            self.follow(Op.DEQUANTIZE, 2, Type.FLOAT32, "float32", None)

    def follow(
        self, kind: int, version: int, dtype: int, suffix: str, quantization: Quantization | None
    ) -> None:
        """Add an operator whose output has the shape of the tensor."""
        before = self.tensors[self.tensor]
        name = f"{before.name.decode()}.{suffix}"
        output = self.new(name, before.shape, dtype, before.shapeSignature, quantization)
        self.operators.append(self.operator(kind, version, [self.tensor], output))
        self.tensor = output

    def add(
        self,
        kind: int,
        name: str,
        shape: tuple[int | None, ...],
        inputs: list[int] | None = None,
        options: Any = None,
        *,
        quantization: Quantization | None = None,
        keeps: bool = False,
        version: int = 1,
    ) -> None:
        """Add an operator that takes the tensor first; its output is the next one.

        Args:
            kind: of operator.
            name: of the output.
            shape: of the output.
            inputs: what it takes beside the tensor.
            options: of the operator.
            quantization: the output's, where it is int8.
            keeps: the output has the input's type, scale and zero point.
            version: of the operator.
        """
        if keeps and self.tensors[self.tensor].type == Type.INT8:
            quantization, version = self.range, VERSIONS[kind][1]
        signature = [-1 if side is None else side for side in shape]
        smallest = [1 if side is None else side for side in shape]
        dtype = Type.FLOAT32 if quantization is None else Type.INT8
        output = self.new(name, smallest, dtype, signature, quantization)
        self.operators.append(
            self.operator(kind, version, [self.tensor, *(inputs or [])], output, options)
        )
        self.tensor = output

    def operator(
        self, kind: int, version: int, inputs: list[int], output: int, options: Any = None
    ) -> schema.OperatorT:
        """Return a new operator."""
        operator = schema.OperatorT()
        operator.opcodeIndex = self.code(kind, version)
        operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array([output], np.int32)
        if options is not None:
            name = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, name)
            operator.builtinOptions = options
        return operator

    def code(self, kind: int, version: int) -> int:
        """Return the index of an operator's code, which is added where there is none."""
        for index, code in enumerate(self.codes):
            if (code.builtinCode, code.version) == (kind, version):
                return index
        code = schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.version = kind, min(kind, 127), version
        self.codes.append(code)
        return len(self.codes) - 1

    def constant(self, name: str, array: np.ndarray, scales: np.ndarray | None = None) -> int:
        """Add an array; quantized, with a scale for each filter, along its first axis."""
        types = {"float32": Type.FLOAT32, "int32": Type.INT32, "int8": Type.INT8}
        index = self.stored(name, Constant.of(array), types[array.dtype.name])
        if scales is not None:
            parameters = schema.QuantizationParametersT()
            parameters.scale, parameters.zeroPoint = scales, np.zeros(len(scales), np.int64)
            self.tensors[index].quantization = parameters
        return index

    def stored(
        self,
        name: str,
        constant: Constant,
        dtype: int,
        quantization: Quantization | None = None,
    ) -> int:
        """Add a tensor with content."""
        index = self.new(name, constant.shape, dtype, None, quantization)
        self.tensors[index].buffer = len(self.buffers)
        self.buffers.append(Buffer(constant))
        return index

    def new(
        self,
        name: str,
        shape: Any,
        dtype: int,
        signature: Any = None,
        quantization: Quantization | None = None,
    ) -> int:
        """Add a tensor without content; `signature` has -1 where the shape may change."""
        tensor = schema.TensorT()
        tensor.name, tensor.type, tensor.hasRank, tensor.buffer = name.encode(), dtype, True, 0
        tensor.shape = np.array(shape, np.int32)
        if signature is not None and not self.scores:  # NPUs take one image, no shape that changes
            tensor.shapeSignature = np.array(signature, np.int32)
        if quantization is not None:  # TFLite's integers are -128 to 127
            parameters = schema.QuantizationParametersT()
            parameters.scale = np.array([quantization.scale], np.float32)
            parameters.zeroPoint = np.array([quantization.zero_point - 128], np.int64)
            tensor.quantization = parameters
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def model(self, images: int, card: ModelCard) -> schema.ModelT:
        """Return the whole model, with TFLite's standard metadata."""
        subgraph, signature = schema.SubGraphT(), schema.SignatureDefT()
        subgraph.name, subgraph.tensors = b"main", self.tensors
        subgraph.operators = self.dequantized + self.operators
        subgraph.inputs = np.array([images], np.int32)
        subgraph.outputs = np.array([self.tensor], np.int32)
        signature.signatureKey, signature.subgraphIndex = b"serving_default", 0
        signature.inputs = [_named("images", images)]
        signature.outputs = [_named(self.output, self.tensor)]
        entry = schema.MetadataT()
        entry.name, entry.buffer = b"TFLITE_METADATA", len(self.buffers)
        content = np.frombuffer(metadata.model_metadata(card), np.uint8)
        model = schema.ModelT()
        model.version, model.description = 3, f"vggkeras {card.written_with}"
        model.operatorCodes, model.subgraphs = self.codes, [subgraph]
        model.signatureDefs = [signature]
        model.buffers = [*self.buffers, Buffer(Constant.of(content))]
        model.metadata = [entry]
        return model


def _named(name: str, index: int) -> schema.TensorMapT:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name.encode(), index
    return entry
