"""One interface to every runtime: load(path) -> Predictor, for .keras, SavedModel, .onnx and .tflite.

A runtime imports its own library when it is asked for: a .onnx or .tflite file needs numpy, its runtime, and nothing
else.

    clf = vggkeras.load("runs/digits/export/model.onnx")
    probabilities = clf(images)
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import re
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from vggkeras.configs import rescaled_side
from vggkeras.errors import InputError

MAX_BATCH = 64  # images a call of the runtime; more are passed in parts
PROVIDERS = ("cpu", "cuda", "tensorrt")
ONNX_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
INSTALL = {
    "cuda": "pip install 'vggkeras[gpu]' on Linux with an NVIDIA driver",
    "tensorrt": "pip install 'vggkeras[gpu]' 'tensorrt-cu13<11', its folder tensorrt_libs on LD_LIBRARY_PATH",
}
TF32_OVERRIDE = "NVIDIA_TF32_OVERRIDE"  # NVIDIA's libraries read it once a process; 0 forbids TF32


@dataclass(frozen=True)
class Predictor:
    """A model in some runtime: uint8 RGB images `[N, H, W, C]` in, float32 class probabilities `[N, classes]` out.

    A dense one takes images of any size from `input_shape` up; what it answers is `models.dense_classifier`'s. One of
    features is dense too, and answers `models.dense_features`', float32 `[N, units]`, instead of probabilities.
    """

    path: Path
    runtime: str  # keras, tensorflow, onnxruntime or litert
    version: str
    provider: str  # what really computes: cpu, cuda or tensorrt
    input_shape: tuple[int, int, int]  # (H, W, C)
    class_names: list[str]
    input_name: str
    output_name: str
    about: dict[str, Any] = field(
        repr=False
    )  # what travels in the file: mean RGB, scale, provenance
    run: Callable[[np.ndarray], np.ndarray] = field(repr=False)
    dense: bool = False  # whether it takes whole images
    make_dense: Callable[[], Predictor] | None = field(default=None, repr=False)
    threads: int | None = None  # CPU threads of one operation; None: not known
    tf32: bool = (
        False  # whether a GPU may round the factors of its products to TensorFloat-32 (10 bits)
    )
    features: int = 0  # how many of them it answers; 0: it answers probabilities
    make_features: Callable[[], Predictor] | None = field(default=None, repr=False)

    def dense_form(self) -> Predictor:
        """The same network as a dense predictor; of a file, the one that `python -m export --dense` wrote beside it.

        Raises InputError when there is none, it is of another model, or this one gives features.
        """
        check_probabilities(self)
        if self.dense:
            return self
        if self.make_dense is None:
            raise InputError(f"{self.path} has no dense form.")
        return self.make_dense()

    def features_form(self) -> Predictor:
        """The same network's very deep features (Appendix B); of a file, the one that `python -m export --features` wrote.

        Raises InputError when there is none, or it is of another model.
        """
        if self.features:
            return self
        if self.make_features is None:
            raise InputError(
                f"{self.path} has no form that gives features: give the classifier that it is a form of."
            )
        return self.make_features()

    @property
    def scale(self) -> int:
        """Smallest side, px, that images are rescaled to before the central crop is taken."""
        return int(self.about.get("scale") or rescaled_side(max(self.input_shape[:2])))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Probabilities float32 `[N, classes]` of images uint8 `[N, H, W, C]`.

        Raises InputError (a ValueError) for an array of another shape or type: nothing is resized or rescaled here.
        """
        expected = (
            f"uint8 images, 0-255, RGB, of shape [N, {', '.join(map(str, self.input_shape))}]"
        )
        if self.dense:
            expected += " or larger"
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
            if (
                isinstance(images, np.ndarray)
                and images.size
                and np.issubdtype(images.dtype, np.floating)
            ):
                received = f"{images.dtype} in [{images.min():.4g}, {images.max():.4g}]"
                advice = "give the image's bytes, before any scaling or mean subtraction (the model does that)"
            else:
                received = str(getattr(images, "dtype", type(images).__name__))
                advice = (
                    "convert with numpy.asarray(images, dtype='uint8') if they are 0-255 already"
                )
            raise InputError(f"Expected {expected}; received {received}: {advice}.")
        fits = images.ndim == 4 and (
            all(
                side >= smallest
                for side, smallest in zip(images.shape[1:3], self.input_shape, strict=False)
            )
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
        return (
            np.concatenate(parts)
            if parts
            else np.empty((0, self.features or len(self.class_names)), np.float32)
        )

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Probabilities float32 `[N, classes]` of each batch uint8 `[N, H, W, C]`, in order; N may change.

        A batch is taken when its answer is asked for, and none is kept. On a GPU the batches of .onnx files go through
        the same memory of the card for as long as their shape stays the same. Raises InputError as a call does.
        """
        return map(self, batches)


def check_probabilities(predictor: Predictor) -> None:
    """Raises InputError when a predictor gives features, of which no class can be told."""
    if predictor.features:
        named = predictor.path.with_name(predictor.path.name.replace(".features", ""))
        classifier = "the one it was made of" if named == predictor.path else named
        raise InputError(
            f"{predictor.path} gives {predictor.features} features, not probabilities: expected a classifier; give "
            f"{classifier}, or the run's folder."
        )


def load(
    path: str | os.PathLike,
    provider: str = "cpu",
    *,
    threads: int | None = None,
    tf32: bool = False,
) -> Predictor:
    """Load a model in the runtime that serves it.

    Args:
        path: a .keras, .onnx or .tflite file, a SavedModel folder, or a run's folder (its model.keras).
        provider: cpu; cuda for ONNX Runtime, Keras and SavedModel on a GPU; tensorrt for .onnx files. One that does not
            really load is refused, and a .onnx file of which it would leave a part to the CPU.
        threads: CPU threads of one operation, 1 or more; by default one for every core. TensorFlow's are the process',
            and fixed once it has started.
        tf32: let a GPU round the factors of its products to TensorFloat-32: faster, and some 1e-3 from float32. Without
            effect on a CPU.

    Raises:
        InputError (a ValueError): no such file, an unknown kind, a damaged file, a provider that is not there, threads or
            TF32 that cannot be had as asked.
    """
    path = Path(path)
    if provider not in PROVIDERS:
        raise InputError(f"provider must be one of {', '.join(PROVIDERS)}; received {provider!r}.")
    if threads is not None and threads < 1:
        raise InputError(f"threads must be 1 or more; received {threads}.")
    # The loader, what it imports, and where it computes.
    kinds: dict[str, tuple[Callable[..., Predictor], str, tuple[str, ...]]] = {
        ".keras": (_load_keras, "keras", ("cpu", "cuda")),
        ".onnx": (_load_onnx, "onnxruntime", PROVIDERS),
        ".tflite": (_load_tflite, "ai_edge_litert", ("cpu",)),
        "SavedModel": (_load_saved_model, "tensorflow", ("cpu", "cuda")),
    }
    kind = "SavedModel" if path.is_dir() and (path / "saved_model.pb").exists() else ".keras"
    if path.is_dir() and kind == ".keras":
        if not (path / "model.keras").is_file():
            raise InputError(
                f"{path} holds neither model.keras nor a SavedModel: expected a run's folder, a SavedModel folder, or a "
                ".keras, .onnx or .tflite file; name the file itself."
            )
        path = path / "model.keras"
    if not path.exists():
        raise InputError(
            f"No model at {path}: expected a run's folder, a .keras, .onnx or .tflite file, or a SavedModel folder; "
            "train one with `python -m vggkeras train`."
        )
    if path.is_file():
        kind = path.suffix
    if kind not in kinds:
        raise InputError(
            f"{path}: expected a suffix of .keras, .onnx, .tflite, or a SavedModel folder; received {path.suffix!r}."
        )
    loader, package, served = kinds[kind]
    if provider not in served:
        raise InputError(
            f"provider {provider}: {kind} models run on {' or '.join(served)}, and {path} is one: give the .onnx file "
            "(`python -m export --format onnx` writes it)."
        )
    _check_tf32(provider, tf32)
    if importlib.util.find_spec(package) is None:
        raise InputError(
            f"{path} needs a package that is not installed: pip install {package.replace('_', '-')}."
        )
    return loader(path, provider, threads, tf32 and provider != "cpu")


def _check_tf32(provider: str, tf32: bool) -> None:
    forbidden = os.environ.get(TF32_OVERRIDE) == "0"
    if tf32 and provider != "cpu" and forbidden:
        raise InputError(
            f"tf32 was asked for, and {TF32_OVERRIDE}=0 forbids it: unset it and start again."
        )
    if (
        provider == "tensorrt" and not tf32 and not forbidden
    ):  # ONNX Runtime has no option to turn it off there
        raise InputError(
            f"provider tensorrt computes in TF32 unless the environment says {TF32_OVERRIDE}=0 when the process starts: "
            "set it and start again, or load with tf32=True."
        )


@contextlib.contextmanager
def quiet_stderr() -> Iterator[list[str]]:
    """Keep back what native libraries write to stderr while a block runs; it is in the yielded list afterwards."""
    said: list[str] = []
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        stderr = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            file.seek(0)
            said.append(file.read().decode(errors="replace"))


def _class_names(about: dict[str, Any], classes: int) -> list[str]:
    return list(about.get("class_names") or map(str, range(classes)))


def _answers(
    about: dict[str, Any], output_name: str, count: int, dense: bool
) -> tuple[list[str], int]:
    """The class names of what a file answers, and no features, or no class names and how many features."""
    if dense and output_name == "features":
        return [], count
    return _class_names(about, count), 0


def _load_keras(path: Path, provider: str, threads: int | None, tf32: bool) -> Predictor:
    import keras

    if keras.backend.backend() == "tensorflow":  # which starts with the first weight
        _check_tensorflow_gpu(provider)
        _tensorflow_threads(threads)
    from vggkeras import models

    model, about = models.load_model(path)
    return keras_predictor(model, about, path, provider, threads=threads, tf32=tf32)


def keras_predictor(
    model: Any,
    about: dict[str, Any],
    path: Path = Path("model.keras"),
    provider: str = "cpu",
    *,
    threads: int | None = None,
    tf32: bool = False,
) -> Predictor:
    """A `Predictor` over a Keras model in memory, on any backend; the options are `load`'s."""
    import keras

    from vggkeras import models

    inputs = getattr(model, "inputs", None) or [model.input_spec]
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        raise InputError(
            f"{path} has {len(inputs)} inputs, the first of shape {list(inputs[0].shape)}: expected one, images "
            "[batch, H, W, C]; give an image classifier."
        )
    dense = None in model.input_shape[1:]
    shape = _smallest(path, about) if dense else tuple(model.input_shape[1:])
    backend = keras.backend.backend()
    known = threads
    if backend == "tensorflow":
        import tensorflow as tf

        _check_tensorflow_gpu(provider)
        known = _tensorflow_threads(threads)
        # One trace for every batch size; Keras' own predict() compiles with XLA, which is slower on a CPU.
        function = tf.function(
            lambda images: model(images, training=False),
            input_signature=[tf.TensorSpec(model.input_shape, tf.uint8)],
        )

        def run(images: np.ndarray) -> np.ndarray:
            with _tensorflow_device(provider, tf32):
                return function(tf.constant(images)).numpy()
    elif provider != "cpu" or threads is not None:
        asked = f"provider {provider}" if provider != "cpu" else f"{threads} threads"
        raise InputError(
            f"{asked}: a .keras file has them with Keras' TensorFlow backend only, and this is {backend}: set "
            "KERAS_BACKEND=tensorflow and start again, or use the .onnx file."
        )
    else:
        run = model.predict_on_batch

    def make_dense() -> Predictor:
        network = models.dense_classifier(model)
        return keras_predictor(
            network, _with_smallest(about, shape), path, provider, threads=threads, tf32=tf32
        )

    def make_features() -> Predictor:
        network = models.dense_features(model)
        found = keras_predictor(
            network, _with_smallest(about, shape), path, provider, threads=threads, tf32=tf32
        )
        return replace(
            found, class_names=[], output_name="features", features=network.output_shape[-1]
        )

    return Predictor(
        path,
        "keras",
        f"{keras.__version__} ({backend} {version(backend)})",
        provider,
        shape,
        _class_names(about, model.output_shape[-1]),
        "images",
        "probabilities",
        {"mean_rgb": list(models.mean_rgb(model)), **about} if _has_mean(model) else about,
        run,
        dense,
        make_dense,
        known,
        tf32,
        make_features=None if dense else make_features,
    )


def _with_smallest(about: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """What a dense form knows beside: the training size, below which its last feature map is empty."""
    return {**about, "input": {**about.get("input", {}), "smallest": list(shape)}}


def dense_path(path: Path) -> Path:
    """Where a file's dense form is: model.onnx -> model.dense.onnx."""
    return _form_path(path, "dense")


def features_path(path: Path) -> Path:
    """Where the form of a file that gives features is: model.onnx -> model.features.onnx."""
    return _form_path(path, "features")


def _form_path(path: Path, form: str) -> Path:
    return path.with_name(f"{path.stem}.{form}{path.suffix}")


def _forms(
    path: Path,
    about: dict[str, Any],
    dense: bool,
    features: int,
    loader: Callable[[Path], Predictor],
) -> dict[str, Any]:
    """What a file is, and the forms of it that lie beside it, loaded when asked for: fields of its `Predictor`."""

    def load_form(form: str, does: str, otherwise: str = "") -> Predictor:
        file = _form_path(path, form)
        if not file.exists():
            kind = {".onnx": "onnx", ".tflite": "tflite"}.get(path.suffix, "saved_model")
            precision = about.get("precision", "float32")
            wanted = "" if precision == "float32" else f" --precision {precision}"
            raise InputError(
                f"{path} {does}, and there is no {form} form of it at {file}: write it with "
                f"`python -m export --{form} --format {kind}{wanted} --model RUN`{otherwise}."
            )
        found = loader(file)
        ours, theirs = (a.get("provenance", {}).get("model_sha256") for a in (about, found.about))
        if not found.dense or bool(found.features) != (form == "features") or ours != theirs:
            raise InputError(
                f"{file} is not the {form} form of {path}, but of another model: export both again."
            )
        return found

    fields: dict[str, Any] = {"dense": dense, "features": features}
    if not dense:
        size, otherwise = "takes images of one size", ", or use --protocol center or multicrop"
        fields["make_dense"] = lambda: load_form("dense", size, otherwise)
        fields["make_features"] = lambda: load_form("features", "gives probabilities")
    return fields


def _smallest(path: Path, about: dict[str, Any]) -> tuple[int, int, int]:
    try:
        h, w, c = about["input"]["smallest"]
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{path} takes images of any size and does not say its training size: export it with "
            "`python -m export --dense` or --features."
        ) from error
    return h, w, c


def _check_takes_bytes(path: Path, is_uint8: bool, shapes: Sequence[Sequence[Any]]) -> None:
    """Raises InputError for a model that does not take one array of images as bytes, as exported files do."""
    if not is_uint8 or len(shapes) != 1 or len(shapes[0]) != 4:
        what = (
            f"{len(shapes)} inputs" if len(shapes) > 1 else f"an input of shape {list(shapes[0])}"
        )
        raise InputError(
            f"{path} has {what}{'' if is_uint8 else ', not of bytes'}: expected uint8 images [batch, H, W, C], as in files "
            "of `python -m export`; export its .keras file with that, or compare it with `python -m export.compare`."
        )


def _has_mean(model: Any) -> bool:
    return any(layer.name == "mean_rgb" for layer in model.layers)


def _check_tensorflow_gpu(provider: str) -> None:
    import tensorflow as tf

    if provider == "cuda" and not tf.config.list_physical_devices("GPU"):
        raise InputError(
            f"provider cuda: TensorFlow sees no GPU here: {INSTALL['cuda']}, or use cpu "
            "(`python -m vggkeras doctor` says what loads)."
        )


def _tensorflow_threads(threads: int | None) -> int:
    """Set and return how many threads TensorFlow's operations have; they are fixed once it has started."""
    import tensorflow as tf

    has = tf.config.threading.get_intra_op_parallelism_threads()  # 0: one for every core
    wanted = threads or has or _cores()
    try:
        tf.config.threading.set_intra_op_parallelism_threads(wanted)
    except RuntimeError as error:
        if wanted != (has or _cores()):
            raise InputError(
                f"{threads} threads: TensorFlow has started in this process with {has or _cores()}, which is then fixed: "
                "load the model before anything else uses TensorFlow, or in a process of its own."
            ) from error
    return wanted


def _cores() -> int:
    return os.cpu_count() or 1


@contextlib.contextmanager
def _tensorflow_device(provider: str, tf32: bool) -> Iterator[None]:
    """Compute on a device; on a GPU with or without TF32, which is the process' and is put back afterwards."""
    import tensorflow as tf

    if provider == "cpu":
        with tf.device("/CPU:0"):
            yield
        return
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(tf32)
    try:
        with tf.device("/GPU:0"):
            yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)


def _load_saved_model(path: Path, provider: str, threads: int | None, tf32: bool) -> Predictor:
    import tensorflow as tf

    _check_tensorflow_gpu(provider)
    has = _tensorflow_threads(threads)
    try:
        loaded = tf.saved_model.load(str(path))
        function = loaded.signatures["serving_default"]
    except (tf.errors.OpError, OSError, KeyError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{path} cannot be loaded as a SavedModel ({reason}): export it again."
        ) from error
    inputs = function.structured_input_signature[1]
    input_name, spec = next(iter(inputs.items()))
    output_name, output = next(iter(function.structured_outputs.items()))
    _check_takes_bytes(path, spec.dtype == tf.uint8, [list(i.shape) for i in inputs.values()])
    described = path / "assets.extra" / "vggkeras.json"
    about = json.loads(described.read_text(encoding="utf-8")) if described.exists() else {}

    def run(
        images: np.ndarray, loaded=loaded
    ) -> np.ndarray:  # the signature holds its variables weakly
        with _tensorflow_device(provider, tf32):
            return function(**{input_name: tf.constant(images)})[output_name].numpy()

    dense = None in spec.shape[1:]
    shape = _smallest(path, about) if dense else tuple(spec.shape[1:])
    names, features = _answers(about, output_name, output.shape[-1], dense)
    known = (
        "tensorflow",
        tf.__version__,
        provider,
        shape,
        names,
        input_name,
        output_name,
        about,
        run,
    )
    again = functools.partial(load, provider=provider, threads=threads, tf32=tf32)
    return Predictor(
        path, *known, threads=has, tf32=tf32, **_forms(path, about, dense, features, again)
    )


def _load_onnx(
    path: Path, provider: str, threads: int | None, tf32: bool, optimize: bool = True
) -> Predictor:
    import onnxruntime as ort

    has = threads or _cores()
    try:
        dense = path.stem.endswith((".dense", ".features"))
        session, reason = onnx_session(str(path), provider, has, tf32, dense, optimize)
    except Exception as error:  # onnxruntime's errors have no common base
        if "fallback to CPU EP" in str(error):
            raise InputError(
                f"provider {provider}: a part of {path} would run on the CPU, as ONNX Runtime cannot run it there: use "
                "cpu, or export the model again."
            ) from error
        raise InputError(
            f"{path} cannot be loaded by ONNX Runtime ({str(error)[:300]}): export it again."
        ) from error
    if session is None:
        raise InputError(
            f"provider {provider}: ONNX Runtime {ort.__version__} did not load {ONNX_PROVIDERS[provider]}: {reason}. "
            f"Needed: {INSTALL[provider]}; or use cpu (`python -m vggkeras doctor` says what loads)."
        )
    details, output = session.get_inputs()[0], session.get_outputs()[0]
    _check_takes_bytes(path, "uint8" in details.type, [i.shape for i in session.get_inputs()])
    about = json.loads(session.get_modelmeta().custom_metadata_map.get("vggkeras", "{}"))
    dense = any(isinstance(side, str) for side in details.shape[1:])
    shape = _smallest(path, about) if dense else tuple(details.shape[1:])
    names, features = _answers(about, output.name, output.shape[-1], dense)

    def plain(images: np.ndarray) -> np.ndarray:
        return session.run([output.name], {details.name: np.ascontiguousarray(images)})[0]

    run = plain if provider == "cpu" else bound(session, "cuda")
    known = (
        "onnxruntime",
        ort.__version__,
        provider,
        shape,
        names,
        details.name,
        output.name,
        about,
        run,
    )
    again = functools.partial(load, provider=provider, threads=threads, tf32=tf32)
    return Predictor(
        path, *known, threads=has, tf32=tf32, **_forms(path, about, dense, features, again)
    )


def load_unoptimized(path: str | os.PathLike) -> Predictor:
    """Load a .onnx file on the CPU without any optimization of its graph.

    Of an int8 file everything then computes in float32 between quantized values: what the integers should give.
    """
    return _load_onnx(Path(path), "cpu", None, False, optimize=False)


def onnx_session(
    model: str | bytes,
    provider: str,
    threads: int = 1,
    tf32: bool = False,
    dense: bool = False,
    optimize: bool = True,
) -> tuple[Any, str]:
    """(a session of ONNX Runtime all of whose operations run on a provider, ""); (None, why), if that does not load.

    Args:
        model: the file's path, or its bytes.
        provider: one of `PROVIDERS`.
        threads: CPU threads of one operation.
        tf32: allow TF32 in CUDA's kernels.
        dense: images of another size every call.
        optimize: fuse operations, and compute in integers what is quantized.

    Raises:
        Exception: whatever ONNX Runtime raises for a file that it cannot run, or not whole on this provider.
    """
    import onnxruntime as ort

    wanted = ONNX_PROVIDERS[provider]
    if wanted not in ort.get_available_providers():
        return None, f"this build of it has {', '.join(ort.get_available_providers())}"
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_mem_pattern = not dense  # its plan of memory is of one shape
    providers: list[Any] = [wanted]
    if provider != "cpu":
        cuda = {"use_tf32": str(int(tf32))}
        if dense:
            cuda["cudnn_conv_algo_search"] = (
                "HEURISTIC"  # the default tries every algorithm at every new size
            )
        # TensorRT leaves to CUDA what it cannot run: still on the card.
        providers = [*([wanted] if provider == "tensorrt" else []), (ONNX_PROVIDERS["cuda"], cuda)]
        # Creating the session then fails where any operation is left to the CPU. Ours leave none: Cast, Sub, Transpose,
        # Conv, Relu, LRN, MaxPool, Reshape by a constant, Gemm, GlobalAveragePool, Flatten, Softmax and (De)QuantizeLinear have
        # CUDA kernels, and there is no Shape node, which ONNX Runtime puts on the CPU on purpose.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        if provider == "cuda":
            # Of int8 files all is fake quantisation there, and int32 biases have no CUDA kernel: this folds what is
            # constant into float32.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
    session, failure = None, None
    with (
        quiet_stderr() as said,
        contextlib.redirect_stdout(None),
    ):  # the reasons go to both, and are given below
        if provider != "cpu":
            ort.preload_dlls()  # those that the extra `gpu` installed, which the system's loader does not find
        try:
            # Without its own fallback, which takes the CPU where a provider fails, even in the middle of a run.
            session = ort.InferenceSession(model, options, providers=providers, enable_fallback=0)
        except Exception as error:  # onnxruntime's errors have no common base
            failure = error
    if session is not None and wanted in session.get_providers():
        return session, ""
    reason = _not_loaded(f"{said[0]}\n{failure or ''}")
    if failure is not None and (provider == "cpu" or not reason):
        raise failure
    return None, reason or "it gives no reason"


def _not_loaded(said: str) -> str:
    """Why a provider did not load, from what ONNX Runtime said; "" where it does not say so."""
    if library := re.search(r"(\S+): cannot open shared object file", said):
        return f"{library[1]}{' (the NVIDIA driver)' if library[1] == 'libcuda.so.1' else ''} is missing"
    if failed := re.search(
        r"(CUDA|CUDNN|CUBLAS) (failure|error) \d+: [^;\n]*", said, re.IGNORECASE
    ):
        return failed[0].strip()
    if failed := re.search(r"(Failed to (?:load library|create) [^\n]*)", said):
        return failed[1].strip()[:200]
    return ""


def bound(session: Any, device: str) -> Callable[[np.ndarray], np.ndarray]:
    """`session.run` by way of memory of a device (cpu, cuda), kept for as long as the images' shape stays the same.

    Takes uint8 images `[N, H, W, C]` and gives float32 `[N, classes]`, or features; calls from several threads take turns.
    """
    from onnxruntime import OrtValue

    (details,), (output,) = session.get_inputs(), session.get_outputs()
    binding, turn = session.io_binding(), threading.Lock()
    given = answer = None

    def run(images: np.ndarray) -> np.ndarray:
        nonlocal given, answer
        with turn:
            if given is None or tuple(given.shape()) != images.shape:
                # ortvalue_from_numpy would, on a CPU, be the caller's array, and the next batch be written into that.
                given = OrtValue.ortvalue_from_shape_and_type(images.shape, np.uint8, device)
                answer = OrtValue.ortvalue_from_shape_and_type(
                    (len(images), output.shape[-1]), np.float32, device
                )
                binding.bind_ortvalue_input(details.name, given)
                binding.bind_ortvalue_output(output.name, answer)
            given.update_inplace(np.ascontiguousarray(images))
            session.run_with_iobinding(binding)
            return np.array(answer.numpy())

    return run


def _load_tflite(path: Path, provider: str, threads: int | None, tf32: bool) -> Predictor:
    from ai_edge_litert.interpreter import Interpreter

    has = threads or _cores()
    try:
        with quiet_stderr():  # it tells of its delegate, every time
            interpreter = Interpreter(str(path), num_threads=has)
            interpreter.allocate_tensors()
        inputs = interpreter.get_input_details()
        details, output = inputs[0], interpreter.get_output_details()[0]
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"{path} cannot be loaded by LiteRT ({str(error)[:300]}): export it again."
        ) from error
    _check_takes_bytes(path, details["dtype"] == np.uint8, [list(i["shape"]) for i in inputs])
    about: dict[str, Any] = {}
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            about = (
                json.loads(archive.read("vggkeras.json"))
                if "vggkeras.json" in archive.namelist()
                else {}
            )
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
    _, h, w, c = map(int, details["shape"])
    try:
        number = version("ai-edge-litert")
    except PackageNotFoundError:
        number = "unknown"
    dense = -1 in details["shape_signature"][1:]
    ends = (signature["inputs"][0], signature["outputs"][0])
    names, features = _answers(about, ends[1], int(output["shape"][-1]), dense)
    known = ("litert", number, "cpu", (h, w, c), names, *ends, about, run)
    again = functools.partial(load, threads=threads)
    return Predictor(
        path, *known, threads=has, tf32=tf32, **_forms(path, about, dense, features, again)
    )
