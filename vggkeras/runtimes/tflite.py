"""Load .tflite files in LiteRT, on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from vggkeras.card import form_of
from vggkeras.errors import InputError
from vggkeras.runtimes.forms import check_takes_bytes, forms_beside
from vggkeras.runtimes.predictor import Predictor, taking_turns
from vggkeras.runtimes.providers import Options, cores
from vggkeras.runtimes.seal import card_of
from vggkeras.runtimes.stderr import quiet_stderr


def load(path: Path, options: Options) -> Predictor:
    """Return a predictor over a .tflite file; see `vggkeras.load`.

    Calls from several threads take turns at one interpreter: each already computes on all of its
    threads, and another interpreter would pack the weights once more.
    """
    from ai_edge_litert.interpreter import Interpreter

    card, sealed = card_of(path, options.verify)
    threads = options.threads or cores()
    try:
        with quiet_stderr():  # it reports its delegate, every time
            interpreter = Interpreter(str(path), num_threads=threads)
            interpreter.allocate_tensors()
        inputs, output = interpreter.get_input_details(), interpreter.get_output_details()[0]
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"{path} cannot be loaded by LiteRT ({str(error)[:300]}): export it again."
        ) from error
    images = inputs[0]
    for_npus = card.target == "npu" and images["dtype"] == np.int8
    takes_bytes = for_npus or images["dtype"] == np.uint8
    check_takes_bytes(path, takes_bytes, [list(i["shape"]) for i in inputs])
    ((_, signature),) = interpreter.get_signature_list().items()
    form = form_of(-1 in images["shape_signature"][1:], signature["outputs"][0])
    _, height, width, channels = map(int, images["shape"])
    beside = forms_beside(path, card, lambda file: load(file, options))
    return Predictor(
        path=path,
        runtime="litert",
        version=_version(),
        provider="cpu",
        input_shape=(height, width, channels),
        outputs=int(output["shape"][-1]),
        input_name=signature["inputs"][0],
        output_name=signature["outputs"][0],
        card=card,
        run=taking_turns(_runner(interpreter, images, output)),
        form=form,
        make_form=None if form.takes_any_size else beside,
        threads=threads,
        sealed=sealed,
    )


def _runner(interpreter: Any, image: dict[str, Any], answer: dict[str, Any]) -> Callable:
    """Return a function from images to answers that allocates memory when their shape changes."""
    allocated: tuple[int, ...] = ()

    def run(images: np.ndarray) -> np.ndarray:
        nonlocal allocated
        if images.shape != allocated:
            interpreter.resize_tensor_input(image["index"], images.shape)
            interpreter.allocate_tensors()
            allocated = images.shape
        interpreter.set_tensor(image["index"], quantized(images, image))
        interpreter.invoke()
        return dequantized(interpreter.get_tensor(answer["index"]), answer)

    return run


def quantized(images: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    """Return the integers that stand for images, where LiteRT's input is int8."""
    if details["dtype"] != np.int8:
        return images
    scale, zero_point = details["quantization"]
    return np.rint(images / (scale or 1) + zero_point).clip(-128, 127).astype(np.int8)


def dequantized(values: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    """Return what LiteRT's integers stand for, float32; values of floats as they are."""
    scale, zero_point = details["quantization"]
    if not np.issubdtype(values.dtype, np.integer) or not scale:
        return values
    return (values.astype(np.float32) - zero_point) * np.float32(scale)


def _version() -> str:
    try:
        return version("ai-edge-litert")
    except PackageNotFoundError:
        return "unknown"
