"""One interface to every runtime: load(path) -> Predictor, for .keras, SavedModel, .onnx and .tflite.

A runtime imports its own library when it is asked for: a .onnx or .tflite file needs neither Keras nor TensorFlow.

    clf = vggkeras.load("runs/digits/export/model.onnx")
    probabilities = clf(images)
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from vggkeras.configs import rescaled_side
from vggkeras.errors import InputError
from vggkeras.terminal import quiet_stderr

MAX_BATCH = 64  # images a call of the runtime; more are passed in parts
PROVIDERS = ("cpu", "cuda")


@dataclass(frozen=True)
class Predictor:
    """A model in some runtime: uint8 RGB images `[N, H, W, C]` in, float32 class probabilities `[N, classes]` out.

    A dense one takes images of any size from `input_shape` up; what it answers is `models.dense_classifier`'s.
    """

    path: Path
    runtime: str  # keras, tensorflow, onnxruntime or litert
    version: str
    provider: str  # what really computes: cpu or cuda
    input_shape: tuple[int, int, int]  # (H, W, C)
    class_names: list[str]
    input_name: str
    output_name: str
    about: dict[str, Any] = field(repr=False)  # what travels in the file: mean RGB, scale, provenance
    run: Callable[[np.ndarray], np.ndarray] = field(repr=False)
    dense: bool = False  # whether it takes whole images
    make_dense: Callable[[], Predictor] | None = field(default=None, repr=False)

    def dense_form(self) -> Predictor:
        """The same network as a dense predictor; of a file, the one that `python -m export --dense` wrote beside it.

        Raises InputError when there is none, or it is of another model.
        """
        if self.dense:
            return self
        if self.make_dense is None:
            raise InputError(f"{self.path} has no dense form.")
        return self.make_dense()

    @property
    def scale(self) -> int:
        """Smallest side, px, that images are rescaled to before the central crop is taken."""
        return int(self.about.get("scale") or rescaled_side(max(self.input_shape[:2])))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Probabilities float32 `[N, classes]` of images uint8 `[N, H, W, C]`.

        Raises InputError (a ValueError) for an array of another shape or type: nothing is resized or rescaled here.
        """
        expected = f"uint8 images, 0-255, RGB, of shape [N, {', '.join(map(str, self.input_shape))}]"
        if self.dense:
            expected += " or larger"
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
            if isinstance(images, np.ndarray) and images.size and np.issubdtype(images.dtype, np.floating):
                received = f"{images.dtype} in [{images.min():.4g}, {images.max():.4g}]"
                advice = "give the image's bytes, before any scaling or mean subtraction (the model does that)"
            else:
                received = str(getattr(images, "dtype", type(images).__name__))
                advice = "convert with numpy.asarray(images, dtype='uint8') if they are 0-255 already"
            raise InputError(f"Expected {expected}; received {received}: {advice}.")
        fits = images.ndim == 4 and (
            all(side >= smallest for side, smallest in zip(images.shape[1:3], self.input_shape, strict=False))
            and images.shape[3] == self.input_shape[2]
            if self.dense
            else images.shape[1:] == self.input_shape
        )
        if not fits:
            raise InputError(
                f"Expected {expected}; received shape {list(images.shape)}: "
                "rescale and crop first (vggkeras.posteriors does), and add the batch axis to a single image."
            )
        parts = [self.run(images[i : i + MAX_BATCH]) for i in range(0, len(images), MAX_BATCH)]
        return np.concatenate(parts) if parts else np.empty((0, len(self.class_names)), np.float32)


def load(path: str | os.PathLike, provider: str = "cpu") -> Predictor:
    """Load a model in the runtime that serves it.

    Args:
        path: a .keras, .onnx or .tflite file, a SavedModel folder, or a run's folder (its model.keras).
        provider: cpu; cuda for ONNX Runtime, Keras and SavedModel on a GPU: refused where it does not really load.

    Raises:
        InputError (a ValueError): no such file, an unknown kind, a damaged file, a provider that is not there.
    """
    path = Path(path)
    if provider not in PROVIDERS:
        raise InputError(f"provider must be one of {', '.join(PROVIDERS)}; received {provider!r}.")
    if path.is_dir() and (path / "saved_model.pb").exists():
        return _load_saved_model(path, provider)
    if path.is_dir():
        if not (path / "model.keras").is_file():
            raise InputError(
                f"{path} holds neither model.keras nor a SavedModel: expected a run's folder, a SavedModel folder, or a "
                ".keras, .onnx or .tflite file; name the file itself."
            )
        path = path / "model.keras"
    if not path.is_file():
        raise InputError(
            f"No model at {path}: expected a run's folder, a .keras, .onnx or .tflite file, or a SavedModel folder; "
            "train one with `python -m vggkeras train`."
        )
    loaders = {".keras": _load_keras, ".onnx": _load_onnx, ".tflite": _load_tflite}
    if path.suffix not in loaders:
        raise InputError(
            f"{path}: expected a suffix of {', '.join(loaders)}, or a SavedModel folder; received {path.suffix!r}."
        )
    return loaders[path.suffix](path, provider)


def _class_names(about: dict[str, Any], classes: int) -> list[str]:
    return list(about.get("class_names") or map(str, range(classes)))


def _load_keras(path: Path, provider: str) -> Predictor:
    from vggkeras import models

    model, about = models.load_model(path)
    return keras_predictor(model, about, path, provider)


def keras_predictor(
    model: Any, about: dict[str, Any], path: Path = Path("model.keras"), provider: str = "cpu"
) -> Predictor:
    """A `Predictor` over a Keras model in memory, on any backend."""
    import keras

    dense = None in model.input_shape[1:]
    shape = tuple(about["input"]["smallest"] if dense else model.input_shape[1:])
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        _check_tensorflow_gpu(provider)
        # One trace for every batch size; Keras' own predict() compiles with XLA, which is slower on a CPU.
        function = tf.function(
            lambda images: model(images, training=False), input_signature=[tf.TensorSpec(model.input_shape, tf.uint8)]
        )

        def run(images: np.ndarray) -> np.ndarray:
            with tf.device("/GPU:0" if provider == "cuda" else "/CPU:0"):
                return function(tf.constant(images)).numpy()
    else:
        run = model.predict_on_batch

    def make_dense() -> Predictor:
        from vggkeras import models

        return keras_predictor(models.dense_classifier(model), _with_smallest(about, shape), path, provider)

    return Predictor(
        path,
        "keras",
        f"{keras.__version__} ({backend} {version(backend)})",
        provider,
        shape,
        _class_names(about, model.output_shape[-1]),
        "images",
        "probabilities",
        {"mean_rgb": list(model.get_layer("mean_rgb").mean), **about} if _has_mean(model) else about,
        run,
        dense,
        make_dense,
    )


def _with_smallest(about: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """What a dense form knows beside: the training size, below which its last feature map is empty."""
    return {**about, "input": {**about.get("input", {}), "smallest": list(shape)}}


def dense_path(path: Path) -> Path:
    """Where a file's dense form is: model.onnx -> model.dense.onnx."""
    return path.with_name(f"{path.stem}.dense{path.suffix}")


def _dense_file(path: Path, provider: str, about: dict[str, Any]) -> Callable[[], Predictor]:
    def load_dense() -> Predictor:
        file = dense_path(path)
        if not file.exists():
            kind = {".onnx": "onnx", ".tflite": "tflite"}.get(path.suffix, "saved_model")
            raise InputError(
                f"{path} takes images of one size, and there is no dense form of it at {file}: write it with "
                f"`python -m export --dense --format {kind} --model RUN`, or use --protocol center or multicrop."
            )
        found = load(file, provider)
        ours, theirs = (a.get("provenance", {}).get("model_sha256") for a in (about, found.about))
        if not found.dense or ours != theirs:
            raise InputError(f"{file} is not the dense form of {path}, but of another model: export both again.")
        return found

    return load_dense


def _smallest(path: Path, about: dict[str, Any]) -> tuple[int, int, int]:
    try:
        h, w, c = about["input"]["smallest"]
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{path} takes images of any size and does not say its training size: export it with "
            "`python -m export --dense`."
        ) from error
    return h, w, c


def _has_mean(model: Any) -> bool:
    return any(layer.name == "mean_rgb" for layer in model.layers)


def _check_tensorflow_gpu(provider: str) -> None:
    import tensorflow as tf

    if provider == "cuda" and not tf.config.list_physical_devices("GPU"):
        raise InputError(
            "provider cuda: TensorFlow sees no GPU here; install the extra `gpu` and the driver, or use cpu "
            "(`python -m vggkeras doctor` says what loads)."
        )


def _load_saved_model(path: Path, provider: str) -> Predictor:
    import tensorflow as tf

    _check_tensorflow_gpu(provider)
    try:
        loaded = tf.saved_model.load(str(path))
        function = loaded.signatures["serving_default"]
    except (tf.errors.OpError, OSError, KeyError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{path} cannot be loaded as a SavedModel ({reason}): export it again.") from error
    ((input_name, spec),) = function.structured_input_signature[1].items()
    ((output_name, output),) = function.structured_outputs.items()
    described = path / "assets.extra" / "vggkeras.json"
    about = json.loads(described.read_text(encoding="utf-8")) if described.exists() else {}

    def run(images: np.ndarray, loaded=loaded) -> np.ndarray:  # the signature holds its variables weakly
        with tf.device("/GPU:0" if provider == "cuda" else "/CPU:0"):
            return function(**{input_name: tf.constant(images)})[output_name].numpy()

    names, dense = _class_names(about, output.shape[-1]), None in spec.shape[1:]
    shape = _smallest(path, about) if dense else tuple(spec.shape[1:])
    known = ("tensorflow", tf.__version__, provider, shape, names, input_name, output_name, about, run)
    return Predictor(path, *known, dense, _dense_file(path, provider, about))


def _load_onnx(path: Path, provider: str) -> Predictor:
    import onnxruntime as ort

    wanted = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[provider]
    try:
        options = ort.SessionOptions()
        # Its plan of memory is of one shape; a dense network sees another every call.
        options.enable_mem_pattern = not path.stem.endswith(".dense")
        with quiet_stderr() as said:
            session = ort.InferenceSession(str(path), options, providers=[wanted])
        details, (output,) = session.get_inputs()[0], session.get_outputs()
    except Exception as error:  # onnxruntime's errors have no common base
        raise InputError(f"{path} cannot be loaded by ONNX Runtime ({str(error)[:300]}): export it again.") from error
    if wanted not in session.get_providers():  # ONNX Runtime falls back to the CPU in silence
        reason = re.search(r"error: (.*)", said[0])
        raise InputError(
            f"provider {provider}: ONNX Runtime did not load {wanted} ({reason[1] if reason else 'no reason given'}); it "
            f"has {', '.join(session.get_providers())}. Install the extra `gpu` and the driver, or use cpu "
            "(`python -m vggkeras doctor` says what loads)."
        )
    about = json.loads(session.get_modelmeta().custom_metadata_map.get("vggkeras", "{}"))

    def run(images: np.ndarray) -> np.ndarray:
        return session.run([output.name], {details.name: np.ascontiguousarray(images)})[0]

    names, dense = _class_names(about, output.shape[-1]), any(isinstance(side, str) for side in details.shape[1:])
    shape = _smallest(path, about) if dense else tuple(details.shape[1:])
    known = ("onnxruntime", ort.__version__, provider, shape, names, details.name, output.name, about, run)
    return Predictor(path, *known, dense, _dense_file(path, provider, about))


def _load_tflite(path: Path, provider: str) -> Predictor:
    from ai_edge_litert.interpreter import Interpreter

    if provider != "cpu":
        raise InputError(f"provider {provider}: .tflite files run on the CPU here; use the .onnx file on a GPU.")
    try:
        with quiet_stderr():  # it tells of its delegate, every time
            interpreter = Interpreter(str(path), num_threads=os.cpu_count())
            interpreter.allocate_tensors()
        (details,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{path} cannot be loaded by LiteRT ({str(error)[:300]}): export it again.") from error
    about: dict[str, Any] = {}
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            about = json.loads(archive.read("vggkeras.json")) if "vggkeras.json" in archive.namelist() else {}
    planned: tuple[int, ...] = ()

    def run(images: np.ndarray) -> np.ndarray:
        nonlocal planned
        if images.shape != planned:
            interpreter.resize_tensor_input(details["index"], images.shape)
            interpreter.allocate_tensors()
            planned = images.shape
        interpreter.set_tensor(details["index"], images)
        interpreter.invoke()
        return interpreter.get_tensor(output["index"])

    ((_, signature),) = interpreter.get_signature_list().items()
    names, (_, h, w, c) = _class_names(about, output["shape"][-1]), map(int, details["shape"])
    try:
        number = version("ai-edge-litert")
    except PackageNotFoundError:
        number = "unknown"
    dense = -1 in details["shape_signature"][1:]
    ends = (signature["inputs"][0], signature["outputs"][0])
    known = ("litert", number, "cpu", (h, w, c), names, *ends, about, run)
    return Predictor(path, *known, dense, _dense_file(path, provider, about))
