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
import weakref
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from export.quantize import Plan, Steps, kernel_steps
from vggkeras import files
from vggkeras.errors import InputError

BYTES = {"float32": 4, "float16": 2, "int8": 1}
LABELS = "labels.txt"
SKELETON_UNITS = 8  # filters and units of the network that is converted
FILE_IDENTIFIER = b"TFL3"
Kind = schema.BuiltinOperator
WEIGHTED = (Kind.CONV_2D, Kind.FULLY_CONNECTED)
OTHERS = {Kind.CAST: "cast", Kind.SUB: "mean_rgb", Kind.LOCAL_RESPONSE_NORMALIZATION: "lrn"}

_skeletons: weakref.WeakKeyDictionary[Any, bytes] = (
    weakref.WeakKeyDictionary()
)  # one serves every precision


def write(
    model: Any,
    path: Path,
    about: dict[str, Any],
    opset: int | None = None,
    plan: Plan | None = None,
) -> None:
    """Write what `to_saved_model.inference_model` made, at `about`'s precision.

    The tensors go by the layers' names, as in ONNX: `block1_conv1` is that layer's output after the ReLU.

    Args:
        plan: of `quantize.calibrate`, for int8.

    Raises:
        InputError (a ValueError): weights of more than 2 GB, which a flatbuffer cannot hold.
        OSError: the file cannot be written.
    """
    precision = about.get("precision", "float32")
    total = sum(weight.shape.num_elements() for weight in model.weights) * BYTES[precision]
    if total > 2**31 - 2**20:
        raise InputError(
            f"A TFLite file holds at most 2 GB; the weights take {total / 1e9:.1f} GB: reduce width or fc_units."
        )
    if model not in _skeletons:
        _skeletons[model] = _converted_skeleton(model, about, path.parent)
    graph = schema.ModelT.InitFromPackedBuf(_skeletons[model])
    shape = model.input_shape[1:]
    _put_weights(graph, model, about["input"]["smallest"] if None in shape else shape)
    if precision == "float16":
        _to_float16(graph)
    elif precision == "int8":
        assert plan is not None
        _to_int8(graph, plan)
    # The converter's metadata has numbers that another process need not give.
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(_standard_metadata(about), np.uint8)
    entry.name, entry.buffer = "TFLITE_METADATA", len(graph.buffers)
    graph.buffers.append(buffer)
    graph.metadata = [
        *(kept for kept in graph.metadata or () if kept.name != b"CONVERSION_METADATA"),
        entry,
    ]
    graph.description = f"vggkeras {about['versions']['vggkeras']}"
    builder = _packed(graph, total)
    with open(path, "wb") as file:
        file.write(memoryview(builder.Bytes)[builder.Head() :])
    with zipfile.ZipFile(path, "a") as archive:
        # Without a date, so that the same network gives the same bytes.
        if about["class_names"]:  # features have none
            archive.writestr(zipfile.ZipInfo(LABELS), "\n".join(about["class_names"]) + "\n")
        archive.writestr(zipfile.ZipInfo("vggkeras.json"), json.dumps(about))


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
    skeleton = keras.Model(images, {_output(model): x})
    with tempfile.TemporaryDirectory(
        dir=folder, prefix=f"{files.PARTIAL}{os.getpid()}-skeleton-"
    ) as temporary:
        saved, converted = Path(temporary, "saved_model"), Path(temporary, "skeleton.tflite")
        to_saved_model.write(skeleton, saved, about)
        child = subprocess.run(
            [sys.executable, "-m", "export.to_tflite", str(saved), str(converted)],
            capture_output=True,
            text=True,
        )
        if child.returncode != 0:
            raise RuntimeError(
                f"TensorFlow's TFLite converter failed: {child.stderr.strip()[-1000:]}"
            )
        return converted.read_bytes()


def _output(model: Any) -> str:
    """The name of the one output of what `inference_model` made."""
    (name,) = model.output
    return name


def _put_weights(graph: schema.ModelT, model: Any, smallest: Sequence[int]) -> None:
    """Put the model's weights, in TFLite's order of axes, and its channel counts into a converted skeleton."""
    (subgraph,) = graph.subgraphs
    tensors = subgraph.tensors
    layers = iter([layer for layer in model.layers if layer.weights])

    def fill(index: int, values: np.ndarray) -> None:
        tensor = tensors[index]
        if len(tensor.shape) != values.ndim:
            raise RuntimeError(
                f"unexpected weight {tensor.name!r} of shape {tensor.shape} for {values.shape}"
            )
        tensor.shape = np.array(values.shape, np.int32)
        graph.buffers[tensor.buffer].data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)

    def name(index: int, text: str) -> None:
        tensors[index].name = text.encode()

    channels = tensors[subgraph.inputs[0]].shape[-1]
    pools = iter([layer.name for layer in model.layers if "MaxPooling" in type(layer).__name__])
    for operator in subgraph.operators:
        kind = _kind(graph, operator)
        (output,) = operator.outputs
        if kind in WEIGHTED:
            layer = next(layers)
            kernel, bias = (weight.numpy() for weight in layer.weights)
            # [h, w, in, out] -> [out, h, w, in], and [in, out] -> [out, in]
            fill(operator.inputs[1], np.moveaxis(kernel, -1, 0))
            fill(operator.inputs[2], bias)
            channels = kernel.shape[-1]
            for index, text in zip(operator.inputs[1:], ("kernel", "bias"), strict=True):
                name(index, f"{layer.name}.{text}")
            name(output, layer.name)
        elif kind == Kind.RESHAPE:
            channels = model.get_layer("flatten").output.shape[-1]
            graph.buffers[tensors[operator.inputs[1]].buffer].data = np.array(
                [-1, channels], np.int32
            ).view(np.uint8)
            if operator.builtinOptions is not None:
                operator.builtinOptions.newShape = np.array([-1, channels], np.int32)
            name(output, "flatten")
        elif kind == Kind.MAX_POOL_2D:
            name(output, next(pools))
        elif kind in OTHERS:
            name(output, OTHERS[kind])
            for index in operator.inputs[1:]:
                name(index, f"{OTHERS[kind]}.mean")
        for field in ("shape", "shapeSignature"):
            shape = getattr(tensors[output], field)
            if shape is not None:
                setattr(tensors[output], field, np.array([*shape[:-1], channels], np.int32))
    if (left := next(layers, None)) is not None:
        raise RuntimeError(f"the converted skeleton has no place for layer {left.name}")
    images = tensors[subgraph.inputs[0]]
    images.name, tensors[subgraph.outputs[0]].name = b"images", _output(model).encode()
    images.shape = np.array(
        [1, *smallest], np.int32
    )  # what an interpreter plans for first: a dense network's are ones


def _kind(graph: schema.ModelT, operator: schema.OperatorT) -> int:
    code = graph.operatorCodes[operator.opcodeIndex]
    return max(code.builtinCode, code.deprecatedBuiltinCode)


def _operator(
    graph: schema.ModelT, kind: int, version: int, inputs: Sequence[int], output: int
) -> schema.OperatorT:
    """A new operator without options."""
    operator = schema.OperatorT()
    operator.opcodeIndex = _code(graph, kind, version)
    operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array([output], np.int32)
    return operator


def _code(graph: schema.ModelT, kind: int, version: int) -> int:
    """The place of an operator's code, which is added where there is none."""
    for i, code in enumerate(graph.operatorCodes):
        if max(code.builtinCode, code.deprecatedBuiltinCode) == kind and code.version == version:
            return i
    code = schema.OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode, code.version = kind, min(kind, 127), version
    graph.operatorCodes.append(code)
    return len(graph.operatorCodes) - 1


def _tensor(
    graph: schema.ModelT, like: int, name: str, kind: int, steps: Steps | None = None
) -> int:
    """A new tensor of another's shape, without content."""
    (subgraph,) = graph.subgraphs
    old, tensor = subgraph.tensors[like], schema.TensorT()
    tensor.shape, tensor.shapeSignature, tensor.hasRank = old.shape, old.shapeSignature, old.hasRank
    tensor.name, tensor.type, tensor.buffer = name.encode(), kind, len(graph.buffers)
    tensor.quantization = _quantization(steps)
    graph.buffers.append(schema.BufferT())
    subgraph.tensors.append(tensor)
    return len(subgraph.tensors) - 1


def _quantization(steps: Steps | None) -> schema.QuantizationParametersT | None:
    """TFLite counts activations from -128 on."""
    if steps is None:
        return None
    found = schema.QuantizationParametersT()
    found.scale, found.zeroPoint = (
        np.array([steps.scale], np.float32),
        np.array([steps.zero - 128], np.int64),
    )
    return found


def _to_float16(graph: schema.ModelT) -> None:
    """Weights in float16, which DEQUANTIZE makes float32: a runtime that computes in float16 takes them as they are."""
    (subgraph,) = graph.subgraphs
    casts = []
    for operator in subgraph.operators:
        if _kind(graph, operator) not in WEIGHTED:
            continue
        for place in (1, 2):
            whole = operator.inputs[place]
            tensor = subgraph.tensors[whole]
            half = _tensor(
                graph, whole, f"{tensor.name.decode()}.float16", schema.TensorType.FLOAT16
            )
            values = graph.buffers[tensor.buffer].data.view(np.float32).astype(np.float16)
            graph.buffers[subgraph.tensors[half].buffer].data = values.view(np.uint8)
            graph.buffers[tensor.buffer] = schema.BufferT()
            casts.append(_operator(graph, Kind.DEQUANTIZE, 3, [half], whole))
    subgraph.operators[:0] = casts


def _to_int8(graph: schema.ModelT, plan: Plan) -> None:
    """Kernels, biases and activations in steps, QUANTIZE and DEQUANTIZE where float begins and ends.

    The last layer takes floats and gives them: of 256 steps between the smallest score and the largest one, two classes
    would often share one. Its kernel is int8 all the same.
    """
    (subgraph,) = graph.subgraphs
    tensors, operators = subgraph.tensors, []
    site: Steps | None = None  # what the current tensor's steps are, or would be
    as_float: dict[int, int] = {}  # a tensor that is counted in steps -> its float form
    as_steps: dict[int, int] = {}

    def wanted(index: int, counted: bool) -> int:
        """The tensor, in steps or in float."""
        is_counted = tensors[index].type == schema.TensorType.INT8
        if is_counted == counted:
            return index
        known = as_steps if counted else as_float
        if index not in known:
            name = tensors[index].name.decode()
            if counted:
                known[index] = _tensor(graph, index, f"{name}.int8", schema.TensorType.INT8, site)
                operators.append(_operator(graph, Kind.QUANTIZE, 1, [index], known[index]))
            else:
                known[index] = _tensor(graph, index, f"{name}.float32", schema.TensorType.FLOAT32)
                operators.append(_operator(graph, Kind.DEQUANTIZE, 2, [index], known[index]))
        return known[index]

    for operator in list(subgraph.operators):
        kind, output = _kind(graph, operator), tensors[operator.outputs[0]]
        layer = output.name.decode()
        operator.inputs = np.array(operator.inputs)  # what was read from a file is read-only
        if kind in WEIGHTED:
            quantized, last = plan.quantizes(layer), layer == plan.weighted[-1]
            operator.inputs[0] = wanted(operator.inputs[0], quantized and not last)
            if quantized:
                assert site is not None
                _int8_kernel(graph, operator, None if last else site.scale)
                operator.opcodeIndex = _code(graph, kind, 12 if kind == Kind.FULLY_CONNECTED else 3)
            if not last:
                site = plan.steps[layer]
                if quantized:
                    output.type, output.quantization = schema.TensorType.INT8, _quantization(site)
        elif kind in (Kind.MAX_POOL_2D, Kind.RESHAPE):
            if tensors[operator.inputs[0]].type == schema.TensorType.INT8:
                output.type, output.quantization = schema.TensorType.INT8, _quantization(site)
                if kind == Kind.MAX_POOL_2D:
                    operator.opcodeIndex = _code(graph, kind, 2)
        else:
            if kind != Kind.CAST:  # of the images
                operator.inputs[0] = wanted(operator.inputs[0], False)
            site = plan.steps.get(layer, site)
        operators.append(operator)
    subgraph.operators = operators


def _int8_kernel(graph: schema.ModelT, operator: schema.OperatorT, scale: float | None) -> None:
    """An operator's kernel in int8, a scale a filter, and its bias in int32; with a float input (`scale` None) in float."""
    (subgraph,) = graph.subgraphs
    kernel, bias = (subgraph.tensors[i] for i in operator.inputs[1:])
    values = graph.buffers[kernel.buffer].data.view(np.float32).reshape(kernel.shape)
    biases = graph.buffers[bias.buffer].data.view(np.float32)
    steps, scales, whole = kernel_steps(np.moveaxis(values, 0, -1), biases, scale or 1.0)
    del values
    graph.buffers[kernel.buffer].data = (
        np.ascontiguousarray(np.moveaxis(steps, -1, 0)).reshape(-1).view(np.uint8)
    )
    kernel.type, kernel.quantization = schema.TensorType.INT8, schema.QuantizationParametersT()
    kernel.quantization.scale, kernel.quantization.zeroPoint = (
        scales,
        np.zeros(len(scales), np.int64),
    )
    if scale is not None:
        graph.buffers[bias.buffer].data = whole.view(np.uint8)
        bias.type, bias.quantization = schema.TensorType.INT32, schema.QuantizationParametersT()
        bias.quantization.scale, bias.quantization.zeroPoint = (
            scales * np.float32(scale),
            np.zeros(len(scales), np.int64),
        )


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


def _standard_metadata(about: dict[str, Any]) -> bytes:
    """The ModelMetadata, a flatbuffer of TFLite's metadata_schema.fbs, as MediaPipe and ML Kit read it.

    No process units: the image goes in as bytes, and the answers come out as they are. Of a classifier it names the file
    in the zip archive at the end whose lines are the labels: phones' tools find them by it.
    """
    import flatbuffers

    h, w, c = about["input"]["smallest"]
    uint8, uint32, color = (
        "Uint8",
        "Uint32",
        {1: 2, 3: 1}.get(c, 0),
    )  # ColorSpaceType: RGB 1, GRAYSCALE 2
    size = {0: (uint32, w), 1: (uint32, h)}
    content = {0: (uint8, 2), 1: {0: (uint8, color), 1: size}}  # ContentProperties.ImageProperties
    file = {0: LABELS, 1: "A line a class.", 2: (uint8, 2)}  # AssociatedFileType.TENSOR_AXIS_LABELS
    image = {0: about["input"]["name"], 1: f"uint8, 0-255, {about['resize']}", 3: content}
    output: dict[int, Any] = {0: about["output"]["name"]}
    if classes := len(about["class_names"]):
        output |= {1: "Probability of each class, float32, 0-1.", 6: [file]}
        what = f"Image classifier of {classes} classes"
    else:
        output[1] = f"float32, 0 or more. {about['output']['use']}"
        what = f"Very deep features, {about['output']['shape'][-1]} an image, of a network"
    provenance = about["provenance"]
    model = {
        0: f"VGG {provenance['arch']}",
        1: f"{what}, trained on {provenance.get('data', 'unnamed data')}.",
        2: provenance["model_sha256"][:12],
        3: [{2: [image], 3: [output]}],
        7: "1.0.0",  # min_parser_version: the first, which knew every field here
    }
    builder = flatbuffers.Builder()
    builder.Finish(_put(builder, model), b"M001")
    return bytes(builder.Output())


def _put(builder: Any, value: str | list | dict[int, Any]) -> int:
    """Write a string, a list of tables or a table, whose keys are the fields' places in the schema and whose scalars are
    (type, value); its offset.
    """
    if isinstance(value, str):
        return builder.CreateString(value)
    if isinstance(value, list):
        offsets = [_put(builder, item) for item in value]
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return builder.EndVector()
    # What a table points to is written before it.
    written = {
        key: _put(builder, item) for key, item in value.items() if not isinstance(item, tuple)
    }
    builder.StartObject(max(value) + 1)
    for key, item in value.items():
        kind, number = ("UOffsetTRelative", written[key]) if key in written else item
        getattr(builder, f"Prepend{kind}Slot")(key, number, 0)
    return builder.EndObject()


def _packed(graph: schema.ModelT, weights: int):
    import flatbuffers

    for buffer in graph.buffers:
        buffer.__class__ = _AlignedBuffer
    builder = flatbuffers.Builder(
        weights + (1 << 20)
    )  # large enough from the start, for it grows by doubling
    builder.Finish(graph.Pack(builder), FILE_IDENTIFIER)
    return builder


def _convert(saved_model: str, path: str) -> None:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(saved_model)
    converter.target_spec.supported_ops = [
        tf.lite.OpsSet.TFLITE_BUILTINS
    ]  # anything else is an error
    Path(path).write_bytes(converter.convert())


if __name__ == "__main__":
    _convert(*sys.argv[1:])
