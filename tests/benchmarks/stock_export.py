"""Compare the ONNX and TFLite files of vggkeras and of Keras' own export: ms a call with one image.

    python tests/benchmarks/stock_export.py --width 0.25

Keras' own export of the whole of VGG-16 does not fit 24 GB; a quarter of its filters does.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import vggkeras
from export import artifact, to_onnx, to_saved_model, to_tflite
from vggkeras import layers
from vggkeras.card import ModelCard
from vggkeras.runtimes import keras, stderr


def main(
    arch: str = "D", width: float = 0.25, fc_units: int = 1024, rounds: int = 40, threads: int = 2
) -> None:
    """Write the files, then call each in turn.

    Args:
        arch: of Table 1, at 224 px.
        width: of its filters.
        fc_units: of fc1 and fc2.
        rounds: how often each file is called, five calls a time.
        threads: of each runtime.
    """
    model = vggkeras.build(arch, width=width, fc_units=fc_units, seed=0)
    image = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
    expected = model(image.astype(np.float32), training=False).numpy()
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = (Path(folder, name) for name in ("ours", "theirs"))
        ours.mkdir()
        theirs.mkdir()
        reference = keras.keras_predictor(
            model, ModelCard(mean_rgb=layers.mean_rgb(model), arch=arch)
        )
        card = artifact.describe(reference.card, reference, "")
        graph = to_saved_model.inference_model(model)
        to_onnx.write(graph, ours / "model.onnx", card)
        to_tflite.write(graph, ours / "model.tflite", card)
        model.export(theirs / "model.onnx", format="onnx", verbose=False)
        model.export(theirs / "model.tflite", format="litert", verbose=False)
        calls: dict[tuple[str, str], Callable[[], np.ndarray]] = {}
        for whose, path, shown in (
            ("ours", ours, image),
            ("Keras' own", theirs, image.astype(np.float32)),
        ):
            calls[whose, "onnx"] = _onnx(path / "model.onnx", shown, threads)
            calls[whose, "tflite"] = _tflite(path / "model.tflite", shown, threads)
        times: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
        for call in calls.values():
            assert np.abs(call() - expected).max() < 1e-5
        for _ in range(rounds):
            for key, call in calls.items():
                time.sleep(0.05)  # the threads of the one before stop looking for work
                call()
                start = time.perf_counter()
                for _ in range(5):
                    call()
                times[key].append((time.perf_counter() - start) / 5 * 1e3)
    table = Table(
        title=f"{arch}, width {width:g}, 224 px, one image, {threads} threads: ms a call, median "
        "[quartiles]"
    )
    for column in ("file", "ours", "Keras' own", "ours / Keras' own, median of the rounds'"):
        table.add_column(column, justify="left" if column == "file" else "right")
    for kind in ("onnx", "tflite"):
        mine, other = np.array(times["ours", kind]), np.array(times["Keras' own", kind])
        table.add_row(kind, _quartiles(mine), _quartiles(other), f"{np.median(mine / other):.2f}")
    Console().print(table)


def _quartiles(values: np.ndarray) -> str:
    low, middle, high = np.percentile(values, (25, 50, 75))
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def _onnx(path: Path, image: np.ndarray, threads: int) -> Callable[[], np.ndarray]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: image})[0]


def _tflite(path: Path, image: np.ndarray, threads: int) -> Callable[[], np.ndarray]:
    from ai_edge_litert.interpreter import Interpreter

    with stderr.quiet_stderr():
        interpreter = Interpreter(str(path), num_threads=threads)
        interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], image.shape)
        interpreter.allocate_tensors()
    (details,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()

    def call() -> np.ndarray:
        interpreter.set_tensor(details["index"], image)
        interpreter.invoke()
        return interpreter.get_tensor(output["index"])

    return call


if __name__ == "__main__":
    tyro.cli(main)
