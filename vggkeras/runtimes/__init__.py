"""One interface to every runtime: `load(path)` returns a `Predictor` for .keras, SavedModel, .onnx and .tflite files.

A runtime imports its own library when it is asked for: a .onnx or .tflite file needs NumPy, its runtime, and nothing
else.

    clf = vggkeras.load("runs/digits/export/model.onnx")
    probabilities = clf(images)
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path

from vggkeras.errors import InputError
from vggkeras.runtimes.predictor import Predictor as Predictor
from vggkeras.runtimes.providers import PROVIDERS, TF32_OVERRIDE

# The module that loads a kind of file, the package it imports, and where it computes.
KINDS = {
    ".keras": ("keras", "keras", ("cpu", "cuda")),
    ".onnx": ("onnx", "onnxruntime", PROVIDERS),
    ".tflite": ("tflite", "ai_edge_litert", ("cpu",)),
    "SavedModel": ("saved_model", "tensorflow", ("cpu", "cuda")),
}


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
    if kind not in KINDS:
        raise InputError(
            f"{path}: expected a suffix of .keras, .onnx, .tflite, or a SavedModel folder; received {path.suffix!r}."
        )
    module, package, served = KINDS[kind]
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
    loader = importlib.import_module(f"vggkeras.runtimes.{module}")
    return loader.load(path, provider, threads, tf32 and provider != "cpu")


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
