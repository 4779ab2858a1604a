"""Measure the page of `python -m export --web` in headless Chromium: bytes, and the first answer.

    npm install --ignore-scripts onnxruntime-web@1.30.0
    python tests/benchmarks/web_page.py node_modules runs/modern/export/model.onnx \
        runs/modern/export/model.int8.onnx

Every round opens the page of every file in a new profile, from Python's own server on this machine:
no network is in the times. Then it is opened again without a network, from what the browser keeps;
and again with one, where WebGPU is chosen, which SwiftShader computes on the processor: its proof
tells, and not its time.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))  # tests/export would hide export

from browsers import chromium, served

from export import web

KINDS = ("first", "offline", "WebGPU")
WEBGPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")


@dataclass(frozen=True)
class Visit:
    """One opening of a page."""

    bytes: int  # of the bodies that were asked for
    proven: float  # s, from asking for the page until it has proven itself
    answered: float  # s, until the first answer is shown, a picture being given at once
    network: float  # ms, of that answer, in the network
    processor: float  # s that the browser computed until then, on all cores
    error: str  # the largest one of the proof


def visit(context: Any, address: str, picture: Path, backend: str) -> Visit:
    """Open a page, wait for its proof, and give it a picture.

    WebAssembly is what a page without a graphics card begins with; WebGPU's times are from its
    being chosen then.
    """
    tab, received = context.new_page(), []
    tab.set_default_timeout(600_000)
    tab.on("response", lambda response: received.append(response))
    start, before = time.perf_counter(), computed()
    tab.goto(address)
    tab.locator("body.ready").wait_for()
    if backend != "wasm":
        received.clear()
        start, before = time.perf_counter(), computed()
        tab.select_option("#backend", backend)
        tab.locator("body.ready").wait_for()
    proven = time.perf_counter() - start
    tab.set_input_files("input >> nth=0", picture)
    tab.locator("#results:not([hidden])").wait_for()
    answered, processor = time.perf_counter() - start, computed() - before
    sizes = [int(response.headers.get("content-length", 0)) for response in received]
    proof, said = tab.text_content("#proof"), tab.text_content("#status")
    tab.evaluate("async () => { await navigator.serviceWorker.ready }")
    tab.close()
    return Visit(
        bytes=sum(sizes),
        proven=proven,
        answered=answered,
        network=float(said.split("alone: ")[1].split()[0]),
        processor=processor,
        error=proof.split("error ")[1].split()[0],
    )


def computed() -> float:
    """Return the seconds that this program's child processes have computed."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def main() -> None:
    """Print a row a file and kind of visit: medians over the rounds, and the range."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("node_modules", type=Path)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    visits: dict[tuple[str, str], list[Visit]] = {}
    with tempfile.TemporaryDirectory() as folder, chromium(*WEBGPU) as browser:
        picture = Path(folder) / "picture.jpg"
        pixels = np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(picture)
        pages = [
            web.write_page(Path(folder) / str(i), file, arguments.node_modules)
            for i, file in enumerate(arguments.files)
        ]
        for _ in range(arguments.rounds):
            for file, page in zip(arguments.files, pages, strict=True):
                with served(page) as address:
                    context = browser.new_context()
                    for kind in KINDS:
                        context.set_offline(kind == "offline")
                        row = visits.setdefault((str(file), kind), [])
                        backend = "webgpu" if kind == "WebGPU" else "wasm"
                        row.append(visit(context, address, picture, backend))
                    context.close()
    columns = ["file", "visit", "MB", "largest error", "proven, s", "first answer, s"]
    columns += ["network, ms", "processor, s"]
    print(f"| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|")
    for (file, kind), row in visits.items():
        kept = kind == "offline"
        cells = ["0" if kept else f"{row[0].bytes / 1e6:.2f}", row[0].error]
        for values in ([v.proven for v in row], [v.answered for v in row]):
            low, high = min(values), max(values)
            cells.append(f"{statistics.median(values):.2f} [{low:.2f}, {high:.2f}]")
        cells.append(f"{statistics.median(v.network for v in row):.0f}")
        cells.append(f"{statistics.median(v.processor for v in row):.2f}")
        print(f"| {file} | {kind} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
