"""Return what each layer of a model gives for some images, as the mean of each of its channels.

By these means the same layer can be compared between files that lay their tensors out differently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vggkeras import containers
from vggkeras.errors import InputError
from vggkeras.runtimes import stderr, tflite

GRAPH_OUTPUT, NAME = 12, 1  # numbers of fields: of GraphProto, and of the ValueInfoProto in it


def channel_means(values: np.ndarray, axis: int) -> np.ndarray:
    """Return the means over every axis but one: float64 `[channels]`."""
    return np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis]).mean(0, dtype=np.float64)


def file_means(
    path: Path, tensors: list[str], images: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the channel means of a .onnx or .tflite file's tensors, and its answers, on the CPU.

    Args:
        path: the file.
        tensors: their names; those that the file does not have are left out of the result.
        images: as the file takes them.

    Raises:
        InputError (a ValueError): its runtime cannot load or run the file.
    """
    read = _onnx_means if path.suffix == ".onnx" else _tflite_means
    return read(path, tensors, images)


def _onnx_means(
    path: Path, tensors: list[str], images: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    import onnxruntime as ort

    model = path.read_bytes()
    options = ort.SessionOptions()
    options.log_severity_level = 3

    def session_with(outputs: list[str]) -> ort.InferenceSession:
        # A protocol buffer's message that comes twice is merged, so the graph gets more outputs.
        named = (containers.field(NAME, output.encode()) for output in outputs)
        more = b"".join(containers.field(GRAPH_OUTPUT, output) for output in named)
        extended = model + containers.field(containers.GRAPH, more)
        return ort.InferenceSession(extended, options, providers=["CPUExecutionProvider"])

    def is_tensor(name: str) -> bool:
        try:
            session_with([name])
        except Exception:  # onnxruntime's errors have no common base
            return False
        return True

    present, doing = [name for name in tensors if name.encode() in model], "loaded"
    try:
        try:
            session = session_with(present)
        except Exception:  # a name that is no tensor of the graph
            present = [name for name in present if is_tensor(name)]
            session = session_with(present)
        doing = "run"
        answer, image = session.get_outputs()[0].name, session.get_inputs()[0].name
        answers, *values = session.run([answer, *present], {image: images})
    except Exception as error:
        raise InputError(
            f"{path} cannot be {doing} by ONNX Runtime ({str(error)[:300]}): export it again."
        ) from error
    means = {}
    for name, value in zip(present, values, strict=True):
        # mean_rgb is before the transposition, and a map of boxes after the one back.
        channels_first = value.ndim == 4 and name not in ("mean_rgb", answer)
        means[name] = channel_means(value, 1 if channels_first else value.ndim - 1)
    return means, answers


def _tflite_means(
    path: Path, tensors: list[str], images: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    try:
        with stderr.quiet_stderr():
            interpreter = Interpreter(
                str(path),
                experimental_preserve_all_tensors=True,
                # A delegate keeps its tensors to itself.
                experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            )
            (image,), (answer,) = interpreter.get_input_details(), interpreter.get_output_details()
            interpreter.resize_tensor_input(image["index"], images.shape)
            interpreter.allocate_tensors()
            interpreter.set_tensor(image["index"], tflite.quantized(images, image))
            interpreter.invoke()
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"{path} cannot be run by LiteRT ({str(error)[:300]}): export it again."
        ) from error
    means = {}
    for details in interpreter.get_tensor_details():
        if details["name"] in tensors:
            value = tflite.dequantized(interpreter.get_tensor(details["index"]), details)
            means[details["name"]] = channel_means(value, value.ndim - 1)
    return means, tflite.dequantized(interpreter.get_tensor(answer["index"]), answer)


def tensor_names(path: Path) -> list[str]:
    """Return the names of what a .onnx or .tflite file computes, in order; [] for a SavedModel."""
    if path.suffix == ".onnx":
        import onnx

        nodes = onnx.load(path, load_external_data=False).graph.node
        return [name for node in nodes for name in node.output]
    if path.suffix == ".tflite":
        from ai_edge_litert import schema_py_generated as schema

        graph = schema.Model.GetRootAs(path.read_bytes(), 0).Subgraphs(0)
        operators = (graph.Operators(i) for i in range(graph.OperatorsLength()))
        return [
            graph.Tensors(int(index)).Name().decode()
            for operator in operators
            for index in operator.OutputsAsNumpy()
        ]
    return []


@dataclass(frozen=True)
class KerasLayers:
    """Each layer's channel means, in the order of computing, and which layers take its output."""

    means: dict[str, np.ndarray]
    consumers: dict[str, list[str]]


def keras_layers(model: Any, images: np.ndarray) -> KerasLayers:
    """Run a Keras model, and note what each layer gives; layers of nested models too."""
    means: dict[str, np.ndarray] = {}
    makers: dict[int, str] = {}  # the layer that gave a tensor last, by the tensor's identity
    tensors: list[Any] = []  # kept, so that identities stay unique
    consumers: dict[str, list[str]] = {}

    def note(layer: Any, inputs: list[Any], output: Any) -> None:
        for maker in {makers[id(tensor)]: None for tensor in inputs if id(tensor) in makers}:
            consumers.setdefault(maker, []).append(layer.name)
        if getattr(output, "ndim", 0) >= 2:
            tensors.append(output)
            makers[id(output)] = layer.name
            axis = 1 if getattr(layer, "data_format", "") == "channels_first" else -1
            means[layer.name] = channel_means(np.asarray(output, np.float32), axis)

    with _noting_calls(list(_innermost_layers(model)), note):
        model(images, training=False)
    return KerasLayers(means, consumers)


def _innermost_layers(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from _innermost_layers(layer)
        else:
            yield layer


@contextmanager
def _noting_calls(layers: list[Any], note: Callable[[Any, list[Any], Any], None]) -> Iterator[None]:
    """Call `note(layer, inputs, output)` after each call of a layer, while the block runs."""

    def noting(layer: Any) -> Callable[..., Any]:
        call = layer.call

        def call_and_note(*inputs: Any, **options: Any) -> Any:
            output = call(*inputs, **options)
            groups = (x if isinstance(x, list | tuple) else [x] for x in inputs)
            note(layer, [tensor for group in groups for tensor in group], output)
            return output

        return call_and_note

    for layer in layers:
        vars(layer)["call"] = noting(layer)  # past Keras' tracking of attributes
    try:
        yield
    finally:
        for layer in layers:
            vars(layer).pop("call", None)
