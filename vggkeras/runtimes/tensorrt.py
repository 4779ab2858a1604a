"""Choose the options of ONNX Runtime's TensorRT provider: caches, one profile, CUDA graphs.

TensorRT compiles an engine for one card, which takes minutes. It is kept, and taken again for the
same graph, card, versions and options:

    ~/.cache/vggkeras/tensorrt/CARD-smCC-tensorrtV-onnxruntimeV/SHA256-SIZES/
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from vggkeras import caches, files, nvidia
from vggkeras.card import INPUT_NAME, ModelCard
from vggkeras.errors import InputError
from vggkeras.runtimes.providers import Options

FLAGS = {"float16": "trt_fp16_enable", "int8": "trt_int8_enable"}  # by a file's precision


def check(path: Path, card: ModelCard) -> None:
    """Raise InputError for an int8 file that TensorRT cannot take."""
    if card.precision == "int8" and card.target != "tensorrt":
        raise InputError(
            f"{path}: TensorRT takes only symmetric int8, signed and with every zero point 0, and "
            "this file is for CPUs: export it with --format onnx --precision int8 --target "
            "tensorrt."
        )


def engine_options(path: Path, card: ModelCard, options: Options) -> dict[str, str]:
    """Return TensorRT's options for a file, and make the folder of its engine.

    Returns:
        {} where there is no card or no TensorRT: the session then says what is missing.

    Raises:
        InputError (a ValueError): there is no home to keep the engine in.
    """
    gpu, version, kept = nvidia.this_card(), nvidia.tensorrt_version(), caches.folder("tensorrt")
    if gpu is None or version is None:
        return {}
    if kept is None:
        raise InputError(
            "provider tensorrt: expected a folder for its engines; neither HOME nor XDG_CACHE_HOME "
            "names one: set XDG_CACHE_HOME to a folder."
        )
    import onnxruntime as ort

    machine = f"{gpu.name}-sm{gpu.compute_capability}-tensorrt{version}-onnxruntime"
    timings = kept / re.sub(r"[^\w.-]+", "-", machine + ort.__version__)
    settings = ["tf32" if options.tf32 else "float32"]
    settings += [f"batch{'x'.join(map(str, sorted(options.batch_sizes)))}"] * bool(
        options.batch_sizes
    )
    engines = timings / "-".join([files.sha256(path), *settings])
    engines.mkdir(mode=0o700, parents=True, exist_ok=True)
    return cache_options(engines, timings) | shape_options(card, options.batch_sizes)


def cache_options(engines: str | Path, timings: str | Path) -> dict[str, str]:
    """Return the options that keep engines, and the times of tried kernels, in folders."""
    return {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(engines),
        "trt_engine_cache_prefix": "vggkeras",
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(timings),
    }


def shape_options(card: ModelCard, batch_sizes: Sequence[int]) -> dict[str, str]:
    """Return the options of a file's precision, and of the batches that it is to be given.

    The one profile reaches from the smallest batch to the largest, and is tuned for the middle one
    (of an even number of sizes, the larger of the two). A single size is captured as a CUDA graph.
    """
    flags = {FLAGS[card.precision]: "True"} if card.precision in FLAGS else {}
    if not batch_sizes:
        return flags
    assert card.input_shape is not None
    sizes = sorted(batch_sizes)
    sides = "x".join(map(str, card.input_shape))
    for name, size in (("min", sizes[0]), ("opt", sizes[len(sizes) // 2]), ("max", sizes[-1])):
        flags[f"trt_profile_{name}_shapes"] = f"{INPUT_NAME}:{size}x{sides}"
    return flags | ({"trt_cuda_graph_enable": "True"} if len(sizes) == 1 else {})
