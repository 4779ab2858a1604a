"""Run every notebook top to bottom, and compare its outputs with the committed ones.

    make notebooks
    python notebooks/execute.py --write 1-train.ipynb    to commit new outputs

Each runs in a folder of its own. Numbers and timings differ between machines, and so may the lines
of a training's epochs: they are left out of the comparison.
"""

from __future__ import annotations

import argparse
import base64
import difflib
import io
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).parent
LARGEST = 400_000  # bytes of a notebook with its outputs
COLORS = 64  # of a committed picture
NUMBER = re.compile(r"\b[0-9a-f]{16,}\b|\bsha256-[\w+/]+=*|[-+]?\d[\d,_.]*(e[-+]?\d+)?%?")
# What TensorFlow's own code tells of the machine.
NOISE = re.compile(
    r"^([IWE]0000 .*|WARNING: All log messages before absl.*|To enable the .*)\n", re.M
)
BOX = re.compile("[│┃━─]")
STYLE = re.compile(r"\x1b\[[\d;]*m")
# What depends on how fast a machine is, or on which epoch was best by a hair.
PASSING = re.compile(r"^epoch +#/#|^(reading|rescaling|validating|epoch)\b.* left$|^resumes ")


def executed(path: Path) -> nbformat.NotebookNode:
    """Return a notebook, run top to bottom, without traces of where and when it ran."""
    with tempfile.TemporaryDirectory() as folder:
        here = str(Path(folder).resolve())
        notebook = nbformat.read(path, as_version=4)
        resources = {"metadata": {"path": here}}
        own = {
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "XDG_CACHE_HOME": f"{here}/cache",
            "TFDS_DATA_DIR": here,
        }
        env = {**os.environ, **own}  # the same data wherever it runs
        client = NotebookClient(notebook, timeout=900, resources=resources, record_timing=False)
        client.execute(env=env)
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            tidy = [_tidy(output, here) for output in cell.outputs]
            cell.outputs = _joined([output for output in tidy if output.get("text") != ""])
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def _joined(outputs: list) -> list:
    """Join the pieces in which a kernel happens to send one stream."""
    joined: list = []
    for output in outputs:
        same = joined and output.output_type == joined[-1].output_type == "stream"
        if same and output.name == joined[-1].name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def _tidy(output: nbformat.NotebookNode, here: str) -> nbformat.NotebookNode:
    """Return an output with paths from the notebook's folder on."""

    def tidy(text: str) -> str:
        return text.replace(f"{here}/", "").replace(here, ".")

    data = output.get("data", {})
    if "image/png" in data:
        data["image/png"] = _smaller(data["image/png"])
    if data.get("text/html", "").startswith("<pre"):  # rich's, in colors
        output = nbformat.v4.new_output("stream", text=STYLE.sub("", data["text/plain"]))
    if output.output_type == "stream":
        output.text = NOISE.sub("", STYLE.sub("", tidy(output.text)))
    elif "text/plain" in data:
        data["text/plain"] = tidy(data["text/plain"])
    return output


def _smaller(png: str) -> str:
    """Return a picture, base64, in few colors."""
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        buffer = io.BytesIO()
        image.convert("RGB").quantize(COLORS).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def shape(notebook: nbformat.NotebookNode) -> list[str]:
    """Return a notebook's outputs as lines in which every number is a #."""
    lines = []
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                text = output.text
            else:
                data = output.get("data", {})
                text = data.get("text/plain", "") if "image/png" not in data else "a picture"
            masked = [NUMBER.sub("#", line).strip() for line in text.splitlines()]
            masked = [
                re.sub(r"[ #─━]+", " ", line) if BOX.search(line) else line for line in masked
            ]
            lines += [
                f"cell {number}: {line}" for line in masked if line and not PASSING.match(line)
            ]
    return lines


def differences(path: Path) -> list[str]:
    """Run a notebook, and return how its outputs differ from the committed ones."""
    committed, now = shape(nbformat.read(path, as_version=4)), shape(executed(path))
    found = difflib.unified_diff(committed, now, "committed", "executed", lineterm="", n=0)
    return [line for line in found if not line.startswith("@@")]


def main() -> int:
    """Run the notebooks that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep the outputs in the notebooks")
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    differ = False
    for path in sorted(HERE.glob("*.ipynb")):
        if arguments.names and path.name not in arguments.names:
            continue
        start = time.monotonic()
        if arguments.write:
            nbformat.write(executed(path), path)
            found = []
        else:
            found = differences(path)
        print(f"{path.name}: ran top to bottom in {time.monotonic() - start:.0f} s")
        print("\n".join(found))
        differ |= bool(found)
        sys.stdout.flush()
    return int(differ)


if __name__ == "__main__":
    sys.exit(main())
