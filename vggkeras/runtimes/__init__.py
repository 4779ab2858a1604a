"""One interface to every runtime: `load(path)` returns a `Predictor` for any file of a model.

A runtime imports its own library when it is asked for: a .onnx or .tflite file needs NumPy, its
runtime, and nothing else.

    clf = vggkeras.load("runs/digits/export/model.onnx")
    probabilities = clf(images)
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vggkeras import hub
from vggkeras.configs import box_outputs
from vggkeras.errors import InputError
from vggkeras.runtimes.predictor import Predictor as Predictor
from vggkeras.runtimes.providers import INSTALL, ON_GPU, PROVIDERS, Options

SAVED_MODEL = "SavedModel"


@dataclass(frozen=True)
class Runtime:
    """What loads files of one format."""

    module: str  # of vggkeras.runtimes
    package: str  # that it imports
    providers: tuple[str, ...]  # where it computes


RUNTIMES = {
    ".keras": Runtime("keras", "keras", ("cpu", "cuda")),
    ".onnx": Runtime("onnx", "onnxruntime", PROVIDERS),
    ".tflite": Runtime("tflite", "ai_edge_litert", ("cpu",)),
    SAVED_MODEL: Runtime("saved_model", "tensorflow", ("cpu", "cuda")),
}
# Providers that are runtimes of their own, for the files of another.
ENGINES = {
    "mnn": Runtime("mnn", "MNN", ("mnn",)),
    "openvino": Runtime("openvino", "openvino", ("openvino",)),
}


def load(
    path: str | os.PathLike,
    provider: str = "cpu",
    *,
    threads: int | None = None,
    tf32: bool = False,
    verify: bool = True,
    trust_saved_model: bool = False,
    batch_sizes: Sequence[int] = (),
) -> Predictor:
    """Load a model in the runtime that serves it.

    A file that `python -m export` wrote is read once and compared with the seal inside it first.
    The predictor may be called from any thread: ONNX Runtime and TensorFlow answer several calls at
    once; of LiteRT, MNN, OpenVINO, of Keras on other backends than TensorFlow, and on a GPU, calls
    take turns.

    Args:
        path: a .keras, .onnx or .tflite file, a SavedModel folder, or a run's folder; or
            hf:USER/NAME[@REV][:FILE], a published file (see `hub.local`).
        provider: cpu; cuda for ONNX Runtime, Keras and SavedModel on a GPU; tensorrt for .onnx
            files. One that does not really load is refused, and so is a .onnx file of which it
            would leave a part to the CPU. mnn and openvino compute .onnx files on a CPU, instead of
            ONNX Runtime.
        threads: CPU threads of one operation, 1 or more; by default one for every core.
            TensorFlow's are the whole process', and fixed once it has started.
        tf32: let a GPU round the factors of its products to TensorFloat-32: faster, and some 1e-3
            from float32. Without effect on a CPU.
        verify: compare a file that vggkeras wrote with its seal; `Predictor.sealed` says the
            result.
        trust_saved_model: load a SavedModel even if it has operators that may touch files, sockets
            or Python: a SavedModel is a program.
        batch_sizes: of a .onnx file on a GPU: images are passed in batches of these sizes alone,
            the last one filled up. TensorRT builds one engine for all of them; a single size is
            captured as a CUDA graph.

    Raises:
        InputError (a ValueError): no such file, an unknown format, a damaged file, a
            SavedModel with operators that it should not need, a provider that
            is not there, threads, TF32 or batch sizes that cannot be had as asked.
    """
    sizes = tuple(batch_sizes)
    options = Options(provider, threads, tf32, verify, trust_saved_model, sizes)
    options.check()
    path, suffix = _file_of(hub.local(path))
    runtime = RUNTIMES[suffix]
    if provider not in runtime.providers:
        raise InputError(
            f"provider {provider}: {suffix} models run on {' or '.join(runtime.providers)}, and "
            f"{path} is one: give the .onnx file (`python -m export --format onnx` writes it)."
        )
    if sizes and suffix != ".onnx":
        raise InputError(f"batch sizes are of .onnx files; {path} is none: leave them out.")
    options.check_tf32()
    runtime = ENGINES.get(provider, runtime)
    _check_installed(path, runtime, provider)
    module = importlib.import_module(f"vggkeras.runtimes.{runtime.module}")
    predictor = module.load(path, replace(options, tf32=tf32 and provider in ON_GPU))
    _check_class_names(predictor)
    return predictor


def _check_class_names(predictor: Predictor) -> None:
    """Raise InputError where there are not as many class names as outputs."""
    named = len(predictor.card.class_names)
    outputs = box_outputs(predictor.boxes, named) if predictor.boxes else named
    if named and outputs != predictor.outputs and not predictor.features:
        raise InputError(
            f"{predictor.path} names {named} classes and has {predictor.outputs} outputs: it is "
            "damaged; train or export it again."
        )


def _check_installed(path: Path, runtime: Runtime, provider: str) -> None:
    """Raise InputError where the package that loads a file is not there."""
    if importlib.util.find_spec(runtime.package) is None:
        install = f"pip install {runtime.package.replace('_', '-')}"
        if provider in ENGINES:
            install = f"{INSTALL[provider]}, or use provider cpu"
        raise InputError(f"{path} needs a package that is not installed: {install}.")


def _file_of(path: Path) -> tuple[Path, str]:
    """Return the file or SavedModel folder that a path names, and its key in `RUNTIMES`."""
    if path.is_dir():
        if (path / "saved_model.pb").exists():
            return path, SAVED_MODEL
        if not (path / "model.keras").is_file():
            raise InputError(
                f"{path} holds neither model.keras nor a SavedModel: expected a run's folder, a "
                "SavedModel folder, or a .keras, .onnx or .tflite file; name the file itself."
            )
        return path / "model.keras", ".keras"
    if not path.exists():
        raise InputError(
            f"No model at {path}: expected a run's folder, a .keras, .onnx or .tflite file, or a "
            "SavedModel folder; train one with `python -m vggkeras train`."
        )
    if path.suffix not in RUNTIMES:
        raise InputError(
            f"{path}: expected a suffix of .keras, .onnx, .tflite, or a SavedModel folder; "
            f"received {path.suffix!r}."
        )
    return path, path.suffix
