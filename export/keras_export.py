"""Keras' own exporters, for image classifiers that `vggkeras.build()` did not make.

`check_classifier` says what can be exported, `inference_model` wraps it so that it takes bytes and
gives probabilities, `write_onnx` and `write_tflite` write that; so does `to_saved_model.write`.

    python -m export --model ANY.keras --input torch
"""

from __future__ import annotations

import contextlib
import gc
import json
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import psutil
from keras import layers

from export import Pixels, flatbuffer, metadata, operations
from vggkeras import configs, models
from vggkeras.card import ModelCard
from vggkeras.data import imagenet
from vggkeras.errors import InputError
from vggkeras.runtimes import stderr

# Memory that an export takes beside the loaded model, bytes: (fixed, for each byte of weights).
# Measured: peak less what the process held, in MB, by MB of weights, on two busy cores:
#   ONNX    EfficientNetB0 21: 500, ResNet50 103: 1,850, convolutions 198: 3,480, Dense 200: 3,540
#   TFLite  ResNet50 103: 910, Dense 200: 740, VGG-16 553: 3,800
# ONNX without `_collecting_garbage`: 1,990, 6,700, 10,700 and 12,900.
MEMORY = {"ONNX": (0.5e9, 20), "TFLite": (0.5e9, 6)}
APPLICATIONS = {"VGG16": "D", "VGG19": "E"}  # of keras.applications -> configuration
# Layers that leave scores what they are: what comes before them tells.
PASSING = (layers.Average, layers.Dropout, layers.Flatten, layers.GlobalAveragePooling2D)
PASSING += (layers.Identity, layers.Rescaling, layers.Reshape)  # type: ignore[assignment]


class Scaling(NamedTuple):
    """What is done to RGB 0-255: (images - mean) * scale, a number a channel; then BGR or not."""

    scale: tuple[float, ...]
    mean: tuple[float, ...]
    bgr: bool = False


# keras.applications.imagenet_utils.preprocess_input calls them caffe, tf (here -1-1) and torch.
SCALINGS: dict[Pixels, Scaling] = {
    "0-255": Scaling((1.0,), (0.0,)),
    "0-1": Scaling((1 / 255,), (0.0,)),
    "-1-1": Scaling((1 / 127.5,), (127.5,)),
    "caffe": Scaling((1.0, 1.0, 1.0), configs.IMAGENET_MEAN_RGB, bgr=True),
    "torch": Scaling(
        (1 / (255 * 0.229), 1 / (255 * 0.224), 1 / (255 * 0.225)),
        (255 * 0.485, 255 * 0.456, 255 * 0.406),
    ),
}


def check_classifier(model: keras.Model) -> None:
    """Check that a Keras model is an image classifier which Keras' exporters can write.

    Raises:
        InputError (a ValueError): a model that was never built; several inputs or outputs; an input
            that is not images `[batch, H, W, C]` of one size, channels last; an output that is not
            `[batch, classes]`, 2 classes or more; layers that do not compute in float32.
    """
    inputs = _inputs(model)
    if not inputs:
        raise _refusal(model, "was never built", "a built one; call it once and save it again")
    if len(inputs) > 1:
        raise _refusal(model, f"has {len(inputs)} inputs", "images alone; leave out the others")
    _check_images(model, tuple(inputs[0].shape))
    for layer in all_layers(model):
        mode, dtype = getattr(layer, "quantization_mode", None), layer.compute_dtype
        if mode or dtype in ("float16", "bfloat16", "float64"):
            policy = "float32; build it under keras.config.set_dtype_policy('float32') and copy"
            received = f"has a layer {layer.name} that computes in {mode or dtype}"
            raise _refusal(model, received, f"{policy} the weights with set_weights()")
    outputs: Any = getattr(model, "outputs", None) or model.compute_output_spec(inputs[0])
    outputs = keras.tree.flatten(outputs)
    if len(outputs) > 1:
        raise _refusal(model, f"has {len(outputs)} outputs", "one; export a model of that one")
    shape = tuple(outputs[0].shape)
    if len(shape) != 2 or shape[1] is None or shape[1] < 2:
        expected = "[batch, classes], 2 classes or more; end it in Dense(classes, 'softmax')"
        raise _refusal(model, f"gives {_text(shape)}", expected)


def _check_images(model: keras.Model, shape: tuple[int | None, ...]) -> None:
    """Raise InputError unless an input's shape is that of images, channels last, of one size."""
    if len(shape) != 4:
        expected = "images [batch, H, W, C]; give an image classifier"
        raise _refusal(model, f"takes {_text(shape)}", expected)
    formats = {getattr(layer, "data_format", None) for layer in all_layers(model)}
    if "channels_first" in formats or (shape[1] in (1, 3) and shape[3] not in (1, 3)):
        expected = "[batch, H, W, C]; build it with data_format='channels_last', copy the weights"
        raise _refusal(model, f"takes {_text(shape)}, channels first", expected)
    if None in shape[1:]:
        expected = "one size; build it with an input_shape like (224, 224, 3), copy the weights"
        raise _refusal(model, f"takes {_text(shape)}, images of any size", expected)


def _refusal(model: keras.Model, received: str, expected: str) -> InputError:
    return InputError(f"The model {model.name!r} {received}: expected {expected}.")


def _text(shape: tuple[int | None, ...]) -> str:
    return f"[{', '.join(['batch', *(str(side or 'any') for side in shape[1:])])}]"


def _inputs(model: keras.Model) -> list[Any]:
    """Return a model's symbolic inputs; a subclassed one knows what it was built on."""
    if inputs := getattr(model, "inputs", None):
        return list(inputs)
    config = (model.get_build_config() or {}) if model.built else {}
    shapes = config.get("shapes_dict") or {"input": config.get("input_shape")}
    return [keras.KerasTensor((None, *shape[1:]), "float32") for shape in shapes.values() if shape]


def all_layers(model: keras.Model) -> Iterator[keras.Layer]:
    """Yield a model's layers, and those of the models in it."""
    for layer in model.layers:
        yield layer
        if isinstance(layer, keras.Model):
            yield from all_layers(layer)


def ends_in_scores(model: keras.Model) -> bool:
    """Return whether a model gives class scores (logits): whether its last activation is linear.

    False where that cannot be seen, as in a subclassed model or after an operation that is no
    layer: `check_answers` finds scores by their range, but no soft-max that is one too many.
    """
    outputs: Any = getattr(model, "outputs", None)
    return bool(outputs) and _are_scores(outputs[0])


def _are_scores(tensor: Any) -> bool:
    # Keras has no public way from a tensor to the layer that gives it.
    operation, node, _ = tensor._keras_history
    if isinstance(operation, keras.Model):
        return ends_in_scores(operation)
    if isinstance(operation, PASSING):
        return all(map(_are_scores, operation._inbound_nodes[node].input_tensors))
    activation = getattr(operation, "activation", None)
    return activation is not None and keras.activations.serialize(activation) == "linear"


def inference_model(
    model: keras.Model, pixels: Pixels = "0-255", logits: bool | None = None
) -> keras.Model:
    """Wrap a classifier so that it takes images as bytes and gives class probabilities.

    The result takes `images`, uint8 `[batch, H, W, C]`, 0-255, RGB, and gives {"probabilities":
    float32 `[batch, classes]`}. The model is in it as it is: its weights are shared, not copied.

    Args:
        model: what `check_classifier` accepts.
        pixels: what the model takes: 0-255, 0-1 or -1-1; caffe, BGR less the ImageNet mean; torch,
            0-1 less the ImageNet mean, over its deviation.
        logits: whether it gives class scores, which get a soft-max; by default `ends_in_scores`.

    Raises:
        InputError (a ValueError): `pixels` that the model's channels or input type cannot have.
    """
    (taken,) = _inputs(model)
    shape, scaling = tuple(taken.shape[1:]), SCALINGS[pixels]
    if len(scaling.scale) not in (1, shape[-1]):
        expected = f"3 with --input {pixels}; give 0-255, 0-1 or -1-1"
        raise _refusal(model, f"has {shape[-1]} channels", expected)
    if pixels != "0-255" and not keras.backend.is_float_dtype(taken.dtype):
        expected = f"float32 with --input {pixels}; leave out --input, for its scaling is inside"
        raise _refusal(model, f"takes {taken.dtype}", expected)
    images = keras.Input(shape, dtype="uint8", name="images")
    x = keras.ops.cast(images, taken.dtype)
    if pixels != "0-255":
        scale, mean = np.array(scaling.scale), np.array(scaling.mean)
        offset = (-mean * scale).tolist()
        x = layers.Rescaling(scale.tolist(), offset, dtype="float32", name="scaled")(x)
    if scaling.bgr:
        x = x[..., ::-1]
    x = model(x, training=False)
    if ends_in_scores(model) if logits is None else logits:
        x = layers.Softmax(dtype="float32", name="softmax")(x)
    return keras.Model(images, {"probabilities": x}, name=model.name)


def check_answers(answers: np.ndarray, scores: bool) -> None:
    """Check that answers to real images, float32 `[N, classes]`, are class probabilities.

    `scores` says whether a soft-max was added already. Raises InputError (a ValueError) for
    answers that are NaN, infinite, outside [0, 1], or do not sum to 1 within 1e-3.
    """
    if count := int((~np.isfinite(answers).all(axis=1)).sum()):
        raise InputError(
            f"The model gives NaN or infinite answers to {count} of {len(answers)} images: "
            "expected probabilities; check its weights, and what it takes (--input)."
        )
    sums, low, high = answers.sum(axis=1), answers.min(), answers.max()
    inside = low >= 0 and high <= 1 + 1e-3
    if inside and np.abs(sums - 1).max() <= 1e-3:
        return
    if inside:
        advice = "sigmoids of several labels do not choose one class; end it in a soft-max"
    elif scores:
        advice = "the soft-max is not over classes; end it in Dense(classes)"
    else:
        advice = "if these are class scores, give --logits"
    raise InputError(
        f"The model's answers lie in [{low:.4g}, {high:.4g}] and sum to {sums.min():.4g} to "
        f"{sums.max():.4g}: expected probabilities in [0, 1] that sum to 1; {advice}."
    )


def applications_network(model: keras.Model) -> str | None:
    """Return VGG16 or VGG19 for a model with exactly keras.applications' layers; None for others.

    With include_top; of any weights, classes and size of images; soft-max or class scores.
    """
    if len(getattr(model, "inputs", None) or ()) != 1 or not hasattr(model.layers[-1], "units"):
        return None
    shape, chain = tuple(model.inputs[0].shape[1:]), model.layers[1:]
    if len(shape) != 3 or None in shape or shape[2] != 3 or min(shape[:2]) < 32:
        return None
    for layer in chain:
        activations = ("softmax", "linear") if layer.name == "predictions" else ("relu",)
        if layer.weights and (
            type(layer) not in (layers.Conv2D, layers.Dense)
            or keras.activations.serialize(layer.activation) not in activations
            or getattr(layer, "kernel_size", (3, 3)) != (3, 3)
        ):
            return None
    received = [(layer.name, tuple(layer.output.shape[1:])) for layer in chain]
    for name, arch in APPLICATIONS.items():
        plan = configs.plan(arch, (shape[0], shape[1], 3), max(2, chain[-1].units))
        if received == [(step.name, step.output_shape) for step in plan]:
            return name
    return None


def lean(model: keras.Model, pixels: Pixels = "caffe") -> tuple[keras.Model, ModelCard]:
    """Return keras.applications' VGG16 or VGG19 as a network of `build()`, and what it is.

    The network takes RGB, 0-255. The preprocessing for `pixels` (caffe is keras.applications' own)
    goes into its mean and first kernel, exactly: padding comes after it in both. The weights are a
    copy; `model` is one that `applications_network` names.
    """
    name = applications_network(model)
    assert name is not None
    arch, scaling, classes = APPLICATIONS[name], SCALINGS[pixels], model.output_shape[-1]
    mean = np.broadcast_to(scaling.mean, 3).tolist()
    network = models.build(arch, model.input_shape[1:], classes, mean_rgb=mean, init="zeros")
    for layer in model.layers:
        weights = layer.get_weights()
        if layer.name == "block1_conv1":  # its kernel is [h, w, channels, filters]
            kernel = weights[0][:, :, ::-1] if scaling.bgr else weights[0]
            weights[0] = kernel * np.reshape(scaling.scale, (-1, 1)).astype(np.float32)
        if weights:
            network.get_layer(layer.name).set_weights(weights)
    labels = tuple(imagenet.class_names()) if classes == imagenet.CLASSES else ()
    return network, ModelCard(labels, arch=arch, pretrained=f"keras.applications {name}")


def write_onnx(
    model: keras.Model, path: Path, card: ModelCard, opset: int | None = None, plan: Any = None
) -> None:
    """Write what `inference_model` made as ONNX, float32, checked by onnx.checker.

    Args are those of `to_onnx.write`; `plan` is not used, for int8 is not written.

    Raises:
        InputError (a ValueError): a file above 2 GB, too little memory, an unknown operation.
        OSError: the file cannot be written.
    """
    import onnx
    from tf2onnx import convert, utils

    _check_fits(model, "ONNX")
    assert convert  # importing it counts up the number below
    utils.INTERNAL_NAME = 1  # goes into names: so one model gets the same ones every time
    with _one_line_errors(model, "ONNX"), _collecting_garbage():
        _export(model, path, "onnx", opset_version=opset or 18)
        onnx.checker.check_model(str(path), full_check=True)
    proto = onnx.load(str(path))
    if len(proto.graph.input) > 1:
        received = "holds a tensor as an attribute, which becomes an input in ONNX"
        raise _refusal(model, received, "a weight; export --format tflite or saved_model")
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    proto.graph.name, proto.graph.doc_string = model.name, ""  # tf2onnx's has a random number
    proto.producer_name, proto.producer_version = "vggkeras", card.written_with
    labels = {"labels": json.dumps(card.class_names)} if card.class_names else {}
    onnx.helper.set_model_props(proto, {**labels, "vggkeras": json.dumps(card.to_description())})
    onnx.save(proto, str(path))


def write_tflite(
    model: keras.Model, path: Path, card: ModelCard, opset: int | None = None, plan: Any = None
) -> None:
    """Write what `inference_model` made as TFLite, float32, with built-in operators alone.

    Arguments and errors are those of `write_onnx`; TFLite has no opset.
    """
    from ai_edge_litert import schema_py_generated as schema

    weights = _check_fits(model, "TFLite")
    with _one_line_errors(model, "TFLite"):
        _export(model, path, "litert")
    graph = schema.ModelT.InitFromPackedBuf(path.read_bytes())
    custom = sorted({code.customCode.decode() for code in graph.operatorCodes if code.customCode})
    if custom:
        path.unlink()
        names = ", ".join(name.removeprefix("Flex") for name in custom)
        expected = "TFLite's built-in operators alone; export --format onnx or saved_model"
        raise _refusal(model, f"needs {names}", expected)
    (subgraph,) = graph.subgraphs
    subgraph.tensors[subgraph.inputs[0]].name = b"images"
    subgraph.tensors[subgraph.outputs[0]].name = b"probabilities"
    # The converter's own metadata has numbers that another process need not give.
    graph.metadata = [m for m in graph.metadata or () if m.name != b"CONVERSION_METADATA"]
    graph.description = f"vggkeras {card.written_with}"
    graph.buffers = [
        flatbuffer.Buffer(operations.Constant.of(buffer.data) if buffer.data is not None else None)
        for buffer in graph.buffers
    ]
    flatbuffer.save(graph, path, weights)
    metadata.append_labels(path, card)


def _export(model: keras.Model, path: Path, format: str, **options: Any) -> None:
    import tensorflow as tf

    for layer in all_layers(model):
        if isinstance(layer, layers.Normalization):  # tf2onnx takes the tensors it holds for inputs
            layer.mean, layer.variance = np.asarray(layer.mean), np.asarray(layer.variance)
    images = tf.TensorSpec([None, *model.input_shape[1:]], tf.uint8, name="images")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.export(str(path), format, verbose=False, input_signature=[images], **options)


def _check_fits(model: keras.Model, kind: str) -> int:
    """Return the bytes of a model's weights. Raise InputError where they do not fit."""
    weights = operations.check_size(model, "float32", kind)
    fixed, factor = MEMORY[kind]
    needed, available = fixed + factor * weights, psutil.virtual_memory().available
    if needed > available:
        received = (
            f"has {weights / 1e6:.0f} MB of weights, for which Keras' {kind} exporter needs about "
            f"{needed / 1e9:.1f} GB of memory, and {available / 1e9:.1f} GB is available"
        )
        others = "saved_model or tflite" if kind == "ONNX" else "saved_model"
        raise _refusal(model, received, f"more; export --format {others}, which needs less")
    return weights


@contextlib.contextmanager
def _one_line_errors(model: keras.Model, kind: str) -> Iterator[None]:
    """Keep back what converters write to stderr, and turn what they raise into an InputError."""
    try:
        with stderr.quiet_stderr():
            yield
    except (OSError, MemoryError):
        raise
    except Exception as error:  # the converters' errors have no common base
        reason = " ".join(str(error).split())[:300]
        received = f"cannot be written as {kind} by Keras ({type(error).__name__}: {reason})"
        expected = f"operations that {kind} has; export --format saved_model, which has all"
        raise _refusal(model, received, expected) from error


@contextlib.contextmanager
def _collecting_garbage() -> Iterator[None]:
    """Collect cyclic garbage ten times a second while a block runs.

    tf2onnx copies its whole graph, weights and all, before each of some fifty optimizations. The
    old copies are cyclic, of few objects and large buffers; Python's collector counts objects.
    """
    done = threading.Event()

    def collect() -> None:
        while not done.wait(0.1):
            gc.collect()

    gc.freeze()  # what was there before need not be searched each time
    thread = threading.Thread(target=collect)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        gc.unfreeze()
