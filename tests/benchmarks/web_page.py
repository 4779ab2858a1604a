"""Measure the page of `python -m export --web` in headless Chromium: bytes, and the first answer.

    npm install --ignore-scripts onnxruntime-web@1.30.0
    python tests/benchmarks/web_page.py node_modules runs/modern/export/model.onnx \
        runs/modern/export/model.int8.onnx

Every round opens the page of every file in a new profile, from Python's own server on this machine:
no network is in the times. Then it is opened again without a network, from what the browser keeps.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from browsers import chromium, served

from export import web


@dataclass(frozen=True)
class Visit:
    """One opening of a page."""

    bytes: int  # of the bodies that were asked for
    proven: float  # s, from asking for the page until it has proven itself
    answered: float  # s, until the first answer is shown, a picture being given at once
    network: float  # ms, of that answer, in the network


def visit(context: Any, address: str, picture: Path) -> Visit:
    """Open a page, wait for its proof, and give it a picture."""
    tab, received = context.new_page(), []
    tab.on("response", lambda response: received.append(response))
    start = time.perf_counter()
    tab.goto(address)
    tab.locator("body.ready").wait_for(timeout=600_000)
    proven = time.perf_counter() - start
    tab.set_input_files("input >> nth=0", picture)
    tab.locator("#results:not([hidden])").wait_for()
    answered = time.perf_counter() - start
    told = tab.text_content("#status")
    sizes = [int(response.headers.get("content-length", 0)) for response in received]
    tab.evaluate("async () => { await navigator.serviceWorker.ready }")
    tab.close()
    return Visit(sum(sizes), proven, answered, float(told.split("alone: ")[1].split()[0]))


def main() -> None:
    """Print a row a file and kind of visit: medians over the rounds, and the range."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("node_modules", type=Path)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    visits: dict[tuple[str, str], list[Visit]] = {}
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
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
                    for kind in ("first", "offline"):
                        context.set_offline(kind == "offline")
                        row = visits.setdefault((str(file), kind), [])
                        row.append(visit(context, address, picture))
                    context.close()
    print("| file | visit | MB | proven, s | first answer, s | network, ms |")
    print("|---|---|---|---|---|---|")
    for (file, kind), row in visits.items():
        cells = [f"{row[0].bytes / 1e6:.2f}" if kind == "first" else "0"]
        for values in ([v.proven for v in row], [v.answered for v in row]):
            low, high = min(values), max(values)
            cells.append(f"{statistics.median(values):.2f} [{low:.2f}, {high:.2f}]")
        cells.append(f"{statistics.median(v.network for v in row):.0f}")
        print(f"| {file} | {kind} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
