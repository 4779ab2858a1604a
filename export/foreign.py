"""Load an image classifier of any make: .keras, .onnx, .tflite or a SavedModel folder.

    model = foreign.load(Path("model.onnx"))
    answers = model(images)  # [N, H, W, C], RGB, 0-255 -> float32 [N, classes]

Nothing is guessed about a model's preprocessing: it is given the numbers that the caller gives.
Only the type and the place of the channels follow the file's own input.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vggkeras import runtimes
from vggkeras.card import ModelCard
from vggkeras.errors import InputError
from vggkeras.runtimes import onnx as onnx_module
from vggkeras.runtimes import stderr

BATCH = 32  # images a call, where the file does not fix their number
CHANNELS = (1, 3)
FLOATS = ("float16", "float32", "float64")
WHOLE = ("uint8", "int32", "int64")  # types that take pixels 0-255 as they are
EXPECTED = "expected a .keras, .onnx or .tflite file, a SavedModel folder, or a run's folder"


@dataclass(frozen=True)
class ImageModel:
    """A model with one image input and one output of class scores, probabilities or features."""

    path: Path
    runtime: str
    input_name: str
    output_name: str
    shape: tuple[int | None, ...]  # of the input, batch first; None where any number goes
    dtype: str  # of the input
    card: ModelCard  # empty in a file that vggkeras did not write
    run: Callable[[np.ndarray], np.ndarray] = field(repr=False)  # an array of that shape and type
    features: bool = False  # whether it gives features (Appendix B) and no classes
    kept: Any = field(default=None, repr=False)  # the Keras model, for its layers

    @property
    def channels_first(self) -> bool:
        """Whether images are `[N, C, H, W]`; where both ends could be channels, they come last."""
        return self.shape[3] not in CHANNELS

    @property
    def channels(self) -> int:
        """1 or 3."""
        channels = self.shape[1 if self.channels_first else 3]
        assert channels is not None
        return channels

    @property
    def size(self) -> tuple[int | None, int | None]:
        """Height and width of its images, px; None where any goes."""
        h, w = self.shape[2:4] if self.channels_first else self.shape[1:3]
        return h, w

    @property
    def takes_floats(self) -> bool:
        """Whether pixels may be other numbers than 0, 1, ... 255."""
        return self.dtype not in WHOLE

    @property
    def input_text(self) -> str:
        """The input as people write it: float32 [N, 48, 48, 3]."""
        return _input_text(self.dtype, self.shape)

    def arranged(self, images: np.ndarray) -> np.ndarray:
        """Return images `[N, H, W, C]` in the model's own type and layout; the numbers stay."""
        # A quantized input is float32 here: `run` knows its scale and zero point.
        array = images.astype("float32" if self.dtype == "int8" else self.dtype)
        return np.ascontiguousarray(array.transpose(0, 3, 1, 2) if self.channels_first else array)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the answers, float32 `[N, answers]`, to images `[N, H, W, C]`, RGB.

        A file of a fixed batch size is given batches of that size, the last one filled up.

        Raises:
            InputError (a ValueError): the runtime cannot run the model, or its output is not one
                row an image.
        """
        array, size, parts = self.arranged(images), self.shape[0] or BATCH, []
        for start in range(0, len(array), size):
            part = array[start : start + size]
            count = len(part)
            if self.shape[0]:
                part = np.concatenate([part, np.repeat(part[-1:], size - count, axis=0)])
            try:
                output = np.asarray(self.run(part))
            except Exception as error:  # the runtimes' errors have no common base
                raise InputError(
                    f"{self.path} cannot be run on {part.dtype} {list(part.shape)} "
                    f"({_reason(error)}): expected an image classifier; export it again."
                ) from error
            sides = output.shape[1:]
            if len(output) != len(part) or not sides or output[0].size != max(sides):
                raise InputError(
                    f"{self.path}: expected one output [N, classes]; received "
                    f"{list(output.shape)} for {len(part)} images: give a classifier."
                )
            parts.append(output.reshape(len(part), -1)[:count].astype(np.float32))
        return np.concatenate(parts)


def load(path: str | os.PathLike) -> ImageModel:
    """Load a model in the runtime that serves its format, on the CPU.

    Exported files of vggkeras go through `vggkeras.load`, as they are served. A .keras file is held
    as a Keras model, so that it can be given other numbers than bytes.

    Raises:
        InputError (a ValueError): no such file; a file that is no model, or whose loading would run
            code; several inputs or outputs; an input that is no image.
    """
    path = Path(path)
    if path.is_dir() and not (path / "saved_model.pb").exists():
        if not (path / "model.keras").is_file():
            raise InputError(f"{path} is a folder without a model: {EXPECTED}.")
        path = path / "model.keras"
    if not path.exists():
        raise InputError(f"No model at {path}: {EXPECTED}.")
    loaders = {".keras": _keras, ".onnx": _onnx, ".tflite": _tflite}
    loader = _saved_model if path.is_dir() else loaders.get(path.suffix)
    if loader is None:
        raise InputError(f"{path}: {EXPECTED}; received the suffix {path.suffix!r}.")
    return loader(path)


def _input_text(dtype: str, shape: Sequence[int | None]) -> str:
    sides = [str(side or "any") for side in shape[1:]]
    return f"{dtype} [{', '.join([*(str(side or 'N') for side in shape[:1]), *sides])}]"


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _checked(
    path: Path,
    inputs: Sequence[tuple[str, str, tuple[int | None, ...]]],  # name, type, shape
    outputs: Sequence[str],
) -> tuple[str, str, tuple[int | None, ...]]:
    """Return a model's one input, which takes images; raise InputError for any other model."""
    received = ", ".join(f"{name} {_input_text(kind, shape)}" for name, kind, shape in inputs)
    if len(inputs) != 1 or len(outputs) != 1:
        raise InputError(
            f"{path}: expected one image input and one output; received {len(inputs)} input(s) "
            f"({received}) and {len(outputs)} output(s) ({', '.join(outputs)})."
        )
    (name, kind, shape) = inputs[0]
    image = len(shape) == 4 and (shape[3] in CHANNELS or shape[1] in CHANNELS)
    if not image or kind not in (*FLOATS, *WHOLE, "int8"):
        raise InputError(
            f"{path}: expected an image input [N, H, W, C] or [N, C, H, W] of 1 or 3 channels, "
            f"bytes or floats; received {received}."
        )
    return name, kind, shape


def _of_predictor(path: Path) -> ImageModel:
    """A file that `python -m export` wrote."""
    predictor = runtimes.load(path)
    return ImageModel(
        path,
        predictor.runtime,
        predictor.input_name,
        predictor.output_name,
        (None, *predictor.input_shape),  # of a dense form, the training size
        "uint8",
        predictor.card,
        predictor.run,
        bool(predictor.features),
    )


def _keras(path: Path) -> ImageModel:
    import keras

    from vggkeras import models

    model, card = models.load_model(path)
    if not isinstance(model, keras.Model) or not model.inputs:
        raise InputError(f"{path}: expected a Keras model that says its input; received {model!r}.")
    inputs = [(i.name, keras.backend.standardize_dtype(i.dtype), i.shape) for i in model.inputs]
    # A Sequential has no output_names; an output is named after its layer, as Keras' exporters do.
    outputs = getattr(model, "output_names", [layer.name for layer in model.layers[-1:]])
    name, kind, shape = _checked(path, inputs, outputs)
    computed = {layer.compute_dtype for layer in model.layers}
    precision = "float16" if computed & {"float16", "bfloat16"} else "float32"
    return ImageModel(
        path,
        "keras",
        name,
        outputs[0],
        tuple(shape),
        kind,
        replace(card, precision=precision),
        _keras_run(model),
        kept=model,
    )


def _keras_run(model: Any) -> Callable[[np.ndarray], np.ndarray]:
    import keras

    def call(images: Any) -> Any:
        return model(images, training=False)

    if keras.backend.backend() == "tensorflow":  # a graph is several times as fast
        import tensorflow as tf

        (image,) = model.inputs
        call = tf.function(call, input_signature=[tf.TensorSpec(image.shape, image.dtype)])
    return lambda images: keras.ops.convert_to_numpy(call(images))


def _saved_model(path: Path) -> ImageModel:
    if (path / "assets.extra" / "vggkeras.json").exists():
        return _of_predictor(path)
    import tensorflow as tf

    try:
        loaded = tf.saved_model.load(str(path))
    except (tf.errors.OpError, OSError, KeyError, ValueError, AttributeError) as error:
        raise InputError(f"{path} cannot be loaded as a SavedModel ({_reason(error)}).") from error
    signatures = {name: loaded.signatures[name] for name in loaded.signatures}
    function = signatures.get("serving_default", signatures.get("serve"))
    if function is None:
        raise InputError(
            f"{path}: expected a signature serving_default or serve; received "
            f"{', '.join(signatures) or 'none'}."
        )
    specs = function.structured_input_signature[1]
    outputs = list(function.structured_outputs)
    inputs = [
        (n, s.dtype.name, () if s.shape.rank is None else tuple(s.shape)) for n, s in specs.items()
    ]
    name, kind, shape = _checked(path, inputs, outputs)

    def run(images: np.ndarray, loaded=loaded) -> np.ndarray:  # a signature holds variables weakly
        return function(**{name: tf.constant(images)})[outputs[0]].numpy()

    return ImageModel(path, "tensorflow", name, outputs[0], shape, kind, ModelCard(), run)


def _onnx(path: Path) -> ImageModel:
    try:
        session = onnx_module.onnx_session(str(path))
    except Exception as error:  # onnxruntime's errors have no common base
        raise InputError(
            f"{path} is no model that ONNX Runtime can load ({_reason(error)})."
        ) from error
    if "vggkeras" in session.get_modelmeta().custom_metadata_map:
        return _of_predictor(path)
    names = {"float": "float32", "double": "float64"}
    inputs = []
    for details in session.get_inputs():
        kind = details.type.removeprefix("tensor(").removesuffix(")")
        # An axis of any length has a name, or none at all.
        sides = tuple(
            side if isinstance(side, int) and side > 0 else None for side in details.shape
        )
        inputs.append((details.name, names.get(kind, kind), sides))
    outputs = [output.name for output in session.get_outputs()]
    name, kind, shape = _checked(path, inputs, outputs)
    return ImageModel(
        path,
        "onnxruntime",
        name,
        outputs[0],
        shape,
        kind,
        ModelCard(precision=_onnx_precision(path)),
        lambda images: session.run(outputs, {name: images})[0],
    )


def _onnx_precision(path: Path) -> str:
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    if any("Quantize" in node.op_type or node.op_type.startswith("QLinear") for node in graph.node):
        return "int8"
    halves = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in graph.initializer)
    return "float16" if halves else "float32"


def _tflite(path: Path) -> ImageModel:
    from ai_edge_litert.interpreter import Interpreter

    if zipfile.is_zipfile(path) and "vggkeras.json" in zipfile.ZipFile(path).namelist():
        return _of_predictor(path)
    try:
        with stderr.quiet_stderr():  # it tells of its delegate, every time
            interpreter = Interpreter(str(path), num_threads=os.cpu_count() or 1)
            interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{path} is no model that LiteRT can load ({_reason(error)}).") from error
    ends = (interpreter.get_input_details(), interpreter.get_output_details())
    inputs = [
        (d["name"], d["dtype"].__name__, tuple(None if s < 0 else int(s) for s in _signature(d)))
        for d in ends[0]
    ]
    name, kind, shape = _checked(path, inputs, [details["name"] for details in ends[1]])
    (given,), (answer,) = ends

    def run(images: np.ndarray) -> np.ndarray:
        if tuple(interpreter.get_input_details()[0]["shape"]) != images.shape:
            interpreter.resize_tensor_input(given["index"], images.shape)
            interpreter.allocate_tensors()
        interpreter.set_tensor(given["index"], _quantized(images, given))
        interpreter.invoke()
        return _dequantized(interpreter.get_tensor(answer["index"]), answer)

    types = {details["dtype"].__name__ for details in interpreter.get_tensor_details()}
    precision = "int8" if "int8" in types else "float16" if "float16" in types else "float32"
    described = ModelCard(precision=precision)
    return ImageModel(path, "litert", name, answer["name"], shape, kind, described, run)


def _signature(details: dict[str, Any]) -> np.ndarray:
    return details["shape_signature"] if len(details["shape_signature"]) else details["shape"]


def _quantized(images: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    """The integers that stand for float32 images, where a TFLite input is int8."""
    if details["dtype"] != np.int8:
        return images
    scale, zero = details["quantization"]
    return np.rint(images / (scale or 1) + zero).clip(-128, 127).astype(np.int8)


def _dequantized(value: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    scale, zero = details["quantization"]
    integers = np.issubdtype(value.dtype, np.integer) and scale
    return (value.astype(np.float32) - zero) * scale if integers else value
