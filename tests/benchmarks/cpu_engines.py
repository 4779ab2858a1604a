"""Compare the engines for CPUs with Keras, on validation images: accuracy, agreement, errors.

    python tests/benchmarks/cpu_engines.py runs/imagenette --data tfds:imagenette/160px-v2

The run's exports (`python -m export --precision all`) are shown all validation images, .onnx files
in ONNX Runtime, OpenVINO and MNN, .tflite files in LiteRT. How fast they are, `export.benchmark`
says: model.onnx model.onnx@openvino model.onnx@mnn model.tflite.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from export import parity, samples
from export.formats import tolerance_of
from vggkeras import runtimes
from vggkeras.processor import this_processor

ENGINES = (("onnx", "cpu"), ("onnx", "openvino"), ("onnx", "mnn"), ("tflite", "cpu"))


@dataclass
class Arguments:
    """Which run, and what it is shown."""

    run: Annotated[Path, tyro.conf.Positional]
    data: str | None = None  # by default the run's own
    images: int = 0  # all


def main() -> None:
    """Print a row for each precision in each engine."""
    given, console = tyro.cli(Arguments), Console(width=160)
    reference = runtimes.load(given.run)
    reference, shown = samples.parity_images(reference, given.data, given.images, console)
    answers = reference(shown.images)
    right = (answers.argmax(1) == shown.labels).mean()
    table = Table(title=f"{this_processor()}; {shown.evidence}; Keras: {right:.2%}")
    for column in ("file", "engine", "top-1", "agreement", "largest error", "rms", "tolerance"):
        table.add_column(column)
    for precision in ("float32", "float16", "int8"):
        for suffix, provider in ENGINES:
            name = f"model.{suffix}" if precision == "float32" else f"model.{precision}.{suffix}"
            engine = runtimes.load(given.run / "export" / name, provider=provider)
            gate = parity.Gate(None)
            seen = (reference, answers)
            result = parity.compare(seen, engine, shown.images, shown.labels, gate, (64, 7, 1))
            tolerance = tolerance_of(precision, engine.runtime)
            table.add_row(
                name,
                f"{engine.runtime} {engine.version}",
                f"{result.accuracy_artifact:.2%}",
                f"{result.top1_agreement:.2%}",
                f"{result.max_abs_error:.1e} ({result.max_rel_error:.1e} relative)",
                f"{np.sqrt(np.square(engine(shown.images) - answers).mean()):.1e}",
                f"{tolerance:.1e}" if tolerance else "-",
            )
    console.print(table)


if __name__ == "__main__":
    main()
