"""Load any image classifier, written by vggkeras or not.

    model = image_model.load("model.onnx")
    answers = model(images)  # [N, H, W, C], RGB, 0-255 -> float32 [N, classes]

Nothing is guessed about a model's preprocessing: it is given the numbers that the caller gives.
Only the type of these numbers and the axis of the channels follow the file's own input.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vggkeras import hub, runtimes
from vggkeras.card import ModelCard
from vggkeras.containers import DESCRIPTION
from vggkeras.errors import InputError
from vggkeras.runtimes import onnx as onnx_runtime
from vggkeras.runtimes import stderr, tflite
from vggkeras.runtimes.operators import check_operators

BATCH = 32  # images a call, where the file does not fix their number
CHANNELS = (1, 3)
FLOATS = ("float16", "float32", "float64")
WHOLE = ("uint8", "int32", "int64")  # types that take pixels 0-255 as they are
EXPECTED = "expected a .keras, .onnx or .tflite file, a SavedModel folder, or a run's folder"


@dataclass(frozen=True)
class ImageInput:
    """One input of a model."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]  # batch first; None where any number goes

    def __str__(self) -> str:
        """Return its type and shape as people write them: float32 [N, 48, 48, 3]."""
        batch = [str(side or "N") for side in self.shape[:1]]
        sides = [str(side or "any") for side in self.shape[1:]]
        return f"{self.dtype} [{', '.join([*batch, *sides])}]"

    @property
    def is_image(self) -> bool:
        """Return whether it takes images: bytes or floats, with 1 or 3 channels."""
        has_channels = len(self.shape) == 4 and (
            self.shape[3] in CHANNELS or self.shape[1] in CHANNELS
        )
        return has_channels and self.dtype in (*FLOATS, *WHOLE, "int8")


@dataclass(frozen=True)
class ImageModel:
    """A model with one image input and one output: scores, probabilities, features or boxes."""

    path: Path
    runtime: str
    input: ImageInput
    output_name: str
    card: ModelCard  # empty in a file that vggkeras did not write
    run: Callable[[np.ndarray], np.ndarray] = field(repr=False)  # an array of that shape and type
    kind: str = ""  # features (Appendix B) or boxes (Appendix A), where it gives no classes
    keras_model: Any = field(default=None, repr=False)  # for its layers

    @property
    def channels_first(self) -> bool:
        """Return whether images are `[N, C, H, W]`; channels come last where both ends fit."""
        return self.input.shape[3] not in CHANNELS

    @property
    def channels(self) -> int:
        """Return the number of channels, 1 or 3."""
        channels = self.input.shape[1 if self.channels_first else 3]
        assert channels is not None
        return channels

    @property
    def size(self) -> tuple[int | None, int | None]:
        """Return the height and width of its images, px; None where any goes."""
        h, w = self.input.shape[2:4] if self.channels_first else self.input.shape[1:3]
        return h, w

    @property
    def takes_floats(self) -> bool:
        """Return whether pixels may be other numbers than 0, 1, ... 255."""
        return self.input.dtype not in WHOLE

    def arranged(self, images: np.ndarray) -> np.ndarray:
        """Return images `[N, H, W, C]` in the model's own type and layout; the numbers stay."""
        # A quantized input is float32 here: `run` knows its scale and zero point.
        dtype = self.input.dtype
        array = images.astype("float32" if dtype == "int8" else dtype)
        return np.ascontiguousarray(array.transpose(0, 3, 1, 2) if self.channels_first else array)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the answers, float32 `[N, answers]`, to images `[N, H, W, C]`, RGB.

        A file of a fixed batch size is given batches of that size, the last one filled up.

        Raises:
            InputError (a ValueError): the runtime cannot run the model, or its output is not one
                row an image.
        """
        array, fixed, parts = self.arranged(images), self.input.shape[0], []
        size = fixed or BATCH
        for start in range(0, len(array), size):
            part = array[start : start + size]
            count = len(part)
            if fixed:
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


def load(path: str | os.PathLike[str], trust_saved_model: bool = False) -> ImageModel:
    """Load a model in the runtime that serves its format, on the CPU.

    Exported files of vggkeras go through `vggkeras.load`, as they are served. A .keras file is held
    as a Keras model, so that it can be given other numbers than bytes. `trust_saved_model` is that
    of `vggkeras.load`.

    Raises:
        InputError (a ValueError): no such file; a file that is no model, or whose loading would run
            code; several inputs or outputs; an input that is no image.
    """
    path = hub.local(path)
    if path.is_dir() and not (path / "saved_model.pb").exists():
        if not (path / "model.keras").is_file():
            raise InputError(f"{path} is a folder without a model: {EXPECTED}.")
        path = path / "model.keras"
    if not path.exists():
        raise InputError(f"No model at {path}: {EXPECTED}.")
    if path.is_dir():
        return _saved_model(path, trust_saved_model)
    loaders = {".keras": _keras, ".onnx": _onnx, ".tflite": _tflite}
    loader = loaders.get(path.suffix)
    if loader is None:
        raise InputError(f"{path}: {EXPECTED}; received the suffix {path.suffix!r}.")
    return loader(path)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _checked(
    path: Path, inputs: Sequence[ImageInput], outputs: Sequence[str]
) -> tuple[ImageInput, str]:
    """Return a model's one input, which takes images, and its one output.

    Raises:
        InputError (a ValueError): any other model.
    """
    received = ", ".join(f"{one.name} {one}" for one in inputs)
    if len(inputs) != 1 or len(outputs) != 1:
        raise InputError(
            f"{path}: expected one image input and one output; received {len(inputs)} input(s) "
            f"({received}) and {len(outputs)} output(s) ({', '.join(outputs)})."
        )
    if not inputs[0].is_image:
        raise InputError(
            f"{path}: expected an image input [N, H, W, C] or [N, C, H, W] of 1 or 3 channels, "
            f"bytes or floats; received {received}."
        )
    return inputs[0], outputs[0]


def _exported(path: Path, trust_saved_model: bool = False) -> ImageModel:
    """Load a file that `python -m export` wrote, as it is served."""
    # A file that was changed on purpose is compared, too.
    predictor = runtimes.load(path, verify=False, trust_saved_model=trust_saved_model)
    shape = (None, *predictor.input_shape)  # of a file for any size, the training size
    return ImageModel(
        path=path,
        runtime=predictor.runtime,
        input=ImageInput(predictor.input_name, "uint8", shape),
        output_name=predictor.output_name,
        card=predictor.card,
        # A map of boxes has one place, for images of that size.
        run=lambda images: (answers := predictor.run(images)).reshape(len(answers), -1),
        kind="" if predictor.form.gives_probabilities else predictor.output_name,
    )


def _keras(path: Path) -> ImageModel:
    import keras

    from vggkeras import models

    model, card = models.load_model(path)
    if not isinstance(model, keras.Model) or not model.inputs:
        raise InputError(f"{path}: expected a Keras model that says its input; received {model!r}.")
    inputs = [
        ImageInput(tensor.name, keras.backend.standardize_dtype(tensor.dtype), tuple(tensor.shape))
        for tensor in model.inputs
    ]
    # A Sequential has no output_names; an output is named after its layer, as Keras' exporters do.
    outputs = getattr(model, "output_names", [layer.name for layer in model.layers[-1:]])
    image, output = _checked(path, inputs, outputs)
    computed = {layer.compute_dtype for layer in model.layers}
    precision = "float16" if computed & {"float16", "bfloat16"} else "float32"
    return ImageModel(
        path=path,
        runtime="keras",
        input=image,
        output_name=output,
        card=replace(card, precision=precision),
        run=_keras_run(model),
        kind="boxes" if card.boxes else "",
        keras_model=model,
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


def _saved_model(path: Path, trust_saved_model: bool) -> ImageModel:
    if (path / "assets.extra" / DESCRIPTION).exists():
        return _exported(path, trust_saved_model)
    if not trust_saved_model:
        check_operators(path)
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
    inputs = [
        ImageInput(name, spec.dtype.name, () if spec.shape.rank is None else tuple(spec.shape))
        for name, spec in function.structured_input_signature[1].items()
    ]
    image, output = _checked(path, inputs, list(function.structured_outputs))

    def run(
        images: np.ndarray, loaded: Any = loaded
    ) -> np.ndarray:  # a signature holds variables weakly
        return function(**{image.name: tf.constant(images)})[output].numpy()

    return ImageModel(path, "tensorflow", image, output, ModelCard(), run)


def _onnx(path: Path) -> ImageModel:
    try:
        session = onnx_runtime.onnx_session(str(path))
    except Exception as error:  # onnxruntime's errors have no common base
        raise InputError(
            f"{path} is no model that ONNX Runtime can load ({_reason(error)})."
        ) from error
    if "vggkeras" in session.get_modelmeta().custom_metadata_map:
        return _exported(path)
    names = {"float": "float32", "double": "float64"}
    inputs = []
    for details in session.get_inputs():
        dtype = details.type.removeprefix("tensor(").removesuffix(")")
        # An axis of any length has a name, or none at all.
        sides = (side if isinstance(side, int) and side > 0 else None for side in details.shape)
        inputs.append(ImageInput(details.name, names.get(dtype, dtype), tuple(sides)))
    image, output = _checked(path, inputs, [output.name for output in session.get_outputs()])

    def run(images: np.ndarray) -> np.ndarray:
        return session.run([output], {image.name: images})[0]

    card = ModelCard(precision=_onnx_precision(path))
    return ImageModel(path, "onnxruntime", image, output, card, run)


def _onnx_precision(path: Path) -> str:
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    if any("Quantize" in node.op_type or node.op_type.startswith("QLinear") for node in graph.node):
        return "int8"
    halves = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in graph.initializer)
    return "float16" if halves else "float32"


def _tflite(path: Path) -> ImageModel:
    from ai_edge_litert.interpreter import Interpreter

    if zipfile.is_zipfile(path) and DESCRIPTION in zipfile.ZipFile(path).namelist():
        return _exported(path)
    try:
        with stderr.quiet_stderr():  # it tells of its delegate, every time
            interpreter = Interpreter(str(path), num_threads=os.cpu_count() or 1)
            interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{path} is no model that LiteRT can load ({_reason(error)}).") from error
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    image, output = _checked(
        path,
        [
            ImageInput(details["name"], details["dtype"].__name__, _tflite_shape(details))
            for details in inputs
        ],
        [details["name"] for details in outputs],
    )

    def run(images: np.ndarray) -> np.ndarray:
        index = inputs[0]["index"]
        if tuple(interpreter.get_input_details()[0]["shape"]) != images.shape:
            interpreter.resize_tensor_input(index, images.shape)
            interpreter.allocate_tensors()
        interpreter.set_tensor(index, tflite.quantized(images, inputs[0]))
        interpreter.invoke()
        return tflite.dequantized(interpreter.get_tensor(outputs[0]["index"]), outputs[0])

    types = {details["dtype"].__name__ for details in interpreter.get_tensor_details()}
    precision = "int8" if "int8" in types else "float16" if "float16" in types else "float32"
    return ImageModel(path, "litert", image, output, ModelCard(precision=precision), run)


def _tflite_shape(details: dict[str, Any]) -> tuple[int | None, ...]:
    shape = details["shape_signature"] if len(details["shape_signature"]) else details["shape"]
    return tuple(None if side < 0 else int(side) for side in shape)
