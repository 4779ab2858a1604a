"""Run every notebook top to bottom, in a folder of its own: `make notebooks`.

The files here are left as they are.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

for path in sorted(Path(__file__).parent.glob("*.ipynb")):
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(notebook, timeout=900, resources={"metadata": {"path": folder}}).execute()
    print(f"{path.name}: ran top to bottom in {time.monotonic() - start:.0f} s")
    sys.stdout.flush()
