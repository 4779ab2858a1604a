"""Time one network's files in the engines for CPUs, all in one process and by turns.

    python tests/benchmarks/engine_turns.py D/export --rounds 6

For a machine that is too busy, or a network too large, for `export.benchmark`, which starts a
process for each and asks 64 queries. Times are of one call, with 1 and with 8 images; ratios are
the medians of the rounds' to ONNX Runtime at float32.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from vggkeras import runtimes
from vggkeras.processor import this_processor

FILES = (
    ("model.onnx", "cpu"),
    ("model.onnx", "openvino"),
    ("model.onnx", "mnn"),
    ("model.tflite", "cpu"),
    ("model.float16.onnx", "openvino"),
    ("model.int8.onnx", "cpu"),
    ("model.int8.onnx", "openvino"),
    ("model.int8.onnx", "mnn"),
    ("model.int8.tflite", "cpu"),
)


@dataclass
class Arguments:
    """Which files, and for how long."""

    folder: Annotated[Path, tyro.conf.Positional]
    rounds: int = 6
    batches: tuple[int, ...] = (1, 8)


def main() -> None:
    """Print a row a file and engine."""
    given, console = tyro.cli(Arguments), Console(width=160)
    engines = [runtimes.load(given.folder / name, provider=p) for name, p in FILES]
    rng = np.random.default_rng(0)
    cells: list[list[str]] = [[] for _ in engines]
    for batch in given.batches:
        images = rng.integers(0, 256, (batch, *engines[0].input_shape), dtype=np.uint8)
        times = np.zeros((given.rounds + 1, len(engines)))  # the first round warms up
        for number in range(given.rounds + 1):
            for i in range(len(engines))[:: -1 if number % 2 else 1]:
                time.sleep(0.05)  # threads spin for some ms after their last call
                start = time.perf_counter()
                engines[i](images)
                times[number, i] = time.perf_counter() - start
            console.print(f"batch {batch}, round {number}: {times[number].round(2)}", style="dim")
        ratios = times[1:, :1] / times[1:]
        for i, row in enumerate(cells):
            low, high = ratios[:, i].min(), ratios[:, i].max()
            row += [f"{1e3 * np.median(times[1:, i]):.0f}"]
            row += [f"{np.median(ratios[:, i]):.2f} [{low:.2f}, {high:.2f}]"]
    table = Table(title=f"{this_processor()}; {given.rounds} rounds")
    for column in (
        "file",
        "engine",
        *(c for b in given.batches for c in (f"ms of {b}", "x faster")),
    ):
        table.add_column(column)
    for engine, row in zip(engines, cells, strict=True):
        table.add_row(engine.path.name, f"{engine.runtime} {engine.version}", *row)
    console.print(table)


if __name__ == "__main__":
    main()
