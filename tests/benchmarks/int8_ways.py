"""Compare four ways to store int8 kernels in ONNX: accuracy and speed on this processor.

    python tests/benchmarks/int8_ways.py runs/imagenette    (or d10.keras --data ... --images 100)

8 bits: S8 kernels with all 8 bits, which saturate where ONNX Runtime adds products in 16 bits (AVX2
and AVX-512 without VNNI). 7 bits: S8 kernels of half the range. U8: 8 bits with zero point 128.
Paired: what `python -m export` writes, 8 bits in which no two adjacent weights can saturate. Each
is shown the validation images, optimized and unoptimized; times are of one image and of batches of
8, all files in turn, and ratios the medians of the rounds'.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import onnx
import tyro
from onnx import numpy_helper
from rich.console import Console
from rich.table import Table

from export import artifact, quantize, samples, to_onnx, to_saved_model
from vggkeras import layers, models, processor, runtimes
from vggkeras.runtimes import keras
from vggkeras.runtimes import onnx as onnx_module


@dataclass
class Arguments:
    """Compare ways to store int8 kernels."""

    model: tyro.conf.Positional[Path]
    """A run's folder or a .keras file of vggkeras."""
    data: str | None = None
    """By default what the model was trained on."""
    images: int = 0
    """Validation images; 0 for all."""
    rounds: int = 15
    """Turns of every file."""
    seconds: float = 0.3
    """Of a turn, at least."""


def seven_bits(kernel, bias, scale, *, pairs):
    """Return kernels of half the range, -63 to 63."""
    largest = np.abs(kernel).reshape(-1, kernel.shape[-1]).max(axis=0)
    scales = np.where(largest > 0, largest / 63, 1).astype(np.float32)
    integers = np.rint(kernel / scales).astype(np.int8)
    biases = np.rint(bias.astype(np.float64) / (scales.astype(np.float64) * scale))
    return integers, scales, biases.astype(np.int32)


def eight_bits(kernel, bias, scale, *, pairs):
    """Return kernels of the whole range, whatever saturates."""
    return quantize.quantize_kernel(kernel, bias, scale)


def to_unsigned(path: Path) -> None:
    """Turn the S8 kernels of a file into U8 ones with zero point 128."""
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        if tensor.name.endswith((".kernel.int8", ".kernel.zero")):
            values = (numpy_helper.to_array(tensor).astype(np.int16) + 128).astype(np.uint8)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(proto, path)


def write_all(graph, plan, card, folder: Path) -> dict[str, Path]:
    """Write a file each way, and one in float32."""
    ways = {"float32": None, "paired": quantize.quantize_kernel, "8 bits": eight_bits}
    ways |= {"7 bits": seven_bits, "U8": eight_bits}
    paths = {}
    for name, way in ways.items():
        paths[name] = folder / f"{name.replace(' ', '-')}.onnx"
        to_onnx.quantize_kernel = way or quantize.quantize_kernel
        precision = "float32" if name == "float32" else "int8"
        to_onnx.write(graph, paths[name], replace(card, precision=precision), None, plan)
    to_onnx.quantize_kernel = quantize.quantize_kernel
    to_unsigned(paths["U8"])
    return paths


def seconds_of(predictors, images, rounds: int, seconds: float) -> dict[str, np.ndarray]:
    """Return seconds an image of every predictor, a number a round; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in predictors}
    for number in range(-1, rounds):
        for name in list(predictors)[:: -1 if number % 2 else 1]:
            start, calls = time.perf_counter(), 0
            while calls < 2 or time.perf_counter() - start < seconds:
                predictors[name](images)
                calls += 1
            if number >= 0:  # the first round warms up
                times[name].append((time.perf_counter() - start) / calls / len(images))
    return {name: np.array(values) for name, values in times.items()}


def main() -> None:
    """Write, ask, time, and print a row a way."""
    given, console = tyro.cli(Arguments), Console(width=160)
    source = given.model / "model.keras" if given.model.is_dir() else given.model
    network, card = models.load_model(source)
    graph = to_saved_model.inference_model(network)
    card = replace(card, mean_rgb=layers.mean_rgb(network), arch=card.arch or network.name)
    reference = keras.keras_predictor(network, card, source)
    reference, shown = samples.parity_images(reference, given.data, given.images, console)
    calibration = samples.calibration_images(reference, shown.data, None, console)[0]
    plan = quantize.calibrate(graph, calibration, 0)
    expected = reference(shown.images)
    accuracy = f", Keras {(expected.argmax(1) == shown.labels).mean():.2%}"
    table = Table(title=f"{processor.this_processor()}; {shown.evidence}{accuracy}")
    columns = ["kernels", "top-1", "agreement", "rms error", "largest"]
    columns += ["optimized - unoptimized: rms", "largest"]
    columns += ["1 image, x float32", "batches of 8, x float32"]
    for column in columns:
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        card = artifact.describe(card, reference, "", precision="int8")
        paths = write_all(graph, plan, card, Path(folder))
        predictors = {name: runtimes.load(path) for name, path in paths.items()}
        speeds = [
            seconds_of(predictors, shown.images[:count], given.rounds, given.seconds)
            for count in (1, 8)
        ]
        for name, predictor in predictors.items():
            p = predictor(shown.images)
            raw = onnx_module.load_unoptimized(paths[name])(shown.images[:256])
            error, apart = np.abs(p - expected), np.abs(p[:256] - raw)
            ratios = [np.median(times["float32"] / times[name]) for times in speeds]
            table.add_row(
                name,
                f"{(p.argmax(1) == shown.labels).mean():.2%}",
                f"{(p.argmax(1) == expected.argmax(1)).mean():.2%}",
                f"{np.sqrt(np.square(error).mean()):.1e}",
                f"{error.max():.1e}",
                f"{np.sqrt(np.square(apart).mean()):.1e}",
                f"{apart.max():.1e}",
                *(f"{ratio:.2f}" for ratio in ratios),
            )
    console.print(table)


if __name__ == "__main__":
    main()
